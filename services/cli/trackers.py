"""Writes the metrics of versions to an experiment tracker, each through its own library."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from services.replay.errors import BadArgument


class Run(Protocol):
    """One policy in a tracker."""

    def log(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a version; they are kept when this returns."""
        ...

    def close(self) -> None:
        """End the run."""
        ...


class TensorBoardRun:
    """Event files in `DIR/POLICY`."""

    def __init__(self, folder: Path, policy: str, project: str, config: Mapping[str, Any]) -> None:
        module = _import("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._event = _import("tensorboard.compat.proto.event_pb2", "tensorboard").Event
        self._summary = _import("tensorboard.compat.proto.summary_pb2", "tensorboard").Summary
        self._writer = module.EventFileWriter(str(folder / policy))

    def log(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """See Run."""
        values = [
            self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()
        ]
        self._writer.add_event(
            self._event(wall_time=time_ms / 1000, step=step, summary=self._summary(value=values))
        )
        self._writer.flush()

    def close(self) -> None:
        """See Run."""
        self._writer.close()


class WandbRun:
    """A run of Weights & Biases, which a restart continues. `WANDB_*` say where it is kept."""

    def __init__(self, folder: Path, policy: str, project: str, config: Mapping[str, Any]) -> None:
        wandb = _import("wandb", "wandb")
        self._run = wandb.init(
            project=project,
            name=policy,
            id=hashlib.sha256(f"{project} {policy}".encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )
        # Its own steps only go up; after a return to an older checkpoint ours do not.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """See Run."""
        self._run.log({**metrics, "step": step, "_timestamp": time_ms / 1000})

    def close(self) -> None:
        """See Run."""
        self._run.finish()


class MlflowRun:
    """A run of MLflow, which a restart continues, at MLFLOW_TRACKING_URI or in `DIR/mlflow.db`."""

    def __init__(self, folder: Path, policy: str, project: str, config: Mapping[str, Any]) -> None:
        mlflow = _import("mlflow", "mlflow")
        self._metric = _import("mlflow.entities", "mlflow").Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = (
            self._client.create_experiment(project)
            if experiment is None
            else experiment.experiment_id
        )
        found = self._client.search_runs(
            [experiment_id], f"attributes.run_name = '{policy}'", max_results=1
        )
        self._id = (
            found[0].info.run_id
            if found
            else self._client.create_run(experiment_id, run_name=policy).info.run_id
        )
        for name, value in _flat(config).items():
            self._client.set_tag(self._id, f"run.{name}", str(value))

    def log(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """See Run."""
        # Names may have letters, digits, and `_-. /`, and no colon on some systems.
        made = [
            self._metric(_mlflow_name(name), value, time_ms, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=made)

    def close(self) -> None:
        """See Run."""
        self._client.set_terminated(self._id)


class TrackioRun:
    """A run of trackio, which a restart continues, in `DIR` unless TRACKIO_DIR is set."""

    def __init__(self, folder: Path, policy: str, project: str, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
        trackio = _import("trackio", "trackio")
        self._run = trackio.init(
            project=project, name=policy, resume="allow", config=dict(config), embed=False
        )

    def log(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """See Run."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """See Run."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[[Path, str, str, Mapping[str, Any]], Run]] = {
    "tensorboard": TensorBoardRun,
    "wandb": WandbRun,
    "mlflow": MlflowRun,
    "trackio": TrackioRun,
}
"""Makes the run of a policy from folder, policy, project and the run's keys."""


def _import(module: str, library: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != library:
            raise
        raise BadArgument(
            f"--to {library} needs the library {library}, which is not installed: "
            f"pip install {library}"
        ) from error


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys of a run as the file has them, `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _mlflow_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
