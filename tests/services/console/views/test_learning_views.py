"""Rewards and Versions: what they say of rows of the index."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.console.pages.blocks import Button, Buttons, Chart, Notice, Table
from services.console.pages.views import rewards, versions
from tests.services.console.views.memory_index import (
    NOW,
    MemoryIndex,
    asked,
    minutes_ago,
    only,
    texts,
)


@pytest.fixture
def index() -> MemoryIndex:
    return MemoryIndex()


def add_rollout(index: MemoryIndex, name: str, **values: object) -> None:
    row = {
        "rollout_id": name,
        "group_id": "g",
        "mode": "train",
        "policy": "policy",
        "version": "policy@1.1",
        "began_at": NOW,
        "outcome": "finished",
        "attempt": 0,
        "answer": f"said by {name}",
    }
    index.add("rollouts", **(row | values))


def add_reward(index: MemoryIndex, rollout: str, value: float | None, name: str = "right") -> None:
    index.add(
        "rewards",
        event_id=f"{rollout} {name}",
        event_time=minutes_ago(5),
        rollout_id=rollout,
        group_id="g",
        name=name,
        value=value,
        final=True,
        source="rest",
        error=None if value is not None else "ZeroDivisionError: <b>division</b> by zero",
    )


def test_without_rewards_it_says_how_they_are_given(index: MemoryIndex) -> None:
    (notice,) = only(rewards.content(asked(index, "/rewards")), Notice)
    assert "reward-worker" in notice.commands[0]


def test_rewards_are_counted_drawn_and_their_errors_are_text(index: MemoryIndex) -> None:
    for number in range(4):
        add_rollout(index, f"r{number}")
        add_reward(index, f"r{number}", number / 4)
    add_rollout(index, "r9")
    add_reward(index, "r9", None)
    blocks = rewards.content(asked(index, "/rewards"))
    named, errors = only(blocks, Table)
    (row,) = texts(named.rows)
    assert row[:4] == ["right", "5", "1 (20.0 %)", "0.375"]
    (chart,) = only(blocks, Chart)
    assert chart.title == "Distribution of right"
    assert (chart.x.label, chart.y.label) == ("reward", "rollouts or actions")
    (series,) = chart.series
    assert len(series.points) == rewards.BINS
    assert sum(count or 0 for _, count in series.points) == 4
    assert texts(errors.rows)[0][:3] == ["right", "ZeroDivisionError: <b>division</b> by zero", "1"]
    assert errors.rows[0][5].address == "/timeline?rollout=r9"


def test_each_bin_of_a_narrow_range_has_its_own_name() -> None:
    bins = rewards.histogram(0.0, 0.05, {0: 1, rewards.BINS - 1: 1})
    assert len({name for name, _ in bins}) == rewards.BINS
    assert (bins[0][1], bins[-1][1]) == (1.0, 1.0)


def test_a_reward_that_always_says_the_same_stands_out(index: MemoryIndex) -> None:
    for number in range(2):
        add_rollout(index, f"r{number}")
        add_reward(index, f"r{number}", 1.0)
    blocks = rewards.content(asked(index, "/rewards"))
    assert only(blocks, Table)[0].rows[0][4].tone == "warning"
    assert only(blocks, Chart)[0].series[0].points == (("1.00", 2.0),)


def test_two_rewards_that_contradict_come_with_the_rollouts_where_they_do(
    index: MemoryIndex,
) -> None:
    for number in range(3):
        add_rollout(index, f"r{number}")
        add_reward(index, f"r{number}", number / 2)
        add_reward(index, f"r{number}", 1 - number / 2, "short")
    blocks = rewards.content(asked(index, "/rewards"))
    pairs = only(blocks, Table)[2]
    assert texts(pairs.rows) == [["right and short", "3", "−1.00", "0.667"]]
    assert pairs.rows[0][0].address == "/rewards?pair=right%7Cshort"
    chosen = rewards.content(asked(index, "/rewards", pair="right|short"))
    apart = only(chosen, Table)[3]
    assert {row[0] for row in texts(apart.rows)[:2]} == {"r0", "r2"}
    assert texts(apart.rows)[0][4].startswith("said by")


def test_filters_of_the_address_hold(index: MemoryIndex) -> None:
    add_rollout(index, "r1", run_id="run-1")
    add_reward(index, "r1", 1.0)
    add_rollout(index, "r2", mode="val")
    add_reward(index, "r2", 1.0, "other")
    for query, name in (({"run": "run-1"}, "right"), ({"mode": "val"}, "other")):
        blocks = rewards.content(asked(index, "/rewards", **query))
        assert [row[0] for row in texts(only(blocks, Table)[0].rows)] == [name]


def add_version(
    index: MemoryIndex, step: int, uri: str | None = None, policy: str = "policy"
) -> None:
    index.add(
        "updates",
        event_id=f"u{step}",
        event_time=minutes_ago(60 - step),
        policy=policy,
        kind="update",
        counts=True,
        epoch=1,
        step=step,
        version=f"{policy}@1.{step}",
        parent_version=f"{policy}@1.{step - 1}" if step > 1 else None,
        learner_id="learner",
        trained_actions=10 * step,
        artifact_uri=uri,
        metrics={"reward_mean": step / 10},
        offset=step,
    )


def test_without_a_version_it_says_what_the_learner_waits_for(index: MemoryIndex) -> None:
    (notice,) = only(versions.content(asked(index, "/versions")), Notice)
    assert notice.commands == ("fulgurite diagnose",)


def test_versions_come_with_scores_use_and_weights(index: MemoryIndex, tmp_path: Path) -> None:
    there = tmp_path / "policy" / "1.2" / "model.safetensors"
    there.parent.mkdir(parents=True)
    there.touch()
    # Without its file a version is pruned, also where its folder has stayed.
    (tmp_path / "policy" / "1.1").mkdir()
    add_version(index, 1, f"file://{tmp_path}/policy/1.1/model.safetensors")
    add_version(index, 2, there.as_uri())
    for number, (version, reward) in enumerate((("policy@1.1", 1.0), ("policy@1.2", 0.5))):
        add_rollout(
            index, f"v{number}", mode="val", version=version, versions=[version], reward=reward
        )
    index.add(
        "applied",
        policy="policy",
        backend="local",
        version="policy@1.2",
        outcome="applied",
        event_time=NOW,
    )
    blocks = versions.content(asked(index, "/versions"))
    (table,) = only(blocks, Table)
    newest, oldest = texts(table.rows)
    assert newest[:2] == ["policy@1.2", "58 min ago"]
    assert newest[2:8] == [
        "policy@1.1", "20", "0.500 (n = 1)", "–", "served by local", "there",
    ]  # fmt: skip
    assert (oldest[2], oldest[7]) == ("the base model", "pruned")
    assert [row[4].tone for row in table.rows] == ["plain", "good"], "the best held-out score"
    (chart,) = only(blocks, Chart)
    assert chart.series[0].points == (("1.1", 1.0), ("1.2", 0.5))


def test_each_policy_has_its_newest_versions_in_the_table(index: MemoryIndex) -> None:
    for policy in ("first", "second"):
        for step in range(1, 52):
            add_version(index, step, policy=policy)
    (table,) = only(versions.content(asked(index, "/versions")), Table)
    assert [row[0].text for row in table.rows] == [
        f"{policy}@1.{step}" for policy in ("first", "second") for step in range(51, 1, -1)
    ]


def test_a_chosen_version_can_be_pulled_promoted_tried_and_left(index: MemoryIndex) -> None:
    for step in (1, 2, 3):
        add_version(index, step)
    index.add("calls", call_id="c", alias="writer", policy="policy", outcome="success")
    blocks = versions.content(asked(index, "/versions", version="policy@1.2"))
    (notice,) = only(blocks, Notice)
    assert notice.commands[0] == "fulgurite policy pull policy@1.2 my-model"
    lines = {row[0]: row[1] for row in texts(only(blocks, Table)[0].rows)}
    assert lines["Trained from"] == "policy@1.1"
    assert lines["Versions trained from it"] == "policy@1.3"
    buttons: tuple[Button, ...] = only(blocks, Buttons)[0].items
    assert [one.action for one in buttons] == ["promote", "canary", "roll_back"]
    assert all(one.question.endswith(("?", ".")) for one in buttons)
    assert buttons[0].arguments == (("version", "policy@1.2"),)
    assert buttons[2].arguments == (("policy", "policy"),)
    assert buttons[0].fields[0].choices == (("writer", "writer"),)
    unknown = versions.content(asked(index, "/versions", version="policy@9.9"))
    assert "never published" in only(unknown, Notice)[0].text


def test_weights_that_this_machine_cannot_see_are_elsewhere() -> None:
    assert versions.weights_state(None) == "elsewhere"
    assert versions.weights_state("s3://bucket/policy/1.1/model.safetensors") == "elsewhere"
    assert versions.weights_state("file:///nowhere/policy/1.1/model.safetensors") == "elsewhere"
