"""Trackers are written through their own libraries, and read back with them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from services.cli.trackers import TRACKERS
from services.replay.errors import BadArgument

VERSIONS = [
    (1, 1_700_000_000_000, {"reward_mean": 0.25, "k3/age/16+": 0.5}),
    (2, 1_700_000_060_000, {"reward_mean": 0.75, "k3/age/16+": 0.25}),
]
CONFIG = {"optimizer": {"lr": 1e-5}, "policy": {"name": "writer"}}


def write(to: str, folder: Path, versions: list[tuple[int, int, dict[str, float]]]) -> None:
    run = TRACKERS[to](folder, "writer", "some-project", CONFIG)
    for step, time_ms, metrics in versions:
        run.log(step, time_ms, metrics)
    run.close()


def test_tensorboard_has_steps_times_and_values(tmp_path: Path) -> None:
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write("tensorboard", tmp_path, VERSIONS[:1])
    # As after a restart.
    write("tensorboard", tmp_path, VERSIONS[1:])
    found = accumulator.EventAccumulator(str(tmp_path / "writer"))
    found.Reload()
    assert [(one.step, one.wall_time, one.value) for one in found.Scalars("reward_mean")] == [
        (step, time_ms / 1000, metrics["reward_mean"]) for step, time_ms, metrics in VERSIONS
    ]
    assert len(found.Scalars("k3/age/16+")) == 2


def test_wandb_writes_a_run_that_a_restart_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    write("wandb", tmp_path, VERSIONS[:1])
    write("wandb", tmp_path, VERSIONS[1:])
    wandb.teardown()
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len({path.stem for path in files}) == 1, "one run"
    written = b"".join(path.read_bytes() for path in files)
    assert b"reward_mean" in written
    assert b"k3/age/16+" in written


def test_mlflow_has_steps_times_values_and_the_run_s_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write("mlflow", tmp_path, VERSIONS[:1])
    write("mlflow", tmp_path, VERSIONS[1:])
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("some-project")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["run.optimizer.lr"] == "1e-05"
    found = client.get_metric_history(run.info.run_id, "reward_mean")
    assert [(one.step, one.timestamp, one.value) for one in found] == [
        (step, time_ms, metrics["reward_mean"]) for step, time_ms, metrics in VERSIONS
    ]
    assert len(client.get_metric_history(run.info.run_id, "k3/age/16_")) == 2


def test_trackio_has_steps_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio: Any = pytest.importorskip("trackio")
    write("trackio", tmp_path, VERSIONS[:1])
    write("trackio", tmp_path, VERSIONS[1:])
    (run,) = trackio.Api().runs("some-project")
    assert run.name == "writer"
    storage: Any = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    found = [
        (one["step"], one["reward_mean"])
        for one in storage.get_logs("some-project", "writer")
        if "reward_mean" in one
    ]
    assert found == [(step, metrics["reward_mean"]) for step, _, metrics in VERSIONS]


@pytest.mark.parametrize(("to", "module"), [(to, to) for to in TRACKERS])
def test_a_library_that_is_not_installed_is_named(
    to: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [one for one in sys.modules if one.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [Nothing()])
    with pytest.raises(BadArgument, match=f"--to {to} needs the library {to}.*: pip install {to}"):
        TRACKERS[to](tmp_path, "writer", "some-project", {})


class Nothing:
    """Finds no module."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        return None
