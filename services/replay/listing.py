"""Lists rollouts with their task, last answer, versions and reward, and filters them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fulgurite.calls.transcript import answer_of, messages_of, shown
from fulgurite.enums import CallOutcome, Mode
from fulgurite.events import EventStruct, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.tokens import token_count
from fulgurite.untrusted_json import Json
from services.common.blobs.blob_store import readable
from services.replay.groups import Group
from services.replay.scoring import scores
from services.replay.timeline import rollout_ids


class Wanted(EventStruct, frozen=True, kw_only=True):
    """Which rollouts are listed. A field that is None does not filter."""

    mode: Mode | None = None
    reward_below: float | None = None
    reward_above: float | None = None
    failure: FailureKind | None = None
    version: str | None = None
    """A version that answered one of its calls."""
    run_id: str | None = None
    group_id: str | None = None
    text: str | None = None
    """Text in its task, messages or answers; upper and lower case are the same."""

    def accepts(self, row: Json) -> bool:
        """Whether a rollout is listed."""
        return (
            (self.mode is None or row["mode"] == self.mode)
            and (
                self.reward_below is None
                or (row["reward"] is not None and row["reward"] < self.reward_below)
            )
            and (
                self.reward_above is None
                or (row["reward"] is not None and row["reward"] > self.reward_above)
            )
            and (self.failure is None or row["failure"] == self.failure)
            and (self.version is None or self.version in row["versions"])
            and (self.run_id is None or row["run_id"] == self.run_id)
            and (self.group_id is None or row["group_id"] == self.group_id)
        )


def listed(group: Group, wanted: Wanted) -> Iterator[Json]:
    """Yield the wanted rollouts of a group as JSON values."""
    scored = {score.episode.rollout_id: score for score in scores(group)}
    modes = {status.rollout_id: status.mode for status in group.statuses}
    declaration = group.declaration
    for rollout_id in rollout_ids(group):
        inputs = [
            event
            for key, events in group.inputs.items()
            if key[0] == rollout_id
            for event in events.values()
        ]
        calls = sorted(
            (event for event in inputs if isinstance(event, LlmCall)),
            key=lambda call: (call.started_at, call.call_id),
        )
        score = scored.get(rollout_id)
        mode = calls[0].mode if calls else modes.get(rollout_id, modes.get(None, Mode.train))
        row: Json = {
            "rollout_id": rollout_id,
            "group_id": group.group_id,
            "run_id": declaration.run_id if declaration else None,
            "mode": str(mode),
            "began_at": min((event.event_time for event in inputs), default=group.began_at),
            "outcome": str(score.episode.outcome) if score else "open",
            "failure": str(score.episode.failure) if score and score.episode.failure else None,
            "calls": len(calls),
            "tokens": sum(
                token_count(choice.token_ids or b"") for call in calls for choice in call.choices
            ),
            "versions": list(
                dict.fromkeys(call.version_first for call in calls if call.version_first)
            ),
            "reward": score.reward if score else None,
            "reason": str(score.reason) if score and score.reason else None,
            "task": declaration.task if declaration else None,
        }
        if not wanted.accepts(row):
            continue
        said = _said(calls)
        row["answer"] = said[-1] if said else None
        if wanted.text is None or _holds(
            wanted.text, [str(row["task"] or ""), *_asked(calls), *said]
        ):
            yield row


def _said(calls: Sequence[LlmCall]) -> list[str]:
    """The answers of the successful calls."""
    answered = [readable(call) for call in calls if call.outcome is CallOutcome.success]
    return [shown(answer_of(choice)) for call in answered for choice in call.choices]


def _asked(calls: Sequence[LlmCall]) -> list[str]:
    return [shown(message) for call in calls for message in messages_of(readable(call))]


def _holds(text: str, texts: Sequence[str]) -> bool:
    return any(text.casefold() in one.casefold() for one in texts)
