"""What the metrics of settled groups say."""

from __future__ import annotations

import math

import msgspec
import pytest

from fulgurite.enums import FilterReason, PrefixBreak
from fulgurite.events import Tombstone, Trajectory
from fulgurite.failures import FailureKind
from fulgurite.learning.batch_metrics import MOST_NAMES, batch_metrics
from fulgurite.learning.batching import BatchRules, untrained
from tests.fulgurite.learning.test_batching import (
    ONE_GROUP,
    action,
    batcher_with,
    row,
    settled,
    stone,
)


def metrics_of(*events: Trajectory | Tombstone, rules: BatchRules = ONE_GROUP) -> dict[str, float]:
    return batch_metrics(settled(batcher_with(*events, rules=rules)))


def test_no_group_has_no_means() -> None:
    assert batch_metrics([]) == {
        "groups": 0,
        "groups_with_signal": 0,
        "episodes": 0,
        "actions/trained": 0,
        "tokens/trained": 0,
    }


def test_groups_without_signal_are_counted_with_the_others() -> None:
    rules = BatchRules(groups_per_step=1)
    found = metrics_of(
        row("g1", 0, 1.0), row("g1", 1, 0.0), row("g2", 0, 1.0), row("g2", 1, 1.0), rules=rules
    )
    assert (found["groups"], found["groups_with_signal"]) == (2, 1)
    assert found["share_without_signal"] == 0.5
    assert (found["reward_mean"], found["actions/filtered/no_signal"]) == (0.75, 2)
    assert (found["tokens/trained"], found["tokens/discarded/no_signal"]) == (4, 4)


def test_rewards_are_told_apart_by_component_agent_and_failure() -> None:
    by_writer = msgspec.structs.replace(action("w", credit=2.0), agent="writer")
    by_critic = msgspec.structs.replace(action("c", credit=0.5), agent="critic")
    found = metrics_of(
        msgspec.structs.replace(
            row("g1", 0, 3.0, actions=(by_writer, by_critic)), rewards={"style": 1.0, "answer": 2.0}
        ),
        msgspec.structs.replace(
            row("g1", 1, 1.0, actions=(msgspec.structs.replace(by_writer, call_id="w2"),)),
            rewards={"style": 0.0, "answer": math.inf},
            failure=FailureKind.tool_error,
        ),
    )
    assert found["reward/component/style"] == 0.5
    assert found["reward/component/answer"] == 2.0
    assert (found["reward/agent/writer"], found["reward/agent/critic"]) == (2.0, 3.0)
    assert (found["credit/agent/writer"], found["credit/agent/critic"]) == (2.0, 0.5)
    assert (found["reward/failure/none"], found["reward/failure/tool_error"]) == (3.0, 1.0)


def test_agents_that_invent_names_do_not_make_a_metric_each() -> None:
    many = tuple(
        msgspec.structs.replace(action(f"a{number}"), agent=f"agent {number}")
        for number in range(2 * MOST_NAMES)
    )
    nameless = action("nameless")
    found = metrics_of(row("g1", 0, 1.0, actions=(*many, nameless)), row("g1", 1, 0.0))
    assert sum(name.startswith("reward/agent/") for name in found) == MOST_NAMES


def test_what_is_not_trained_is_counted_by_why() -> None:
    old = action("old", version="policy@1.1")
    cut = msgspec.structs.replace(action("cut", 0), mask=FilterReason.truncated)
    found = metrics_of(row("g1", 0, 1.0, actions=(cut, old)), row("g1", 1, 0.0))
    assert found["actions/trained"] == 1
    assert found["actions/stale"] == 1
    assert found["actions/filtered/truncated"] == 1
    assert found["tokens/discarded/stale"] == 2
    assert found["tokens/discarded/truncated"] == 2


def test_a_tombstone_has_a_reward_and_no_rows() -> None:
    found = metrics_of(
        row("g1", 0, 1.0, size=3), row("g1", 1, 0.0, size=3), stone("g1", 2, 0.5, size=3)
    )
    assert (found["episodes"], found["rows_per_episode"], found["reward_mean"]) == (2, 1, 0.5)


def test_rows_that_break_their_prefix_are_counted_by_kind() -> None:
    broken = msgspec.structs.replace(
        row("g1", 0, 1.0, index=1, of=2), break_kind=PrefixBreak.template
    )
    found = metrics_of(row("g1", 0, 1.0, index=0, of=2), broken, row("g1", 1, 0.0))
    assert found["rows_per_episode"] == 1.5
    assert found["prefix_breaks/template"] == 1


def test_a_rate_of_drops_that_rises_with_the_length_is_seen() -> None:
    events: list[Trajectory | Tombstone] = []
    for member in range(10):
        long = msgspec.structs.replace(
            row("g1", member, float(member % 2), size=10), token_ids=bytes(4 * (4 + member))
        )
        if member >= 8:
            (only,) = long.actions
            late = msgspec.structs.replace(only, version="policy@1.1")
            long = msgspec.structs.replace(long, actions=(late,))
        events.append(long)
    found = metrics_of(*events)
    rates = [found[f"drop_rate/length_decile_{decile}"] for decile in range(1, 11)]
    assert rates == [0.0] * 8 + [1.0] * 2


def test_a_step_that_was_not_made_trains_nothing() -> None:
    groups = settled(batcher_with(row("g1", 0, 1.0), row("g1", 1, 0.0)))
    found = batch_metrics([untrained(group, FilterReason.not_finite) for group in groups])
    assert (found["groups_with_signal"], found["actions/trained"]) == (0, 0)
    assert found["actions/filtered/not_finite"] == 2


def test_a_group_whose_rows_are_dead_letters_has_no_outcomes() -> None:
    (group,) = settled(batcher_with(row("g1", 0, 1.0), row("g1", 1, 0.0)))
    found = batch_metrics([msgspec.structs.replace(group, episodes=(), outcomes={})])
    assert (found["actions/dead_lettered"], found["tokens/discarded/dead_lettered"]) == (2, 4)
    assert found["drop_rate/length_decile_1"] == 1


def test_the_age_of_an_action_is_that_of_its_version() -> None:
    (group,) = settled(
        batcher_with(
            row("g1", 0, 1.0, actions=(action("a", version="policy@1.7"),)), row("g1", 1, 0.0)
        )
    )
    ages = [
        trained.age for episode in group.episodes for one in episode.rows for trained in one.actions
    ]
    assert ages == pytest.approx([3, 0])
