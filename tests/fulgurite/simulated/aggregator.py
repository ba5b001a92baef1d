"""Calls and statuses → episodes, as `services/aggregator/partition.py` orders them."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from fulgurite.episodes.deadlines import AttemptProgress, overdue, silent
from fulgurite.episodes.stitching import (
    Input,
    is_input,
    is_terminal,
    missing_inputs,
    stitch,
    supersede,
)
from fulgurite.events import AgentStatus, Episode, LlmCall
from fulgurite.groups.closing import members
from tests.fulgurite.simulated.world import (
    CALLS,
    DEAD,
    EPISODES,
    STATUS,
    Key,
    Poison,
    Reader,
    World,
    letter_of,
)

SILENCE_MS = 30_000


class Trial(NamedTuple):
    """What fell due, and how far the log must be read before it times out."""

    time: int
    ends: dict[str, int]
    due: list[str]
    quiet: list[Key]


class Aggregator:
    """Calls and statuses → episodes.

    It lets go of groups that are complete, whenever the schedule says so, and reads them from the
    log again when something comes for one. Every other one looks back no further than its own
    start, and so may lack something of any group.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "aggregator", (CALLS, STATUS))
        self._inputs: defaultdict[Key, dict[str, Input]] = defaultdict(dict)
        self._groups: dict[Key, str] = {}
        self._declared: dict[str, AgentStatus] = {}
        self._published: dict[Key, Episode] = {}
        self._barriers: dict[Key, int] = {}
        self._trial: Trial | None = None
        self._timed_out: set[str] = set()
        self._timeouts: list[AgentStatus] = []
        self._done: set[str] = set()
        """Inputs of groups that were let go of."""
        self._given_up: set[Key] = set()
        """Attempts that cannot be stitched."""
        self._gone: set[str] = set()
        self._recalled: set[str] = set()
        logged = (*world.log[CALLS], *world.log[STATUS])
        self._from_before = {
            event.group_id for event in logged if isinstance(event, LlmCall | AgentStatus)
        }
        self._looks_back = world.aggregators % 2 == 0
        world.aggregators += 1
        if self._looks_back:
            for group_id in {episode.group_id for episode in _episodes(world)}:
                self._remember(group_id)

    def step(self, choice: int) -> bool:
        """See Processor."""
        if self._timeouts:
            self._world.append(STATUS, self._timeouts.pop(0))
            return True
        works = (
            self._publish,
            lambda: self._reader.commit(self._settled()),
            lambda: self._read(choice),
            self._judge,
        )
        first = choice % 4
        return (choice % 5 == 0 and self._let_go()) or any(
            work() for work in (*works[first:], *works[:first])
        )

    def _read(self, choice: int) -> bool:
        event = self._reader.next(choice // 3)
        if event is None:
            return False
        assert isinstance(event, LlmCall | AgentStatus)
        if isinstance(event, AgentStatus) and event.declaration is not None:
            self._declared.setdefault(event.group_id, event)
            self._timed_out.discard(event.group_id)
        elif is_input(event):
            self._take((str(event.rollout_id), event.attempt), event)
        return True

    def _take(self, key: Key, event: Input) -> None:
        published = self._published.get(key)
        if published is not None and event.event_id in published.inputs:
            return
        if key in self._given_up:
            if isinstance(event, LlmCall):
                self._world.append(
                    DEAD, letter_of("aggregator", event.group_id, [event], event.event_id)
                )
            self._done.add(event.event_id)
            return
        if key not in self._groups:
            # It may be one that the deadline's timeouts did not know of.
            self._timed_out.discard(event.group_id)
        self._groups[key] = event.group_id
        self._inputs[key].setdefault(event.event_id, event)
        if self._has_ended(key) or self._is_unsure(event.group_id):
            # A call is in the log before its reply leaves, so below the end that the log has now.
            self._barriers[key] = len(self._world.log[CALLS])

    def _publish(self) -> bool:
        for key, barrier in list(self._barriers.items()):
            # Attempts of a rollout in their order: this rewarder closes a group once, and what
            # comes after that is late.
            earlier = any(
                rollout == key[0] and attempt < key[1] for rollout, attempt in self._barriers
            )
            if self._reader.at[CALLS] < barrier or earlier:
                continue
            del self._barriers[key]
            group_id = self._groups[key]
            if self._is_unsure(group_id):
                self._remember(group_id)
            try:
                episode = self._stitched(key, group_id)
            except Poison:
                self._give_up(key)
                return True
            if episode is not None:
                self._published[key] = episode
                self._world.append(EPISODES, episode)
                return True
        return False

    def _stitched(self, key: Key, group_id: str) -> Episode | None:
        held, published = self._inputs[key], self._published.get(key)
        if published is not None:
            lost = missing_inputs(published, held)
            held |= {call.event_id: call for call in published.calls}
            held |= {
                event.event_id: event
                for event in self._world.log[STATUS]
                if event.event_id in lost and isinstance(event, AgentStatus)
            }
        declared = self._declared.get(group_id)
        candidate = stitch([*held.values(), *([declared] if declared else [])])
        if candidate is None:
            return None
        self._world.handle(key[0])
        return supersede(published, candidate)

    def _give_up(self, key: Key) -> None:
        """A dead letter with the actions that are in no episode; nothing more is held of the
        attempt.
        """
        inputs = self._inputs.pop(key)
        calls = (event for event in inputs.values() if isinstance(event, LlmCall))
        self._world.append(DEAD, letter_of("aggregator", self._groups[key], calls, key[0]))
        self._given_up.add(key)
        self._done |= inputs.keys()

    def _is_unsure(self, group_id: str) -> bool:
        """Whether the log may hold of a group what memory does not."""
        if group_id in self._recalled:
            return False
        from_before = group_id in self._from_before and not (
            self._looks_back and group_id in self._declared
        )
        return group_id in self._gone or from_before

    def _remember(self, group_id: str) -> None:
        """Read again what the log holds of a group: its declaration, perhaps before it has been
        read, and what was written.
        """
        self._recalled.add(group_id)
        self._gone.discard(group_id)
        for event in self._world.log[STATUS]:
            if (
                isinstance(event, AgentStatus)
                and event.declaration is not None
                and event.group_id == group_id
            ):
                self._declared.setdefault(group_id, event)
        for episode in _episodes(self._world):
            key = (episode.rollout_id, episode.attempt)
            held = self._published.get(key)
            if episode.group_id == group_id and (
                held is None or set(episode.inputs) > set(held.inputs)
            ):
                self._published[key] = episode
                self._groups[key] = group_id

    def _let_go(self) -> bool:
        """Of a group that is complete."""
        if self._trial is not None:
            return False
        groups = {group_id for group_id in self._groups.values() if self._is_complete(group_id)}
        for group_id in sorted(groups)[:1]:
            self._done |= self._settled()
            for key in self._keys(group_id):
                del self._groups[key]
                self._published.pop(key, None)
                self._inputs.pop(key, None)
                self._given_up.discard(key)
            self._declared.pop(group_id, None)
            self._recalled.discard(group_id)
            self._gone.add(group_id)
        return bool(groups)

    def _is_complete(self, group_id: str) -> bool:
        keys = self._keys(group_id)
        written = self._published.keys() | self._given_up
        if self._is_unsure(group_id) or any(
            key in self._barriers or key not in written for key in keys
        ):
            return False
        declared = self._declared.get(group_id)
        given_up = {rollout for rollout, _ in self._given_up}
        known = members(
            declared.declaration if declared else None,
            [self._published[key] for key in keys if key in self._published],
        )
        return all(member.final is not None or member.rollout_id in given_up for member in known)

    def _judge(self) -> bool:
        if self._trial is None:
            for group_id in {self._groups[key] for key in self._inputs} | self._declared.keys():
                if self._is_unsure(group_id):
                    self._remember(group_id)
            ends = {topic: len(self._world.log[topic]) for topic in (CALLS, STATUS)}
            trial = Trial(
                self._world.time,
                ends,
                [*filter(self._is_overdue, self._declared)],
                self._quiet(self._world.time),
            )
            self._trial = trial if trial.due or trial.quiet else None
            return self._trial is not None
        if any(self._reader.at[topic] < end for topic, end in self._trial.ends.items()):
            return False
        trial, self._trial = self._trial, None
        # Now that all is read: where calls were read first, the declaration came only since.
        self._timeouts = [
            self._timeouts_of_silent(key) for key in trial.quiet if key in self._quiet(trial.time)
        ]
        for group_id in trial.due:
            if group_id in self._declared:
                self._timed_out.add(group_id)
                self._timeouts.extend(overdue(self._declared[group_id], self._heard(group_id)))
        return True

    def _is_overdue(self, group_id: str) -> bool:
        declaration = self._declared[group_id].declaration
        if (
            declaration is None
            or group_id in self._timed_out
            or self._world.time < declaration.deadline
        ):
            return False
        return not self._is_complete(group_id)

    def _quiet(self, time: int) -> list[Key]:
        undeclared = [
            key
            for key, group_id in self._groups.items()
            if group_id not in self._declared and not self._has_ended(key)
        ]
        return [key for key in undeclared if self._last_heard(key) + SILENCE_MS <= time]

    def _timeouts_of_silent(self, key: Key) -> AgentStatus:
        event = next(iter(self._inputs[key].values()))
        return silent(
            group_id=event.group_id,
            rollout_id=key[0],
            attempt=key[1],
            mode=event.mode,
            last_event_time=self._last_heard(key),
            silence_ms=SILENCE_MS,
        )

    def _last_heard(self, key: Key) -> int:
        return max(
            event.finished_at if isinstance(event, LlmCall) else event.event_time
            for event in self._inputs[key].values()
        )

    def _heard(self, group_id: str) -> dict[str, list[AttemptProgress]]:
        heard: dict[str, list[AttemptProgress]] = {}
        for key in sorted(self._keys(group_id)):
            published = self._published.get(key)
            promised = any(
                isinstance(event, AgentStatus) and event.will_retry
                for event in self._inputs[key].values()
            )
            will_retry = promised or (published is not None and published.will_retry)
            heard.setdefault(key[0], []).append(
                AttemptProgress(attempt=key[1], ended=self._has_ended(key), will_retry=will_retry)
            )
        return heard

    def _has_ended(self, key: Key) -> bool:
        return (
            key in self._published
            or key in self._given_up
            or any(map(is_terminal, self._inputs[key].values()))
        )

    def _keys(self, group_id: str) -> list[Key]:
        return [key for key, group in self._groups.items() if group == group_id]

    def _settled(self) -> frozenset[str]:
        settled = {event_id for episode in self._published.values() for event_id in episode.inputs}
        for group_id, declared in self._declared.items():
            if not self._is_complete(group_id):
                settled.discard(declared.event_id)
        return frozenset(settled | self._done)


def _episodes(world: World) -> list[Episode]:
    return [episode for episode in world.log[EPISODES] if isinstance(episode, Episode)]
