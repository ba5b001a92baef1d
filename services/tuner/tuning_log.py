"""Writes a tuning's events to `prompt.updates`, and keeps what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from fulgurite.enums import PromptKind, TuningStage
from fulgurite.events import Event, PromptCost, PromptScore, PromptTuning, PromptUpdate
from fulgurite.ids import derive_id
from fulgurite.prompts.tuning import TuningState, score_id
from services.common.runtime.clock import now_ms
from services.tuner.errors import CannotTune

_TRIES = 5
"""How often a version is written again because somebody else wrote that number first."""

Read = Callable[[], Iterable[Event | None]]
"""Reads the whole topic."""
Publish = Callable[[str, Event], None]
"""Writes an event under the key, and returns once the log has it."""


class TuningLog:
    """The log of one tuning."""

    def __init__(
        self, alias: str, role: str | None, tuning: str, author: str, read: Read, publish: Publish
    ) -> None:
        self.alias = alias
        self.role = role
        self.tuning = tuning
        self._author = author
        self._read = read
        self._publish = publish
        self.state = self._fold()

    def begin(
        self, *, method: str, train_tasks: int, validation_tasks: int, seed: int
    ) -> PromptTuning:
        """Write that the tuning began; returns how it did, if it had begun before."""
        if self.state.started is not None:
            return self.state.started
        current = self.in_force()
        event = PromptTuning(
            event_id=derive_id("prompt-tuning", self.tuning),
            event_time=now_ms(),
            alias=self.alias,
            role=self.role,
            tuning=self.tuning,
            method=method,
            baseline=None if current is None else current.version,
            train_tasks=train_tasks,
            validation_tasks=validation_tasks,
            seed=seed,
            author=self._author,
        )
        self._write(event)
        return event

    def in_force(self) -> PromptUpdate | None:
        """The version that calls of the tuned role get now."""
        history = self.state.history
        return history.current(self.alias, self.role) or history.current(self.alias, None)

    def write_candidate(
        self,
        edits: Mapping[str, object],
        *,
        parent: str | None,
        reason: str,
        examples: tuple[str, ...] = (),
        reflection: str | None = None,
        cost: PromptCost | None = None,
    ) -> PromptUpdate:
        """Write a candidate with these edits, and return it with its version."""
        draft = self._update(
            PromptKind.candidate, edits, parent, reason, examples, reflection, cost
        )
        for _ in range(_TRIES):
            self.state = self._fold()
            version = self.state.history.next_version(self.alias)
            event = msgspec.structs.replace(
                draft, event_id=derive_id("prompt", self.alias, version), version=version
            )
            self._publish(self.alias, event)
            self.state = self._fold()
            if self.state.history.find(self.alias, version) == event:
                return event
        raise CannotTune(
            f"somebody else writes versions of {self.alias} all the time, and no candidate got a "
            "number: wait until they are done, and run the same command again"
        )

    def write_refused(
        self, edits: Mapping[str, object], *, parent: str | None, reason: str,
        reflection: str, cost: PromptCost,
    ) -> None:  # fmt: skip
        """Write that a text became no candidate, and why."""
        event = self._update(PromptKind.refused, edits, parent, reason, (), reflection, cost)
        self._write(
            msgspec.structs.replace(
                event, event_id=derive_id("prompt-refused", self.tuning, reflection)
            )
        )

    def write_score(
        self,
        version: str | None,
        stage: TuningStage,
        task: str,
        group_id: str,
        rewards: tuple[float, ...],
        unscored: int,
        cost: PromptCost,
    ) -> PromptScore:
        """Write what a version earned on a task."""
        event = PromptScore(
            event_id=score_id(self.tuning, version, stage, task),
            event_time=now_ms(),
            alias=self.alias,
            tuning=self.tuning,
            version=version,
            stage=stage,
            task=task,
            group_id=group_id,
            rewards=rewards,
            unscored=unscored,
            cost=cost,
        )
        self._write(event)
        return event

    def decide(self, kind: PromptKind, candidate: PromptUpdate, reason: str) -> PromptUpdate:
        """Propose a candidate, or put it in force, unless that is done; returns the event."""
        # Of the role alone: a rollback returns to the parent, which the alias's version cannot be.
        current, decided = self.state.history.current(self.alias, self.role), self.state.decided
        version = None if current is None else current.version
        if (
            decided is not None
            and (decided.kind, decided.version) == (kind, candidate.version)
            and (kind is PromptKind.proposed or version == candidate.version)
        ):
            return decided
        # Named by what it replaces: a candidate that was taken back may be put in force again.
        replaced = self.state.history.last_change(self.alias, self.role)
        event = msgspec.structs.replace(
            self._update(kind, {}, version, reason, (), None, None),
            event_id=derive_id(
                "prompt-decision",
                self.tuning,
                str(kind),
                candidate.version or "",
                "" if replaced is None else replaced.event_id,
            ),
            version=candidate.version,
        )
        self._write(event)
        return event

    def reload(self) -> None:
        """Read what others wrote."""
        self.state = self._fold()

    def _update(
        self,
        kind: PromptKind,
        edits: Mapping[str, object],
        parent: str | None,
        reason: str,
        examples: tuple[str, ...],
        reflection: str | None,
        cost: PromptCost | None,
    ) -> PromptUpdate:
        event = PromptUpdate(
            event_id="",
            event_time=now_ms(),
            alias=self.alias,
            role=self.role,
            kind=kind,
            parent=parent,
            reason=reason,
            author=self._author,
            tuning=self.tuning,
            examples=examples,
            reflection=reflection,
            cost=cost,
        )
        return msgspec.structs.replace(event, **edits)

    def _write(self, event: Event) -> None:
        self._publish(self.alias, event)
        self.state.apply(event)

    def _fold(self) -> TuningState:
        state = TuningState(self.alias, self.tuning)
        for event in self._read():
            state.apply(event)
        return state
