"""What of a recording is trained offline: the newest revision of each group, the best episodes of it
or pairs that begin alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, LedgerTerm, Mode
from fulgurite.events import Action, GroupClosed, Tombstone, Trajectory
from fulgurite.learning.offline import (
    LeftOut,
    Pair,
    RecordedEpisode,
    RecordedGroup,
    RecordedRow,
    Recording,
    Span,
    Window,
    best_episodes,
    offline_entries,
    preference_pairs,
)
from fulgurite.tokens import pack_ids
from fulgurite.versions import Version

VERSION = Version("policy", 2, 5)


def row(member: int, reward: float | None, **changes: Any) -> Trajectory:
    """One row of one action behind two tokens of context."""
    action = Action(
        call_id=f"call-{member}",
        choice=0,
        start=2,
        end=4,
        reward=0.0,
        credit=0.0,
        loss=True,
        agent="",
        temperature=1.0,
    )
    made = Trajectory(
        event_id="",
        event_time=0,
        trajectory_id="",
        group_id="group",
        rollout_id=f"rollout-{member}",
        attempt=0,
        mode=Mode.train,
        policy="policy",
        episode_revision="",
        group_revision="first",
        row_index=0,
        rows_in_episode=1,
        group_size=2,
        group_members_scored=2,
        group_started_at=1_000,
        token_ids=pack_ids([1, 2, 10 + member, 3]),
        actions=(action,),
        episode_reward=reward,
        credit_rule="identical",
    )
    made = msgspec.structs.replace(made, **changes)
    return msgspec.structs.replace(
        made, event_id=f"{made.group_revision}-{made.rollout_id}-{made.row_index}"
    )


def with_action(made: Trajectory, **changes: Any) -> Trajectory:
    return msgspec.structs.replace(
        made, actions=(msgspec.structs.replace(made.actions[0], **changes),)
    )


def tombstone(member: int, reward: float | None = None) -> Tombstone:
    return Tombstone(
        event_id=f"stone-{member}",
        event_time=0,
        group_id="group",
        rollout_id=f"rollout-{member}",
        attempt=0,
        mode=Mode.train,
        policy="policy",
        group_revision="first",
        group_size=2,
        group_members_scored=1,
        group_started_at=1_000,
        reason=FilterReason.no_tokens,
        episode_reward=reward,
    )


def closed(rows: Sequence[Trajectory | Tombstone]) -> GroupClosed:
    return GroupClosed(
        event_id="closed",
        event_time=0,
        group_id=rows[0].group_id,
        mode=rows[0].mode,
        group_revision=rows[0].group_revision,
        row_ids=tuple(one.event_id for one in rows),
    )


def recorded(
    events: Iterable[Trajectory | Tombstone | GroupClosed], **window: Any
) -> tuple[tuple[RecordedGroup, ...], dict[LeftOut, int]]:
    recording = Recording(Window(policy="policy", **window))
    for event in events:
        recording.add(event)
    return recording.groups(), dict(recording.left_out)


def rewards(groups: Iterable[RecordedGroup]) -> list[float]:
    return [episode.reward for group in groups for episode in group.episodes]


def test_the_newest_complete_revision_of_a_group_counts() -> None:
    first = [row(0, 0.0), row(1, 1.0)]
    second = [row(0, 0.5, group_revision="second"), row(1, 1.0, group_revision="second")]
    begun = row(0, 0.7, group_revision="third")
    groups, left_out = recorded([*first, closed(first), *second, closed(second), begun])
    assert [group.group_id for group in groups] == ["group"]
    assert rewards(groups) == [0.5, 1.0]
    assert {episode.group_revision for group in groups for episode in group.episodes} == {"second"}
    assert left_out == {}


def test_a_group_that_is_not_completely_there_is_left_out_of_a_log_and_not_of_an_export() -> None:
    rows = [row(0, 0.0), row(1, 1.0)]
    # Retention removed the first row.
    assert recorded([rows[1], closed(rows)]) == ((), {LeftOut.not_closed: 1})
    assert recorded([closed(rows)]) == ((), {})
    groups, _ = recorded([rows[1]], closed_only=False)
    assert rewards(groups) == [1.0]
    groups, _ = recorded([*rows, closed(rows)], closed_only=False)
    assert rewards(groups) == [0.0, 1.0]


def test_rows_of_the_window_and_the_policy_count() -> None:
    def found(*events: Trajectory, **window: Any) -> list[float]:
        return rewards(recorded(events, closed_only=False, **window)[0])

    assert found(row(0, 1.0), since_ms=1_000, until_ms=1_001) == [1.0]
    assert found(row(0, 1.0), since_ms=1_001) == []
    assert found(row(0, 1.0), until_ms=1_000) == []
    live = row(0, 1.0, mode=Mode.live)
    assert found(live) == []
    assert found(live, modes=frozenset({Mode.live})) == [1.0]
    assert found(row(0, 1.0), row(1, 0.5, policy="another")) == [1.0]
    later = row(0, 0.25, group_id="another", group_started_at=900)
    assert found(row(0, 1.0), later) == [0.25, 1.0]


def test_rewards_of_members_without_rows_are_compared_with() -> None:
    (group,), left_out = recorded([row(0, 1.0), tombstone(1, 0.0)])
    assert (group.rewards, left_out) == ((1.0, 0.0), {})
    (group,), _ = recorded([row(0, 1.0), tombstone(1)])
    assert group.rewards == (1.0,)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (row(0, None), LeftOut.no_reward),
        (row(0, math.nan), LeftOut.no_reward),
        (row(0, 1e30), LeftOut.no_reward),
        (row(0, 1.0, token_ids=pack_ids([1] * 9)), LeftOut.oversized),
        (row(0, 1.0, actions=()), LeftOut.no_tokens),
        (with_action(row(0, 1.0), loss=False), LeftOut.no_tokens),
        (with_action(row(0, 1.0), mask=FilterReason.truncated), LeftOut.no_tokens),
        (with_action(row(0, 1.0), start=0), LeftOut.no_tokens),
        (with_action(row(0, 1.0), end=5), LeftOut.no_tokens),
        (with_action(row(0, 1.0), end=2), LeftOut.no_tokens),
        (with_action(row(0, 1.0), mask=FilterReason.untrainable_sampling), None),
        (with_action(row(0, 1.0), mask=FilterReason.unknown_version), None),
        (row(0, 1.0, token_ids=pack_ids([1] * 8)), None),
    ],
)
def test_what_cannot_be_trained_is_counted_by_reason(
    made: Trajectory, reason: LeftOut | None
) -> None:
    groups, left_out = recorded([made], closed_only=False, max_row_tokens=8)
    assert left_out == ({} if reason is None else {reason: 1})
    assert len(groups) == (reason is None)


def test_an_episode_has_its_rows_in_order_and_begins_with_the_first() -> None:
    second = row(0, 1.0, row_index=1, rows_in_episode=2, token_ids=pack_ids([9, 8, 7, 6]))
    (group,), _ = recorded([second, row(0, 1.0, rows_in_episode=2)], closed_only=False)
    (episode,) = group.episodes
    assert [one.token_ids for one in episode.rows] == [
        pack_ids([1, 2, 10, 3]),
        pack_ids([9, 8, 7, 6]),
    ]
    assert episode.context == pack_ids([1, 2])
    assert episode.actions == ("call-0#0", "call-0#0")
    empty = row(0, 1.0, rows_in_episode=2, actions=())
    (group,), _ = recorded([second, empty], closed_only=False)
    assert (group.episodes[0].context, len(group.episodes[0].rows)) == (b"", 1)


def episode(
    member: int, reward: float, *, begins: Sequence[int] = (1, 2), answer: int | None = None
) -> RecordedEpisode:
    """Two turns: an answer of one token, a result, another answer."""
    start = len(begins)
    tokens = [*begins, 10 + (member if answer is None else answer), 5, 6]
    spans = (
        Span(action=f"call-{member}-0#0", start=start, end=start + 1),
        Span(action=f"call-{member}-1#0", start=start + 2, end=start + 3),
    )
    return RecordedEpisode(
        group_id="group",
        group_revision="revision",
        rollout_id=f"rollout-{member}",
        reward=reward,
        context=pack_ids(begins),
        rows=(RecordedRow(token_ids=pack_ids(tokens), spans=spans),),
    )


def group(*episodes: RecordedEpisode, others: Sequence[float] = ()) -> RecordedGroup:
    return RecordedGroup(
        group_id="group",
        started_at=0,
        rewards=(*(one.reward for one in episodes), *others),
        episodes=episodes,
    )


@pytest.mark.parametrize(
    ("given_rewards", "others", "top_k", "min_reward", "chosen"),
    [
        ([0.0, 1.0, 0.5], [], 1, None, [1.0]),
        ([0.0, 1.0, 0.5], [], 9, None, [1.0, 0.5]),
        ([1.0, 1.0], [], 9, None, []),
        ([1.0], [], 1, None, []),
        ([1.0], [0.0], 1, None, [1.0]),
        ([1.0], [], 1, 1.0, [1.0]),
        ([0.0, 1.0, 0.5], [], 9, 0.5, [1.0, 0.5]),
        ([0.0, 1.0, 0.5], [], 9, 2.0, []),
        ([1.0, 1.0, 1.0], [], 2, 0.5, [1.0, 1.0]),
    ],
)
def test_the_best_episodes_of_a_group_are_trained(
    given_rewards: list[float],
    others: list[float],
    top_k: int,
    min_reward: float | None,
    chosen: list[float],
) -> None:
    whole = group(*(episode(n, reward) for n, reward in enumerate(given_rewards)), others=others)
    best, left_out = best_episodes([whole], top_k=top_k, min_reward=min_reward)
    assert [one.reward for one in best] == chosen
    assert left_out == len(given_rewards) - len(chosen)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.integers(1, 4), st.floats(0, 1))
def test_no_episode_that_is_trained_is_worse_than_one_that_is_not(
    given_rewards: list[float], top_k: int, margin: float
) -> None:
    whole = group(*(episode(n, reward) for n, reward in enumerate(given_rewards)))
    best, left_out = best_episodes([whole], top_k=top_k, min_reward=None)
    names = {one.rollout_id for one in best}
    rest = [one.reward for one in whole.episodes if one.rollout_id not in names]
    assert len(best) <= top_k
    assert left_out == len(rest)
    assert all(one.reward >= other for one in best for other in rest)

    pairs, left_out = preference_pairs([whole], margin=margin, pairs_per_group=top_k)
    assert all(pair.chosen.reward - pair.rejected.reward >= margin for pair in pairs)
    assert all(pair.chosen.reward > pair.rejected.reward for pair in pairs)
    paired = [one.rollout_id for pair in pairs for one in (pair.chosen, pair.rejected)]
    assert len(set(paired)) == len(paired)
    assert len(given_rewards) == left_out + len(paired)
    assert len(pairs) <= top_k


def names(pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    return [(pair.chosen.rollout_id[-1], pair.rejected.rollout_id[-1]) for pair in pairs]


def test_the_best_is_paired_with_the_worst_and_the_second_best_with_the_second_worst() -> None:
    whole = group(*(episode(n, reward) for n, reward in enumerate([0.0, 1.0, 0.2, 0.7, 0.5])))
    pairs, left_out = preference_pairs([whole], margin=0.0, pairs_per_group=9)
    assert (names(pairs), left_out) == ([("1", "0"), ("3", "2")], 1)
    pairs, left_out = preference_pairs([whole], margin=0.6, pairs_per_group=9)
    assert (names(pairs), left_out) == ([("1", "0")], 3)
    pairs, left_out = preference_pairs([whole], margin=0.0, pairs_per_group=1)
    assert (names(pairs), left_out) == ([("1", "0")], 3)


def test_only_episodes_that_begin_alike_and_go_on_differently_are_paired() -> None:
    whole = group(
        episode(0, 0.0),
        episode(1, 0.4),
        episode(2, 1.0, begins=(1, 3)),
        episode(3, 0.0, begins=(1, 3)),
        episode(4, 1.0, begins=(4,)),
    )
    pairs, left_out = preference_pairs([whole], margin=0.0, pairs_per_group=9)
    assert (names(pairs), left_out) == ([("2", "3"), ("1", "0")], 1)
    same = group(episode(0, 0.0, answer=1), episode(1, 1.0, answer=1))
    assert preference_pairs([same], margin=0.0, pairs_per_group=9) == ((), 2)


def test_the_first_action_alone_may_be_compared() -> None:
    masked = episode(2, 2.0)
    masked = msgspec.structs.replace(
        masked, rows=(msgspec.structs.replace(masked.rows[0], spans=masked.rows[0].spans[1:]),)
    )
    elsewhere = msgspec.structs.replace(episode(3, 3.0), context=pack_ids([7, 7]))
    whole = group(episode(0, 0.0), episode(1, 1.0), masked, elsewhere)
    (pair,), left_out = preference_pairs([whole], margin=0.0, pairs_per_group=9, first_action=True)
    assert left_out == 2
    assert pair.chosen.actions == ("call-1-0#0",)
    assert pair.chosen.rows[0].token_ids == pack_ids([1, 2, 11])
    assert pair.rejected.actions == ("call-0-0#0",)


def test_an_entry_names_the_version_and_each_action_once() -> None:
    chosen = [episode(0, 1.0), episode(1, 1.0), episode(0, 1.0)]
    elsewhere = msgspec.structs.replace(episode(2, 1.0), group_id="another")
    entries = offline_entries([*chosen, elsewhere], VERSION, 7)
    assert [entry.group_id for entry in entries] == ["group", "another"]
    assert entries[0].actions == ("call-0-0#0", "call-0-1#0", "call-1-0#0", "call-1-1#0")
    assert {(entry.term, entry.version, entry.source, entry.policy) for entry in entries} == {
        (LedgerTerm.trained, "policy@2.5", "offline", "policy")
    }
    again = offline_entries([*chosen, elsewhere], VERSION, 8)
    assert [entry.event_id for entry in again] == [entry.event_id for entry in entries]
    later = offline_entries(chosen, Version("policy", 2, 6), 8)
    assert {entry.event_id for entry in later}.isdisjoint(entry.event_id for entry in entries)
