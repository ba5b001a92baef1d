"""Calls and statuses → episodes."""

from __future__ import annotations

from collections import defaultdict

from fulgurite.closing import awaits_episodes
from fulgurite.deadlines import AttemptProgress, overdue
from fulgurite.events import AgentStatus, Declaration, Episode, LlmCall
from fulgurite.stitching import Input, is_input, is_terminal, missing_inputs, stitch, supersede
from tests.fulgurite.simulated.world import CALLS, EPISODES, STATUS, Key, Reader, World


class Aggregator:
    """Calls and statuses → episodes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "aggregator", (CALLS, STATUS))
        self._inputs: defaultdict[Key, dict[str, Input]] = defaultdict(dict)
        self._declared: dict[str, AgentStatus] = {}
        self._barriers: dict[Key, int] = {}
        self._said: set[str] = set()
        self._published: dict[Key, Episode] = {}
        for episode in world.log[EPISODES]:
            assert isinstance(episode, Episode)
            key = (episode.rollout_id, episode.attempt)
            held = self._published.get(key)
            if held is None or set(episode.inputs) > set(held.inputs):
                self._published[key] = episode

    def step(self, choice: int) -> bool:
        """See Processor."""
        works = (self._publish, lambda: self._reader.commit(self._settled()), lambda: self._read(choice), self._judge)
        first = choice % 3
        return any(work() for work in (*works[first:3], *works[:first], works[3]))

    def _read(self, choice: int) -> bool:
        event = self._reader.next(choice // 3)
        if event is None:
            return False
        assert isinstance(event, LlmCall | AgentStatus)
        if isinstance(event, AgentStatus) and event.declaration is not None:
            self._declared.setdefault(event.group_id, event)
        elif is_input(event):
            key = (str(event.rollout_id), event.attempt)
            published = self._published.get(key)
            if published is None or event.event_id not in published.inputs:
                self._inputs[key].setdefault(event.event_id, event)
                if published is not None or any(map(is_terminal, self._inputs[key].values())):
                    # A call is in the log before its reply leaves, so below the end that the log has now.
                    self._barriers[key] = len(self._world.log[CALLS])
        return True

    def _publish(self) -> bool:
        for key, barrier in list(self._barriers.items()):
            # Attempts of a rollout in their order: this rewarder closes a group once, and what comes after that is late.
            earlier = any(rollout == key[0] and attempt < key[1] for rollout, attempt in self._barriers)
            if self._reader.at[CALLS] < barrier or earlier:
                continue
            del self._barriers[key]
            episode = self._stitched(key)
            if episode is not None:
                self._published[key] = episode
                self._world.append(EPISODES, episode)
                return True
        return False

    def _stitched(self, key: Key) -> Episode | None:
        held, published = self._inputs[key], self._published.get(key)
        if published is not None:
            lost = missing_inputs(published, held)
            held |= {call.event_id: call for call in published.calls}
            held |= {
                event.event_id: event for event in self._world.log[STATUS] if event.event_id in lost and isinstance(event, AgentStatus)
            }
        group = next(iter(held.values())).group_id
        candidate = stitch([*held.values(), *self._declaration_of(group)])
        return None if candidate is None else supersede(published, candidate)

    def _declaration_of(self, group: str) -> list[AgentStatus]:
        """Read again from the log, if it was acknowledged before we began: its group was complete then, and is no longer."""
        if group in self._declared:
            return [self._declared[group]]
        known = (event for event in self._world.log[STATUS] if isinstance(event, AgentStatus) and event.declaration is not None)
        return [event for event in known if event.group_id == group][:1]

    def _judge(self) -> bool:
        if not self._reader.at_end() or self._barriers:
            return False
        for declared in self._declared.values():
            if declared.declaration is None or self._world.time < declared.declaration.deadline:
                continue
            for verdict in overdue(declared, self._heard(declared.declaration)):
                if verdict.event_id not in self._said:
                    self._said.add(verdict.event_id)
                    self._world.append(STATUS, verdict)
                    return True
        return False

    def _heard(self, declaration: Declaration) -> dict[str, list[AttemptProgress]]:
        heard: dict[str, list[AttemptProgress]] = {}
        for rollout, attempt in sorted({*self._inputs, *self._published}):
            if rollout in declaration.rollout_ids:
                episode = self._published.get((rollout, attempt))
                progress = AttemptProgress(
                    attempt=attempt, ended=episode is not None, will_retry=episode is not None and episode.will_retry
                )
                heard.setdefault(rollout, []).append(progress)
        return heard

    def _settled(self) -> frozenset[str]:
        settled = {event_id for episode in self._published.values() for event_id in episode.inputs}
        for declared in self._declared.values():
            episodes = [episode for episode in self._published.values() if episode.group_id == declared.group_id]
            if awaits_episodes(declared.declaration, episodes):
                settled.discard(declared.event_id)
        return frozenset(settled)
