"""Scores episodes with a reward function, and turns its values into reward events.

`services.rewards.functions` says how a function is named. The reward event has no value and an
`error` if the function raises, returns a wrong type, exceeds its time or memory limit, pays a call
that the episode does not have, or does not return a name that the group expects. Without an event
the group would wait until its deadline.

Rewards of single actions are provisional events. The final event of their name follows them: it is
worth 0, and says that all are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fulgurite.enums import CallOutcome
from fulgurite.events import AgentReward, Episode
from fulgurite.ids import action_id, derive_id
from services.rewards.errors import RewardFailed
from services.rewards.functions import Value, source_of
from services.rewards.sandbox import LOAD_TIMEOUT_S, Limits, Sandbox, check


class Scored(NamedTuple):
    """The reward events of one episode; `failure` says why they have no value."""

    rewards: list[AgentReward]
    failure: RewardFailed | None = None


class RewardPlugin:
    """A reward function that can be loaded. `source` is its name with the hash of its code."""

    def __init__(
        self,
        reference: str,
        name: str,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        *,
        fallback: bool = False,
    ) -> None:
        """Check that the function can be loaded. Raises PluginError.

        `fallback`: its rewards count only where no other does.
        """
        self.name = name
        self.is_fallback = fallback
        self.source = source_of(reference)
        self._reference = reference
        check(reference, load_timeout_s)

    def sandbox(self, limits: Limits) -> Sandbox:
        """Make the processes that run the function."""
        return Sandbox(self._reference, self.name, limits)

    async def score(self, sandbox: Sandbox, episode: Episode) -> Scored:
        """Score an episode in `sandbox`. Failures of the function are returned, not raised."""
        try:
            values = await sandbox.score(episode)
            self._require(episode, values)
        except RewardFailed as failure:
            return self.failed(episode, failure)
        return Scored(self._reward_events(episode, values))

    def failed(self, episode: Episode, failure: RewardFailed) -> Scored:
        """Return the event that says why the episode has no value."""
        return Scored(self._reward_events(episode, {self.name: None}, str(failure)), failure)

    def _require(self, episode: Episode, values: Mapping[str, Value]) -> None:
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        if values and self.name in expected and self.name not in values:
            given = ", ".join(map(repr, values))
            raise RewardFailed(
                f"it returned {given}, but not {self.name!r}, which the group waits for: return "
                "that too, or choose another --name"
            )
        actions = _actions(episode)
        for name, value in values.items():
            for action in value if isinstance(value, dict) else ():
                if action not in actions:
                    raise RewardFailed(
                        f"it paid {action[:80]!r} for {name!r}, which is no successful call of the "
                        "episode: take the `call_id` of one of `episode.calls`"
                    )

    def _reward_events(
        self, episode: Episode, values: Mapping[str, Value | None], error: str | None = None
    ) -> list[AgentReward]:
        """Make reward events, expected names last: the last of these may close the group."""
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        actions = _actions(episode)
        events: list[AgentReward] = []
        for name, value in sorted(values.items(), key=lambda item: (item[0] in expected, item[0])):
            paid: Mapping[str, float] = value if isinstance(value, dict) else {}
            events += [
                self._event(episode, name, amount, action=actions[action])
                for action, amount in paid.items()
            ]
            total = 0.0 if isinstance(value, dict) else value
            events.append(self._event(episode, name, total, error=error))
        return events

    def _event(
        self,
        episode: Episode,
        name: str,
        value: float | None,
        *,
        action: _Action | None = None,
        error: str | None = None,
    ) -> AgentReward:
        call_id, choice = action or (None, None)
        return AgentReward(
            event_id=reward_event_id(name, self.source, episode, call_id, choice),
            # The reward of the last revision must be the newest: a revision has more
            # inputs, but perhaps no later time.
            event_time=episode.event_time + len(episode.inputs),
            group_id=episode.group_id,
            rollout_id=episode.rollout_id,
            attempt=episode.attempt,
            call_id=call_id,
            choice=choice,
            name=name,
            value=value,
            final=action is None,
            source=self.source,
            error=error,
            fallback=self.is_fallback,
        )


class _Action(NamedTuple):
    call_id: str
    choice: int


def _actions(episode: Episode) -> dict[str, _Action]:
    """The episode's actions by action id; those of choice 0 also by call id."""
    actions: dict[str, _Action] = {}
    for call in episode.calls:
        if call.outcome is CallOutcome.success:
            actions[call.call_id] = _Action(call.call_id, 0)
            for choice in call.choices:
                action = _Action(call.call_id, choice.index)
                actions[action_id(*action)] = action
    return actions


def reward_event_id(
    name: str,
    source: str,
    episode: Episode,
    call_id: str | None = None,
    choice: int | None = None,
) -> str:
    """Derive the event id from function, revision and, if one action is paid, that action, so that
    scoring again repeats the event.
    """
    target = () if call_id is None else (action_id(call_id, choice or 0),)
    return derive_id("reward", name, source, episode.event_id, *target)
