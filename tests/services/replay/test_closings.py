"""A replay follows the log: each closing that the live rewarder wrote, to the byte, whatever it
knew at the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fulgurite.enums import FilterReason, Mode, StatusKind, TrainingUse
from fulgurite.episodes.exclusions import ExclusionRule
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Event,
    GroupClosed,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.ids import owned_group
from fulgurite.topics import AGENT_REWARDS, EPISODES, LLM_CALLS, TRAJECTORIES, Topic
from services.replay.closings import Changes, reclose
from services.replay.replay import Report, run
from services.replay.tenants import Tenants
from services.rewarder.closing_settings import ClosingSettings
from services.rewarder.settings import RewarderSettings
from tests.services.replay.memory_log import CODEC, LiveProcessors, MemoryLog
from tests.synthetic import group_id, make_call, make_declared, make_group, make_reward, make_status

Made = LlmCall | AgentStatus | AgentReward
NOTHING = Changes()


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.rows: list[Event] = []

    def put(self, partition: int, rows: Sequence[Event]) -> None:
        self.rows.extend(rows)
        self.values.extend(CODEC.encode(row) for row in rows)

    def close(self) -> None:
        """Nothing to finish."""


def replayed(log: MemoryLog, changes: Changes = NOTHING) -> tuple[Kept, Report]:
    sink = Kept()
    return sink, run(
        log.groups(), sink, source=log, codec=CODEC, changes=changes, settings=ClosingSettings()
    )


def live_values(log: MemoryLog) -> list[bytes]:
    return [raw.value for partition in range(8) for raw in log.read((TRAJECTORIES,), partition)]


def closings(log: MemoryLog) -> list[GroupClosed]:
    """In the order of the log."""
    return [
        event for event in map(CODEC.decode, live_values(log)) if isinstance(event, GroupClosed)
    ]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_closing_is_written_again_whatever_was_known_at_the_time(data: st.DataObject) -> None:
    events: list[Made] = list(make_group(1, size=2, turns=2))
    events += [
        make_call(1, 0, 7, at=1_030, prompt=[9]),
        make_reward(1, 1, 0.5, at=9_000),
        make_status(1, 0, at=1_900),
        make_reward(1, 0, 4.0, name="style", at=9_100),
    ]
    # The declaration comes first, as the gateway writes it; the rest in any order.
    shuffled = [events[0], *data.draw(st.permutations(events[1:]))]
    log = MemoryLog()
    live = LiveProcessors(log)
    closed = False
    for event in shuffled:
        live.take([event])
        if data.draw(st.integers(0, 3)) == 0 and log.groups()[0].episodes():
            live.close()
            closed = True
    live.close()
    sink, report = replayed(log)
    assert sink.values == live_values(log)
    assert (report.unmet, report.left_out, report.closed, closed or report.closed) == (
        [],
        [],
        1,
        True,
    )


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_a_release_without_last_records_wrote_is_written_again_where_it_closed_on_what_the_log_had(
    data: st.DataObject,
) -> None:
    """Before and after an upgrade, a closing after any record; record times are those of one clock."""
    events = list(make_group(1, size=2, turns=1))
    events += [
        make_reward(1, 1, 0.5, at=9_000),
        make_call(1, 0, 7, at=1_030, prompt=[9]),
        make_reward(1, 0, 0.0, at=9_500),
    ]
    log = MemoryLog(one_clock=True)
    live = LiveProcessors(log, of_before=True)
    upgrade = data.draw(st.integers(0, len(events)))
    for number, event in enumerate(events):
        live.of_before = number < upgrade
        live.take([event])
        if data.draw(st.booleans()) and log.groups()[0].episodes():
            live.close()
    live.close()
    sink, report = replayed(log)
    assert (sink.values, report.unmet) == (live_values(log), [])


@pytest.mark.parametrize(
    ("topics", "unmet"),
    [((AGENT_REWARDS,), [group_id(1)]), ((LLM_CALLS,), []), ((LLM_CALLS, EPISODES), [group_id(1)])],
)
def test_a_closing_of_what_the_log_no_longer_holds_is_reported(
    topics: Sequence[Topic], unmet: list[str]
) -> None:
    log = MemoryLog()
    live = LiveProcessors(log)
    live.take(list(make_group(1, size=2, turns=2)))
    live.close()
    for topic in topics:
        log.lose(topic)
    _, report = replayed(log)
    assert report.unmet == unmet


def test_a_closing_at_a_deadline_knows_no_later_reward_and_no_later_call() -> None:
    log = MemoryLog()
    live = LiveProcessors(log)
    live.take(
        [
            make_declared(1, 2),
            make_call(1, 0, 0),
            make_call(1, 1, 0),
            make_status(1, 0),
            make_status(1, 1),
            make_reward(1, 0),
        ]
    )
    live.close()
    live.take([make_reward(1, 1), make_call(1, 1, 5, prompt=[8, 8])])
    sink, report = replayed(log)
    assert sink.values == live_values(log)
    assert (report.rows, report.tombstones, report.unmet) == (1, 1, [])


def test_a_revision_that_the_log_came_back_to_is_the_last_again_and_what_came_twice_comes_once() -> (
    None
):
    log = MemoryLog()
    live = LiveProcessors(log)
    live.take(list(make_group(1, size=2, turns=1)))
    live.close()
    for value, at in ((7.0, 8_000), (1.0, 9_000)):
        live.take([make_reward(1, 0, value, at=at)])
        live.close()
    values = live_values(log)
    assert values[:2] == values[6:8] != values[3:5]
    assert [row.supersedes for row in closings(log)] == [
        None,
        *(row.group_revision for row in closings(log)[:2]),
    ]
    for row in [raw for partition in range(8) for raw in log.read((TRAJECTORIES,), partition)][-2:]:
        log.append_bytes(TRAJECTORIES, row.key, row.value, row.event_id, event_type=row.event_type)
    sink, report = replayed(log)
    assert (sink.values, report.unmet) == (values, [])


def test_what_cannot_be_computed_again_is_told() -> None:
    log = MemoryLog()
    live = LiveProcessors(log)
    live.take(list(make_group(1, size=2, turns=1)))
    live.close()
    log.append_bytes(TRAJECTORIES, group_id(1).encode(), b"of another rule", "unknown")
    _, report = replayed(log)
    assert report.unmet == [group_id(1)]


def test_groups_that_were_never_closed_are_closed_if_complete_or_due_and_else_left_open() -> None:
    log = MemoryLog()
    log.append(*make_group(1, size=2, turns=1))
    log.append(make_declared(2, 1, deadline=5_000), make_call(2, 0), make_status(2, 0))
    log.append(make_declared(3, 1, deadline=900_000), make_call(3, 0), make_status(3, 0))
    log.append(make_call(4, 0, mode=Mode.live))
    _, report = replayed(log)
    assert (report.closed, report.open) == (1, 3)
    # Somebody's clock, in the log, is past the second's deadline and grace: only partitions that
    # read so far know it.
    for number in range(40, 60):
        log.append(make_status(number, 0, StatusKind.heartbeat), at=40_000)
    _, report = replayed(log)
    assert (report.closed, report.tombstones) == (2, 1)


def test_a_rule_or_weights_change_credit_and_never_tokens() -> None:
    log = MemoryLog()
    log.append(*make_group(1, size=2, turns=3))
    before, _ = replayed(log)
    after, _ = replayed(log, Changes(credit="step", weights={"reward": 3.0}))
    pairs = list(zip(before.rows, after.rows, strict=True))
    assert [type(row) for row in after.rows] == [Trajectory, Trajectory, GroupClosed]
    pairs.pop()
    for old, new in pairs:
        assert isinstance(old, Trajectory)
        assert isinstance(new, Trajectory)
        assert old.token_ids == new.token_ids
        assert new.episode_reward == 3.0 * (old.episode_reward or 0.0)
        assert (old.credit_rule, new.credit_rule) == ("identical", "step")
    assert not {row.event_id for row in before.rows} & {row.event_id for row in after.rows}


def test_other_exclusions_change_only_the_groups_that_have_such_calls() -> None:
    log = MemoryLog()
    log.append(*make_group(1, size=2, turns=2), *make_group(2, size=2, turns=2))
    log.append(make_call(2, 1, 7, at=1_030, prompt=[9], agent="title"))
    kept, _ = replayed(log)
    none, _ = replayed(log, Changes(exclusions=()))
    assert none.values == kept.values
    excluding = Changes(exclusions=(ExclusionRule(agent="title"),))
    without, report = replayed(log, excluding)
    before, after = by_group(kept), by_group(without)
    assert after[group_id(1)] == before[group_id(1)]
    assert [row.token_ids for row in after[group_id(2)]] == [
        row.token_ids for row in before[group_id(2)] if row.actions[0].agent != "title"
    ]
    assert (len(before[group_id(2)]), report.rows, report.unmet) == (3, 4, [])


def by_group(sink: Kept) -> dict[str, list[Trajectory]]:
    found: dict[str, list[Trajectory]] = {}
    for row in sink.rows:
        if isinstance(row, Trajectory):
            found.setdefault(row.group_id, []).append(row)
    return found


def test_with_the_live_rules_excluded_calls_are_replayed_to_the_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FULGURITE_REWARDER_EXCLUDED_CALLS", '[{"agent": "title"}]')
    log = MemoryLog()
    live = LiveProcessors(log)
    live.take([*make_group(1, size=2, turns=2), make_call(1, 0, 7, prompt=[9], agent="title")])
    live.close()
    sink, report = replayed(log)
    assert (sink.values, report.unmet) == (live_values(log), [])
    monkeypatch.delenv("FULGURITE_REWARDER_EXCLUDED_CALLS")
    _, report = replayed(log)
    assert report.unmet == [group_id(1)]


def test_a_replay_without_a_person_leaves_all_of_their_episodes_out_of_training() -> None:
    log = MemoryLog()
    declared = make_declared(1, 3)
    subjects = ("su_1", "su_2", None)
    calls = [
        msgspec.structs.replace(make_call(1, index), subject=subject)
        for index, subject in enumerate(subjects)
    ]
    ends = [make_status(1, index) for index in range(3)]
    log.append(
        declared, *calls, *ends, *(make_reward(1, index, float(index)) for index in range(3))
    )
    sink, report = replayed(log, Changes(without=frozenset({"su_1"})))
    stones = [row for row in sink.rows if isinstance(row, Tombstone)]
    rows = [row for row in sink.rows if isinstance(row, Trajectory)]
    assert [(stone.rollout_id, stone.reason) for stone in stones] == [
        (calls[0].rollout_id, FilterReason.excluded)
    ]
    assert [(row.subject, row.group_members_scored) for row in rows] == [("su_2", 2), (None, 2)]
    assert (report.closed, report.unmet) == (1, [])


def test_a_replay_without_a_tenant_leaves_its_groups_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    log.append(*make_group(1, size=2), *make_group(2, size=2))
    tenants = Tenants(owners=frozenset({"owner"}), secrets=(b"one", b"two"))

    def own_the_second(tenants: Tenants, group: str) -> bool:
        return group == group_id(2)

    monkeypatch.setattr(Tenants, "own", own_the_second)
    sink, _ = replayed(log, Changes(tenants=tenants))
    kept = {row.group_id: row for row in sink.rows if isinstance(row, Trajectory)}
    stones = [row for row in sink.rows if isinstance(row, Tombstone)]
    assert set(kept) == {group_id(1)}
    assert {(stone.group_id, stone.reason) for stone in stones} == {
        (group_id(2), FilterReason.excluded)
    }


def test_a_tenants_groups_are_known_by_their_mark() -> None:
    group = owned_group(1_000, b"12345", "owner", b"two")
    tenants = Tenants(owners=frozenset({"owner"}), secrets=(b"one", b"two"))
    assert tenants.own(group)
    assert not tenants.own(group_id(1))
    assert not Tenants(owners=frozenset({"other"}), secrets=(b"two",)).own(group)
    assert not Tenants().own(group)


def test_live_traffic_is_replayed_to_the_byte_by_what_was_decided_of_its_calls() -> None:
    log = MemoryLog()
    live = LiveProcessors(log)
    uses = (TrainingUse.live, TrainingUse.by_mode, TrainingUse.live)
    calls = [make_call(1, 0, turn, mode=Mode.live, use=use) for turn, use in enumerate(uses)]
    live.take([*calls, make_status(1, 0, StatusKind.timed_out, mode=Mode.live)])
    live.close()
    live.take([make_reward(1, 0, 1.0, at=9_000)])
    live.close()
    live.take([make_call(1, 0, 3, mode=Mode.live, use=TrainingUse.excluded)])
    live.close()
    sink, report = replayed(log)
    assert (sink.values, report.unmet) == (live_values(log), [])
    assert [closed.mode for closed in closings(log)] == [Mode.train] * 3


@pytest.mark.parametrize("rules", ["[{}]", "title", '[{"system": "("}]'])
def test_rules_that_cannot_be_read_are_refused_with_their_settings_name(rules: str) -> None:
    with pytest.raises(ValidationError, match="excluded_calls"):
        ClosingSettings(excluded_calls=rules)


def test_undeclared_traffic_takes_a_rule_too() -> None:
    log = MemoryLog()
    silent = make_status(1, 0, StatusKind.timed_out, mode=Mode.live)
    log.append(make_call(1, 0, 0, mode=Mode.live), silent, make_reward(1, 0, 0.5))
    (group,) = log.groups()
    closing = reclose(
        group, group.episodes(), group.rewards, Changes(credit="step"), ClosingSettings(), 0
    )
    row, closed = closing.rows
    assert isinstance(row, Trajectory)
    assert isinstance(closed, GroupClosed)
    assert (closed.row_ids, closed.episode_revisions) == ((row.event_id,), (row.episode_revision,))
    assert (row.credit_rule, row.policy, row.group_size) == ("step", "policy", 1)


def test_records_that_cannot_be_used_are_left_out_and_counted() -> None:
    log = MemoryLog()
    log.append(*make_group(1, size=1, turns=1))
    log.append_bytes(LLM_CALLS, group_id(1).encode(), b"no frame")
    log.append_bytes(LLM_CALLS, b"\xff", b"no frame")
    declared = make_declared(5, 1)
    assert declared.declaration is not None
    nonsense = msgspec.structs.replace(declared.declaration, credit_rule="nonsense")
    log.append(
        msgspec.structs.replace(declared, declaration=nonsense),
        make_call(5, 0),
        make_status(5, 0),
        make_reward(5, 0),
    )
    _, report = replayed(log)
    assert (report.groups, report.closed, len(report.left_out)) == (1, 1, 2)
    assert any("nonsense" in line for line in report.left_out)


@pytest.mark.parametrize("name", ClosingSettings.model_fields)
def test_settings_are_the_rewarders(name: str) -> None:
    assert ClosingSettings.model_fields[name].default == RewarderSettings.model_fields[name].default
