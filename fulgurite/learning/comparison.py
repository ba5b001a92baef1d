"""Says what the credits of a group are compared with, and whether they differ.

A credit is compared with others of its kind. Under most rules it speaks of a whole episode, and is
compared with the rewards of the group's scored episodes. Under `step` and `discounted` it is a
return: what was paid before is no part of it. Compared with whole rewards, later actions would all
look worse than they are; so a return is compared with those of the same turn in the group's other
episodes (Greensmith et al. 2004, section 4: a baseline that depends on the state alone leaves the
gradient unbiased, and the closer it is to the expected return, the less it varies). The last turns,
which a single episode reaches, are compared together with the turn before them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from fulgurite.enums import FilterReason
from fulgurite.events import Action, EventStruct, Trajectory
from fulgurite.groups.credit import compares_turns
from fulgurite.groups.rewards import LARGEST_CREDIT, LARGEST_TOTAL, has_spread, is_bounded


class Credit(NamedTuple):
    """The credit of an action."""

    turn: int
    rollout_id: str
    value: float


class Comparison(EventStruct, frozen=True):
    """What a group's credits are compared with."""

    turns: Mapping[int, tuple[float, ...]]
    """By turn, the credits to compare with; empty: with the rewards of scored episodes."""
    teaches_nothing: FilterReason | None
    """Why no action of the group is worth a step: `no_baseline` or `no_signal`."""
    by_turn: bool = False
    """Whether its rule compares turns."""


def compare(rows: Sequence[Trajectory], rewards: Sequence[float]) -> Comparison:
    """How to compare a policy's actions in a group's rows; `rewards` are those of its scored
    episodes.
    """
    found = [
        Credit(turn, row.rollout_id, action.credit)
        for row in rows
        for action, turn in turns_in(row)
        if action.loss and is_comparable(row, action)
    ]
    by_turn = any(compares_turns(row.credit_rule) for row in rows)
    if len(rewards) < 2:
        return Comparison({}, FilterReason.no_baseline, by_turn)
    if not by_turn:
        differs = has_spread([fmean(rewards), *(credit.value for credit in found)])
        return Comparison({}, None if differs else FilterReason.no_signal)
    turns = peers_by_turn(found)
    if not turns:
        return Comparison({}, FilterReason.no_baseline, by_turn)
    differs = any(map(has_spread, turns.values()))
    return Comparison(turns, None if differs else FilterReason.no_signal, by_turn)


def turns_in(row: Trajectory) -> Iterator[tuple[Action, int]]:
    """Each action with its turn; in logs without turns, with its place in the row."""
    for place, action in enumerate(row.actions):
        yield action, place if action.turn is None else action.turn


def is_comparable(row: Trajectory, action: Action) -> bool:
    """Whether reward and credit are numbers that a trainer can compute with."""
    return (
        row.episode_reward is not None
        and is_bounded(row.episode_reward, LARGEST_TOTAL)
        and is_bounded(action.credit, LARGEST_CREDIT)
    )


def peers_by_turn(found: Iterable[Credit]) -> dict[int, tuple[float, ...]]:
    """By turn, the credits to compare with: of two episodes at least. Empty if there are not so
    many.
    """
    classes: list[list[Credit]] = []
    alone: list[Credit] = []
    for _, of_turn in itertools.groupby(sorted(found, reverse=True), key=lambda one: one.turn):
        alone += of_turn
        if len({credit.rollout_id for credit in alone}) > 1:
            classes.append(alone)
            alone = []
    if classes:
        # Turns that one episode alone has go with their neighbours, the first ones with the next.
        classes[-1] += alone
    return {
        credit.turn: tuple(sorted(peer.value for peer in peers))
        for peers in classes
        for credit in peers
    }
