"""What a tuner asks of whoever runs agents, and what it gets back."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from fulgurite.calls.training_use import is_left_out
from fulgurite.calls.transcript import messages_of, system_prompt
from fulgurite.cost.prices import Prices, price_of, price_tokens
from fulgurite.cost.tokens import tokens_of
from fulgurite.episodes.view import EpisodeView
from fulgurite.events import Episode, LlmCall, PromptCost
from fulgurite.prompts.examples import Example, conversation_of
from fulgurite.prompts.tuning import NOTHING, add_costs


class TuningTask(msgspec.Struct, frozen=True):
    """A task, and the hash of what the agent gets of it."""

    key: str
    task: dict[str, Any]


class RolloutResult(msgspec.Struct, frozen=True):
    """What became of a rollout. The calls of its episode are complete."""

    rollout_id: str
    reward: float | None
    problem: str | None
    """Why it failed or has no reward, in words."""
    episode: Episode | None


class GroupOutcome(msgspec.Struct, frozen=True):
    """What became of the rollouts of a task."""

    group_id: str
    rollouts: tuple[RolloutResult, ...]


class AgentRunner(Protocol):
    """Runs the agent on tasks."""

    def submit(self, task: TuningTask, prompt_version: str) -> Future[GroupOutcome]:
        """Run a group of rollouts that are served with a prompt version, or with `none`."""
        ...


class RecordedRollouts(Protocol):
    """Reads earlier rollouts from the log."""

    def groups(self, ids: set[str]) -> dict[str, GroupOutcome]:
        """These groups, as far as the log has them."""
        ...

    def examples(self) -> list[Example]:
        """What rollouts of the alias said and earned before the tuning."""
        ...


def cost_of(outcome: GroupOutcome, prices: Prices | None) -> PromptCost:
    """What the calls of a group cost."""
    total = NOTHING
    for rollout in outcome.rollouts:
        for call in rollout.episode.calls if rollout.episode is not None else ():
            total = add_costs(total, _cost_of(call, prices))
    return total


def _cost_of(call: LlmCall, prices: Prices | None) -> PromptCost:
    tokens = tokens_of(call)
    price = price_of(prices, call.alias, call.backend) if prices is not None else None
    return PromptCost(
        calls=1,
        prompt_tokens=tokens.prompt or 0,
        completion_tokens=tokens.sampled or 0,
        money=None if price is None else price_tokens(tokens, price).high,
    )


def calls_of(rollout: RolloutResult, alias: str, role: str | None) -> list[LlmCall]:
    """The answered calls of a rollout to the alias, of one role or of all."""
    if rollout.episode is None:
        return []
    return [
        call
        for call in EpisodeView(rollout.episode).calls
        if call.alias == alias and role in (None, call.agent)
    ]


def example_of(rollout: RolloutResult, task: str, alias: str, role: str | None) -> Example | None:
    """The conversation of a rollout; None without a reward, if it cannot be shown, or if it is left
    out of training.
    """
    if rollout.episode is not None and any(map(is_left_out, rollout.episode.calls)):
        return None
    calls = calls_of(rollout, alias, role)
    messages = conversation_of(calls[-1]) if calls else None
    if messages is None or rollout.reward is None:
        return None
    return Example(rollout.rollout_id, task, rollout.reward, messages)


def sent_system_prompt(outcome: GroupOutcome, alias: str, role: str | None) -> str:
    """The system prompt that the agent sent; empty if it sent none."""
    calls = [call for rollout in outcome.rollouts for call in calls_of(rollout, alias, role)]
    return system_prompt(messages_of(calls[0])) if calls else ""
