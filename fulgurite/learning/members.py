"""What is known of a group's episodes, trained or not: what the metrics of a batch are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fulgurite.enums import PrefixBreak
from fulgurite.events import EventStruct, Tombstone, Trajectory
from fulgurite.failures import FailureKind
from fulgurite.ids import action_id
from fulgurite.tokens import token_count


class MemberAction(EventStruct, frozen=True, kw_only=True):
    """An action that carries loss."""

    action: str
    """`call_id#choice`; the group's `outcomes` has what became of it."""
    agent: str
    tokens: int
    credit: float


class Member(EventStruct, frozen=True, kw_only=True):
    """One episode of a group."""

    rollout_id: str
    reward: float | None
    rewards: Mapping[str, float] = {}
    """By name."""
    failure: FailureKind | None = None
    rows: int = 0
    """Rows of this policy; 0 for a tombstone."""
    tokens: int = 0
    """Of its longest row."""
    breaks: tuple[PrefixBreak, ...] = ()
    """Why each further row does not extend the one before."""
    actions: tuple[MemberAction, ...] = ()


def members_of(rows: Iterable[Trajectory], tombstones: Iterable[Tombstone]) -> tuple[Member, ...]:
    """The members of a group that have rows of one policy, or none at all, by rollout."""
    by_rollout: dict[str, list[Trajectory]] = {}
    for row in rows:
        by_rollout.setdefault(row.rollout_id, []).append(row)
    members = {rollout: _member(rollout, of_one) for rollout, of_one in by_rollout.items()}
    for stone in tombstones:
        members.setdefault(
            stone.rollout_id,
            Member(rollout_id=stone.rollout_id, reward=stone.episode_reward, failure=stone.failure),
        )
    return tuple(member for _, member in sorted(members.items()))


def _member(rollout_id: str, rows: Sequence[Trajectory]) -> Member:
    return Member(
        rollout_id=rollout_id,
        reward=rows[0].episode_reward,
        rewards=rows[0].rewards,
        failure=rows[0].failure,
        rows=len(rows),
        tokens=max(token_count(row.token_ids) for row in rows),
        breaks=tuple(row.break_kind for row in rows if row.break_kind is not None),
        actions=tuple(
            MemberAction(
                action=action_id(action.call_id, action.choice),
                agent=action.agent,
                tokens=action.end - action.start,
                credit=action.credit,
            )
            for row in rows
            for action in row.actions
            if action.loss
        ),
    )
