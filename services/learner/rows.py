"""Turns settled groups into training rows: advantages by the estimator, weights by episode.

torch is imported only when they are computed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from fulgurite.events import Tombstone, Trajectory
from fulgurite.ids import action_id
from fulgurite.learning.baselines import MovingAverages, pool
from fulgurite.learning.batching import BatchEpisode, BatchGroup, BatchRow, TrainedAction
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.learner.config import RunConfig
from services.learner.errors import IncompatibleObjective
from services.learner.train_row import TrainRow


def oddity(event: Trajectory | Tombstone, vocabulary: int) -> str | None:
    """Say how a row is malformed, or not of the model, which has tokens 0 to `vocabulary` - 1; None
    if the rewarder could have written it for that model.

    Rewards and credits are checked by `fulgurite.learning.batching`.
    """
    if isinstance(event, Tombstone):
        return None
    if len(event.token_ids) % 4:
        return f"token_ids has {len(event.token_ids)} bytes, not a multiple of 4"
    token_ids = unpack_ids(event.token_ids)
    strange = np.flatnonzero((token_ids < 0) | (token_ids >= vocabulary))
    if len(strange):
        return (
            f"token {strange[0]} is {token_ids[strange[0]]}, but the model has {vocabulary} "
            "tokens; another model generated the row"
        )
    for action in event.actions:
        name, length = action_id(action.call_id, action.choice), action.end - action.start
        if action.loss and action.start == 0:
            return f"action {name} begins with the first token, which nothing predicts"
        if not 0 <= action.start < action.end <= len(event.token_ids) // 4:
            return (
                f"action {name} is at {action.start} to {action.end} of "
                f"{len(event.token_ids) // 4} tokens"
            )
        if action.logprobs is not None and len(action.logprobs) != 4 * length:
            return (
                f"action {name} has {len(action.logprobs)} bytes of log-probabilities for {length} "
                "tokens"
            )
        if not (math.isfinite(action.temperature) and action.temperature >= 0):
            return f"action {name} has temperature {action.temperature}"
    return None


def without_actions(event: Trajectory | Tombstone) -> Trajectory | Tombstone:
    """The row without its actions: its group is complete, and nothing of the row is trained."""
    return (
        event
        if isinstance(event, Tombstone)
        else msgspec.structs.replace(event, token_ids=b"", actions=())
    )


def advantages(
    groups: Sequence[BatchGroup], config: RunConfig, averages: MovingAverages | None = None
) -> dict[str, float]:
    """The advantages of a batch's actions, by the algorithm of the run.

    Groups without a baseline of their own are compared with the batch, or with `averages`.
    """
    from services.learner.estimator import advantages_of

    algorithm = config.algorithm.algorithm
    pooled = pool(groups)
    found: dict[str, float] = {}
    compared: list[tuple[TrainedAction, Sequence[float]]] = []
    for group in groups:
        for action in _actions(group):
            if not group.is_lone:
                compared.append((action, group.turns.get(action.turn, group.rewards)))
            elif averages is None:
                compared.append((action, pooled.peers(group, action.turn)))
            else:
                found[action.action] = averages.of(group, action.turn).advantage(
                    action.credit, in_spreads=algorithm.divides_by_spread
                )
    values = advantages_of(
        [action.credit for action, _ in compared],
        [peers for _, peers in compared],
        [action.end - action.start for action, _ in compared],
        algorithm,
    )
    names = [action.action for action, _ in compared]
    return found | dict(zip(names, values, strict=True))


def _actions(group: BatchGroup) -> Iterator[TrainedAction]:
    for episode in group.episodes:
        for row in episode.rows:
            yield from row.actions


def mini_batches(
    groups: Sequence[BatchGroup], advantage_of: Mapping[str, float], config: RunConfig, count: int
) -> list[tuple[tuple[BatchGroup, ...], list[TrainRow]]]:
    """Cut a batch into at most so many mini-batches of whole groups, with the rows of every episode
    that has something to train.

    The weight of a token is 1 / (trained tokens of the episode x episodes in the mini-batch); where
    tokens weigh the same, 1 / (the longest row that is trained x episodes). Raises
    IncompatibleObjective if the run promises episodes of one row, and one has several.
    """
    if config.algorithm.single_row_episodes:
        _require_single_rows(groups)
    size = math.ceil(len(groups) / count)
    parts = [tuple(groups[start : start + size]) for start in range(0, len(groups), size)]
    return [(part, _rows(part, advantage_of, config)) for part in parts]


def _require_single_rows(groups: Sequence[BatchGroup]) -> None:
    for group in groups:
        for episode in group.episodes:
            if len(episode.rows) > 1:
                raise IncompatibleObjective(
                    f"algorithm.single_row_episodes is set, but rollout {episode.rollout_id} of "
                    f"group {group.group_id} has {len(episode.rows)} rows to train: unset it, and "
                    "take an algorithm that is not over whole sequences, such as `grpo`"
                )


def _rows(
    groups: Sequence[BatchGroup], advantage_of: Mapping[str, float], config: RunConfig
) -> list[TrainRow]:
    episodes = [episode for group in groups for episode in group.episodes]
    rows: list[TrainRow] = []
    for episode in episodes:
        length = (
            _trained_tokens(episode)
            if config.algorithm.algorithm.episodes_weigh_the_same
            else config.batch.max_row_tokens
        )
        weight = 1.0 / (length * len(episodes))
        rows += [
            _row(row, [advantage_of[action.action] for action in row.actions], weight)
            for row in episode.rows
        ]
    return rows


def permuted(groups: Sequence[BatchGroup], seed: int) -> tuple[BatchGroup, ...]:
    """Permute the rewards among the scored episodes of each group, for a control experiment.

    Then nothing can be learned. Every action's credit becomes its episode's new reward, as under
    the rule `identical`.
    """
    return tuple(_permute(group, random.Random(f"{seed} {group.group_id}")) for group in groups)


def _permute(group: BatchGroup, chance: random.Random) -> BatchGroup:
    rewards = list(group.rewards)
    chance.shuffle(rewards)
    # Episodes without rows get the rest of the rewards, so the baseline does not change.
    drawn = iter(rewards)
    return msgspec.structs.replace(
        group,
        turns={},
        rule_has_baseline=False,
        episodes=tuple(_paid(episode, next(drawn)) for episode in group.episodes),
    )


def _paid(episode: BatchEpisode, reward: float) -> BatchEpisode:
    rows = tuple(
        msgspec.structs.replace(
            row,
            actions=tuple(msgspec.structs.replace(action, credit=reward) for action in row.actions),
        )
        for row in episode.rows
    )
    return msgspec.structs.replace(episode, reward=reward, rows=rows)


def _trained_tokens(episode: BatchEpisode) -> int:
    return sum(action.end - action.start for row in episode.rows for action in row.actions)


def _row(row: BatchRow, advantages: Sequence[float], weight: float) -> TrainRow:
    token_ids = unpack_ids(row.token_ids)
    length = len(token_ids)
    made = TrainRow(
        token_ids=token_ids,
        trained=np.zeros(length, np.bool_),
        behaviour_logprobs=np.zeros(length, np.float32),
        advantages=np.zeros(length, np.float32),
        weights=np.zeros(length, np.float32),
        temperature=np.ones(length, np.float32),
        ages=(ages := np.zeros(length, np.int32)),
    )
    for action, advantage in zip(row.actions, advantages, strict=True):
        where = slice(action.start, action.end)
        made.trained[where] = True
        made.behaviour_logprobs[where] = unpack_logprobs(action.logprobs)
        made.advantages[where] = advantage
        made.weights[where] = weight
        made.temperature[where] = action.temperature
        ages[where] = action.age
    return made
