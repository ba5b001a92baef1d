"""Runs: its numbers, which are added up in SQL, are those of the core."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from fulgurite.learning.intervals import Estimate, estimate
from services.console.pages.blocks import Chart, Figures, Notice, Table
from services.console.pages.views import runs
from tests.services.console.views.memory_index import MemoryIndex, asked, minutes_ago, only

VERSIONS = ("policy@1.1", "policy@1.2")


@pytest.fixture
def index() -> MemoryIndex:
    return MemoryIndex()


def add_group(
    index: MemoryIndex,
    name: str,
    rewards: list[tuple[str, float | None]],
    began: int = 5,
    **values: object,
) -> None:
    """A group: for each rollout the version that answered it, and its reward."""
    for number, (version, reward) in enumerate(rewards):
        row = {
            "rollout_id": f"{name}-{number}",
            "group_id": name,
            "run_id": "run",
            "mode": "train",
            "policy": "policy",
            "version": version,
            "reward": reward,
            "began_at": minutes_ago(began),
            "outcome": "finished",
        }
        index.add("rollouts", **(row | values))


def charts(index: MemoryIndex) -> dict[str, Chart]:
    blocks = runs.content(asked(index, "/runs", run="run"))
    return {chart.title: chart for chart in only(blocks, Chart)}


def figures(index: MemoryIndex) -> dict[str, tuple[str, str]]:
    blocks = runs.content(asked(index, "/runs", run="run"))
    return {
        one.label: (one.value, one.note) for block in only(blocks, Figures) for one in block.items
    }


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_the_curve_is_the_estimate_of_the_core(index: MemoryIndex, binary: bool, size: int) -> None:
    chance = random.Random(22)
    groups: defaultdict[str, list[list[float]]] = defaultdict(list)
    for number in range(12):
        rewards = [
            float(chance.random() < 0.4) if binary else chance.gauss(0, 3) for _ in range(size)
        ]
        version = VERSIONS[number % 2]
        groups[version].append(rewards)
        add_group(index, f"g{number}", [(version, reward) for reward in rewards])
    (series,) = charts(index)["Reward by version"].series
    expected: dict[str, Estimate] = {}
    for version, found in groups.items():
        value = estimate(found)
        assert value is not None
        expected[version.partition("@")[2]] = value
    assert dict(series.points) == {
        name: pytest.approx(value.mean) for name, value in expected.items()
    }
    assert {name: (low, high) for name, low, high in series.band} == {
        name: (pytest.approx(value.low), pytest.approx(value.high))
        for name, value in expected.items()
    }


def test_a_group_that_two_versions_answered_counts_once(index: MemoryIndex) -> None:
    one, other = VERSIONS
    add_group(index, "mixed", [(one, 1.0), (other, 1.0), (other, 0.0)])
    add_group(index, "flat", [(other, 1.0), (other, 1.0)])
    assert figures(index)["Groups without signal"] == ("50.0 %", "1 of 2 groups that ended")
    assert charts(index)["Groups without signal"].series[0].points == (("1.1", 0.0), ("1.2", 100.0))


def test_newest_groups_without_signal_are_an_alarm_until_one_has_it(index: MemoryIndex) -> None:
    def alarms() -> list[str]:
        blocks = runs.content(asked(index, "/runs", run="run"))
        return [notice.text for notice in only(blocks, Notice) if notice.tone == "bad"]

    for number in range(8):
        add_group(index, f"g{number}", [(VERSIONS[0], 1.0)] * 2, began=30 - number)
        assert bool(alarms()) == (number == 7)
    assert "newest 8 groups" in alarms()[0]
    add_group(index, "signal", [(VERSIONS[0], 1.0), (VERSIONS[0], 0.5)], began=1)
    assert alarms() == []


def test_a_run_of_many_groups_is_not_cut(index: MemoryIndex) -> None:
    """What the page asks for grows with versions, not with groups."""
    for number in range(60):
        add_group(index, f"g{number}", [(VERSIONS[0], 1.0), (VERSIONS[0], 0.0)])
    counts: list[int] = []

    class Counting(MemoryIndex):
        def rows(self, sql: str, parameters: object = ()) -> list[dict[str, object]]:
            found = index.rows(sql, parameters)  # pyright: ignore[reportArgumentType]
            counts.append(len(found))
            return found

    runs.content(asked(Counting(), "/runs", run="run"))
    assert max(counts) <= 2


def test_a_run_that_the_address_names_is_shown_however_old_it_is(index: MemoryIndex) -> None:
    for number in range(52):
        add_group(
            index,
            f"group-{number}",
            [("policy@1.0", 1.0)],
            began=number + 1,
            run_id=f"run-{number}",
        )
    blocks = runs.content(asked(index, "/runs", run="run-51", **{"with": "run-0,run-50"}))
    assert not [one for one in only(blocks, Notice) if "not known" in one.text]
    assert "Reward by version" in {chart.title for chart in only(blocks, Chart)}
    compared = next(one for one in only(blocks, Chart) if "compared" in one.title)
    assert [series.name for series in compared.series] == ["run-51", "run-0", "run-50"]
    # Without a name, the newest.
    (table,) = only(runs.content(asked(index, "/runs")), Table)
    assert [row[0].text for row in table.rows] == [f"run-{number}" for number in range(50)]
    unknown = runs.content(asked(index, "/runs", run="run-99"))
    assert "'run-99' is not known" in only(unknown, Notice)[0].text
