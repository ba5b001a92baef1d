"""Turns rebuilt groups into data sets: SFT chats, DPO pairs, transitions, rows.

`sft`: the conversation of each rollout's last attempt, `{"messages": [...], "reward": r, "mode": m,
...}`, loss on the assistant's turns. A rollout without a reward has a `reason`: `no_reward`, or
`reward_failed` if its rewards could not be combined. `dpo`: two rollouts of one group with
different rewards and the same prompt: `{"prompt": [...], "chosen": [...], "rejected": [...]}`.
`transitions`: every action, `{"state": [ids], "action": [ids], "reward": r, "next_state": [ids],
"done": bool}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import msgspec

from fulgurite.enums import CallOutcome
from fulgurite.episodes.exclusions import ExclusionRule, find_excluded_calls
from fulgurite.episodes.view import EpisodeView
from fulgurite.errors import BadClaim, UnknownRule
from fulgurite.events import Episode, EventStruct, Trajectory
from fulgurite.groups.closing import close_group
from fulgurite.ids import action_id
from fulgurite.trajectories.building import iter_transitions
from services.common.blobs.blob_store import redeemed
from services.replay.groups import Group
from services.replay.scoring import Score, scores
from services.rewarder.closing_settings import ClosingSettings

Json = dict[str, Any]


class Filters(EventStruct, frozen=True, kw_only=True):
    """Which rollouts are exported. A field that is None does not filter."""

    min_reward: float | None = None
    policy: str | None = None
    version: str | None = None
    """The version that answered every successful call of the rollout."""
    mode: str | None = None
    agent: str | None = None
    """Agent role: only its conversations, rows and transitions."""
    until_ms: int | None = None

    def accepts(self, score: Score) -> bool:
        """Whether a rollout is exported. One without a reward is, unless `min_reward` is set."""
        calls = [call for call in score.episode.calls if call.outcome is CallOutcome.success]
        return (
            bool(calls)
            and (
                self.min_reward is None
                or (score.reward is not None and score.reward >= self.min_reward)
            )
            and (self.policy is None or all(call.policy == self.policy for call in calls))
            and (
                self.version is None
                or all(call.version_first == call.version_last == self.version for call in calls)
            )
            and self.mode in (None, str(score.episode.mode))
            and (self.agent is None or any(call.agent == self.agent for call in calls))
            and (self.until_ms is None or score.episode.started_at < self.until_ms)
        )


def sft(groups: Iterable[Group], filters: Filters, settings: ClosingSettings) -> Iterator[Json]:
    """Yield chats."""
    exclusions = settings.rules().exclusions
    for group in groups:
        for score in filter(filters.accepts, scores(group)):
            messages = _messages(score.episode, filters.agent, exclusions)
            if messages and messages[-1].get("role") == "assistant":
                yield {"messages": messages, **_about(score)}


def dpo(
    groups: Iterable[Group], filters: Filters, settings: ClosingSettings, margin: float
) -> Iterator[Json]:
    """Yield preference pairs whose rewards differ by at least `margin`.

    Conversations that share no prompt give no pair.
    """
    exclusions = settings.rules().exclusions
    for group in groups:
        scored = [
            score for score in scores(group) if score.reward is not None and filters.accepts(score)
        ]
        chats = {
            score.episode.rollout_id: _messages(score.episode, filters.agent, exclusions)
            for score in scored
        }
        for pair in combinations(scored, 2):
            worse, better = sorted(pair, key=lambda score: score.reward or 0.0)
            difference = (better.reward or 0.0) - (worse.reward or 0.0)
            prompt = _shared(chats[better.episode.rollout_id], chats[worse.episode.rollout_id])
            if difference <= 0 or difference < margin or not prompt:
                continue
            yield {
                "prompt": prompt,
                "chosen": chats[better.episode.rollout_id][len(prompt) :],
                "rejected": chats[worse.episode.rollout_id][len(prompt) :],
                "reward_chosen": better.reward,
                "reward_rejected": worse.reward,
                "group_id": group.group_id,
                "mode": str(better.episode.mode),
                "rollout_chosen": better.episode.rollout_id,
                "rollout_rejected": worse.episode.rollout_id,
            }


def transitions(
    groups: Iterable[Group], filters: Filters, settings: ClosingSettings
) -> Iterator[Json]:
    """Yield (state, action, reward, next state, done) of every action that carries loss."""
    for row in rows(groups, filters, settings):
        for action, step in zip(row.actions, iter_transitions(row), strict=True):
            if action.loss and filters.agent in (None, action.agent):
                yield {
                    "state": step.state.tolist(),
                    "action": step.action.tolist(),
                    "reward": step.reward,
                    "next_state": step.next_state.tolist(),
                    "done": step.done,
                    "credit": action.credit,
                    "id": action_id(action.call_id, action.choice),
                    "version": action.version,
                    "rollout_id": row.rollout_id,
                    "mode": str(row.mode),
                }


def rows(
    groups: Iterable[Group], filters: Filters, settings: ClosingSettings
) -> Iterator[Trajectory]:
    """Yield the rows of a closing with everything the log holds.

    Groups whose credit rule does not exist give none.
    """
    rules = settings.rules()
    for group in groups:
        episodes = group.episodes()
        wanted = {
            score.episode.rollout_id for score in scores(group, episodes) if filters.accepts(score)
        }
        if not wanted:
            continue
        try:
            outputs = close_group(group.group_id, group.declaration, episodes, group.rewards, rules)
        except UnknownRule:
            continue
        for output in outputs:
            if isinstance(output, Trajectory) and output.rollout_id in wanted:
                yield output


def _messages(
    episode: Episode, agent: str | None, exclusions: Sequence[ExclusionRule]
) -> list[Json]:
    """The last conversation that no rule excludes, of one role if `agent` is given. Empty if it
    cannot be read.
    """
    excluded = find_excluded_calls(episode.calls, exclusions)
    try:
        calls = tuple(
            redeemed(call)
            for call in episode.calls
            if agent in (None, call.agent) and call.call_id not in excluded
        )
    except BadClaim:
        return []
    return [
        _filled(message)
        for message in EpisodeView(msgspec.structs.replace(episode, calls=calls)).messages
    ]


def _filled(message: Json) -> Json:
    """Remove keys that are null, such as `audio` and `function_call`, but keep `content`."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _shared(one: Sequence[Json], other: Sequence[Json]) -> list[Json]:
    """The messages that both begin with, up to the first answer."""
    shared: list[Json] = []
    for left, right in zip(one, other, strict=False):
        if left != right or left.get("role") == "assistant":
            break
        shared.append(left)
    return shared if len(shared) < min(len(one), len(other)) else []


def _about(score: Score) -> Json:
    versions = sorted({call.version_first for call in score.episode.calls if call.version_first})
    return {
        "reward": score.reward,
        **({} if score.reason is None else {"reason": str(score.reason)}),
        "rewards": dict(score.named),
        "rollout_id": score.episode.rollout_id,
        "group_id": score.episode.group_id,
        "mode": str(score.episode.mode),
        "versions": versions,
    }
