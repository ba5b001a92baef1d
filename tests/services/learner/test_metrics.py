"""The metrics of an update: every one has a documented name, and phases add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fulgurite.events import PolicyUpdate
from services.common.runtime import metrics
from services.learner.drift import AGE_CLASSES, Drift, drift_sums
from services.learner.metrics import METRICS, Stopwatch, meaning_of
from tests.services.learner.test_learner import PolicyLogInMemory, Trainer, learner_of, rows_of


def updates_of(log: PolicyLogInMemory) -> list[PolicyUpdate]:
    return [event for event in log.published if isinstance(event, PolicyUpdate)]


def test_every_metric_of_an_update_is_documented(tmp_path: Path) -> None:
    events = [*rows_of(1, [1.0, 0.0]), *rows_of(2, [1.0, 1.0]), *rows_of(3, [1.0, 0.0])]
    learner, log = learner_of(tmp_path, Trainer(), events)
    learner.run()
    first, second = updates_of(log)
    unknown = [name for name in second.metrics if meaning_of(name) is None]
    assert unknown == []
    # The first step's checkpoint is written after its update, and told with the next.
    assert "seconds/checkpoint" not in first.metrics
    assert "seconds/checkpoint" in second.metrics
    assert {"seconds/read", "seconds/prepare", "seconds/train", "seconds/export"} <= set(
        first.metrics
    )


def test_groups_without_signal_are_told_of_with_the_next_update(tmp_path: Path) -> None:
    events = [*rows_of(1, [1.0, 1.0]), *rows_of(2, [1.0, 0.0])]
    learner, log = learner_of(tmp_path, Trainer(), events)
    learner.run()
    (update,) = updates_of(log)
    assert (update.metrics["groups"], update.metrics["share_without_signal"]) == (2, 0.5)
    assert update.metrics["actions/filtered/no_signal"] == 2


@pytest.mark.parametrize(
    "name", ["reward/agent/a/b", "ess/age/16+", "drop_rate/length_decile_10", "lr"]
)
def test_names_in_metrics_are_documented_by_their_pattern(name: str) -> None:
    assert meaning_of(name)


@pytest.mark.parametrize("name", ["reward/agent/", "lrx", "reward", "LR"])
def test_what_is_no_metric_has_no_meaning(name: str) -> None:
    assert meaning_of(name) is None


def test_drift_is_told_by_age() -> None:
    ages = torch.tensor([[0, 1, 3, 4, 15, 99]], dtype=torch.int32)
    engine = torch.zeros(1, 6)
    trainer = torch.tensor([[0.0, 0.5, 0, 0, 0, 1.0]])
    found = Drift(drift_sums(trainer, engine, torch.ones(1, 6).bool(), ages)).metrics()
    assert {name for name in found if name.startswith("k3/age/")} == {
        f"k3/age/{age}" for age in AGE_CLASSES
    }
    assert found["k3/age/0"] == 0
    assert found["k3/age/16+"] == pytest.approx(torch.tensor(1.0).exp().item() - 2)
    assert found["k3"] == pytest.approx(
        sum(value for name, value in found.items() if name.startswith("k3/age/")) / 6
    )
    assert all(meaning_of(name) for name in found)


def test_untrained_tokens_are_no_part_of_the_drift() -> None:
    zeros = torch.zeros(1, 2)
    mask = torch.tensor([[True, False]])
    assert Drift(drift_sums(zeros + 1, zeros, mask, torch.zeros(1, 2).int())).tokens == 1


def test_a_stopwatch_begins_anew_when_it_was_asked() -> None:
    watch = Stopwatch()
    with watch.phase("train"):
        pass
    watch.add("train", 2.0)
    assert watch.metrics()["seconds/train"] >= 2
    assert watch.metrics() == {}


def test_phases_are_documented() -> None:
    assert {"seconds/wait", "seconds/publish"} <= METRICS.keys()


def test_outcomes_of_batches_are_counted_from_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.runtime.metrics._values", {})
    learner_of(tmp_path, Trainer(), [])
    assert metrics.values()["fulgurite_learner_batches_total"] == {
        ("policy", "trained"): 0,
        ("policy", "refused"): 0,
    }


def test_the_metrics_port_shows_what_waits_and_the_newest_version(tmp_path: Path) -> None:
    batches = "fulgurite_learner_batches_total"
    before = dict(metrics.values().get(batches, {}))
    events = [*rows_of(1, [1.0, 0.0]), *rows_of(2, [1.0, 0.0])[:1]]
    learner, log = learner_of(tmp_path, Trainer(), events)
    learner.run()
    shown = metrics.values()
    assert shown["fulgurite_learner_groups"] == {
        ("policy", "incomplete"): 1,
        ("policy", "complete"): 0,
        ("policy", "ready"): 0,
    }
    assert shown["fulgurite_learner_step"] == {("policy",): 1}
    (update,) = updates_of(log)
    assert shown["fulgurite_learner_update"] == {
        ("policy", name): value for name, value in update.metrics.items()
    }
    trained = shown[batches]["policy", "trained"]
    assert trained == before.get(("policy", "trained"), 0) + 1
