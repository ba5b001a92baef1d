"""Group revisions are hashes of what is written; the newest whole one in the log counts."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import Input, stitch, supersede
from fulgurite.events import Episode, LedgerEntry
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import (
    ClosingRecord,
    Output,
    RevisionLog,
    group_closed,
    revision_of,
)
from fulgurite.groups.group_state import GroupState
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

GROUP = group_id(0)
DECLARED = make_declared(0, 2, expected=("reward",), weights={"style": 0.1, "length": 0.0})


def episode(index: int, *, late: bool = False) -> Episode:
    inputs: list[Input] = [DECLARED, make_call(0, index), make_status(0, index)]
    first = stitch(inputs)
    found = supersede(first, stitch([*inputs, make_call(0, index, 1)])) if late and first else first  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert found is not None
    return found


def closing(first: float = 1.0, *, late: bool = False) -> tuple[Output, ...]:
    """Of two members, one of them without a reward."""
    return close_group(
        GROUP, DECLARED.declaration, [episode(0, late=late), episode(1)], [make_reward(0, 0, first)]
    )


def test_what_changes_no_byte_is_the_same_revision() -> None:
    again = make_reward(0, 0, 1.0, at=4_000)
    provisional = make_reward(0, 0, 0.0, at=9_000, final=False)
    worthless = make_reward(0, 1, 7.0, name="other", at=9_000)
    for more in (
        [],
        [again],
        [provisional],
        [make_reward(0, 0, 1.0), again, provisional],
        [worthless],
    ):
        outputs = close_group(
            GROUP, DECLARED.declaration, [episode(1), episode(0)], [make_reward(0, 0, 1.0), *more]
        )
        assert outputs == closing()


def test_a_closing_has_the_revision_that_earlier_releases_gave_it() -> None:
    assert {output.group_revision for output in closing()} == {"b1v9xs88kay2t8gzba2rpv5wm6y2pqj8"}


def test_whatever_changes_one_is_another() -> None:
    silent = close_group(
        GROUP, DECLARED.declaration, [episode(0), episode(1)], [make_reward(0, 0, None)]
    )
    styled = [make_reward(0, 0, 1.0), make_reward(0, 0, 1.0, name="length")]
    named = close_group(GROUP, DECLARED.declaration, [episode(0), episode(1)], styled)
    made = [closing(), closing(2.0), closing(late=True), silent, named]
    assert len({revision_of(outputs) for outputs in made}) == len(made)
    assert all(len({output.group_revision for output in outputs}) == 1 for outputs in made)
    ids = [output.event_id for outputs in made for output in outputs]
    assert len(set(ids)) == len(ids)
    assert revision_of(()) is None


def closed(outputs: tuple[Output, ...]) -> tuple[ClosingRecord, ...]:
    """All that a closing writes."""
    last = group_closed(outputs, (), (), None)
    assert last is not None
    return (*outputs, last)


def written(*records: ClosingRecord) -> RevisionLog:
    found = RevisionLog()
    for record in records:
        found.add(record)
    return found


def ids(*records: ClosingRecord) -> set[str]:
    return {record.event_id for record in records}


def test_the_last_record_of_a_closing_names_what_it_was_made_of_and_what_it_wrote() -> None:
    episodes, rewards = (
        [episode(1), episode(0)],
        [make_reward(0, 0, 1.0), make_reward(0, 1, 7.0, name="other")],
    )
    outputs = close_group(GROUP, DECLARED.declaration, episodes, rewards)
    last = group_closed(outputs, episodes, rewards, "before")
    assert last is not None
    assert last == group_closed(outputs, episodes[::-1], rewards[::-1], "before")
    assert (last.group_id, last.group_revision, last.supersedes) == (
        GROUP,
        revision_of(outputs),
        "before",
    )
    assert last.episode_revisions == tuple(sorted(one.revision for one in episodes))
    assert last.reward_ids == tuple(sorted(one.event_id for one in rewards))
    assert (*last.entry_ids, *last.row_ids) == tuple(output.event_id for output in outputs)
    others = [
        group_closed(outputs, episodes[:1], rewards, "before"),
        group_closed(outputs, episodes, rewards[:1], "before"),
        group_closed(outputs, episodes, rewards, None),
        group_closed(closing(2.0), episodes, rewards, "before"),
    ]
    assert len({last.event_id, *(other.event_id for other in others if other)}) == 5
    assert group_closed((), episodes, rewards, None) is None


def test_a_revision_counts_once_it_is_whole() -> None:
    first, second = closed(closing()), closed(closing(2.0))
    assert (written().current, written().begun()) == (None, set())
    assert written(first[0]).current is None, "an entry alone is no row"
    half = written(*first[:2])
    assert (half.newest, half.current, half.begun()) == (
        None,
        first[0].group_revision,
        ids(*first[:2]),
    )
    whole = written(*first, *first)
    assert (whole.newest, whole.closed, whole.begun()) == (
        first[0].group_revision,
        first[0].group_revision,
        set(),
    )
    amending = written(*first, *second[:2])
    assert (amending.current, amending.begun()) == (first[0].group_revision, ids(*second[:2]))
    assert written(*first, *second).current == second[0].group_revision


def test_a_revision_whose_last_record_is_missing_is_whole_and_gets_that_record_alone() -> None:
    first, second = closing(), closing(2.0)
    assert (written(*first).newest, written(*first).standing, written(*first).begun()) == (
        first[0].group_revision,
        "",
        ids(*first),
    )
    assert written(*first, closed(first)[-1]).standing == first[0].group_revision
    found = written(*first, *second)
    assert (found.newest, found.closed, found.standing, found.begun()) == (
        second[0].group_revision,
        None,
        "",
        ids(*second),
    )
    assert written(*closed(first), *second).closed == first[0].group_revision


def test_the_last_record_tells_that_a_revision_is_whole_though_its_rows_were_not_read() -> None:
    first, second = closed(closing()), closed(closing(2.0))
    assert (written(first[-1]).newest, written(first[-1]).standing) == (
        first[0].group_revision,
        first[0].group_revision,
    )
    assert written(*first[1:3], second[-1]).standing == second[0].group_revision


def test_rewards_that_are_taken_back_and_given_again_lead_back_to_a_revision() -> None:
    first, second = closed(closing()), closed(closing(2.0))
    back = written(*first, *second, *first)
    assert (back.current, back.standing, back.begun()) == (
        first[0].group_revision,
        first[0].group_revision,
        set(),
    )
    half = written(*first, *second[:-2])
    assert (half.newest, half.standing) == (first[0].group_revision, ""), (
        "whatever is closed next has to be written"
    )
    assert (written(*second[:-2]).standing, written(*second).standing) == (
        None,
        second[0].group_revision,
    )
    begun = written(*second[:2], *first, second[2])
    assert (begun.newest, begun.begun()) == (first[0].group_revision, ids(second[0], second[2])), (
        "rows go together"
    )
    assert written(*second[:2], *first, second[2], second[1]).newest == second[0].group_revision


def test_an_entry_without_a_revision_is_passed_by() -> None:
    (entry, *_) = closing()
    assert isinstance(entry, LedgerEntry)
    assert written(msgspec.structs.replace(entry, group_revision=None)).begun() == set()


@given(st.permutations([0, 1, 2, 3, 4, 5]), st.lists(st.integers(0, 5), max_size=4))
def test_what_is_gathered_is_a_set(order: list[int], again: list[int]) -> None:
    events = [
        episode(0),
        episode(0, late=True),
        episode(1),
        make_reward(0, 0, 1.0),
        make_reward(0, 0, 0.5, at=9_000),
        make_reward(0, 1, 0.1, name="style"),
    ]
    gathered = GroupState()
    news = [gathered.add(events[number]) for number in (*order, *again)]
    assert not any(news[len(order) :])
    expected = close_group(GROUP, DECLARED.declaration, [events[1], events[2]], events[3:])  # type: ignore[list-item, arg-type] # pyright: ignore[reportArgumentType]
    outputs = gathered.close(GROUP, FailureRules())
    assert outputs == expected
    assert (
        gathered.closed(outputs, "before")
        == group_closed(
            outputs,
            [events[1], events[2]],  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
            events[3:],  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
            "before",
        )
    )


def test_an_episode_with_less_than_is_known_changes_nothing() -> None:
    gathered = GroupState()
    whole = episode(0, late=True)
    assert gathered.add(whole)
    assert not gathered.add(episode(0))
    assert list(gathered.episodes.values()) == [whole]


def test_what_a_group_waits_for() -> None:
    gathered = GroupState()
    assert not gathered.is_complete(FailureRules())
    for event in (episode(0), episode(1), make_reward(0, 0, 1.0)):
        gathered.add(event)
        assert not gathered.is_complete(FailureRules())
    assert not gathered.awaits_episodes()
    gathered.add(make_reward(0, 1, 1.0))
    assert gathered.is_complete(FailureRules())
