"""Makes steps again that a checkpoint has no tensors of, from the batches that it has instead.

With `checkpoint.every_steps` above 1 a checkpoint between has the batch of every step since the
last tensors, as it was trained: advantages come from more than the topic holds, and the topic's
retention must not end a run. A resumed trainer makes these steps again, publishes nothing, and
compares the log-probabilities of each version's probe with those that were published. The keys that
make a step what it is must be those of then. A learner that is stopped leaves no such steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import msgspec
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from fulgurite.events import Probe
from fulgurite.tokens import FloatArray, unpack_ids, unpack_logprobs
from services.common.runtime import liveness, logs
from services.learner.config import RunConfig
from services.learner.errors import StepNotRepeated, TrainingError
from services.learner.train_row import Trained, TrainRow

Batch = Sequence[Sequence[TrainRow]]
"""The rows of each mini-batch."""

_ROUNDING = {"fp32": 1e-3, "bf16": 0.05, "auto": 0.05}
"""Largest mean difference of a probe's log-probabilities that is rounding."""

logger = logs.get()


class MakesSteps(Protocol):
    """The interface of `services.learner.trainer.Trainer` that steps are made again by."""

    def train(self, batch: Batch, step: int) -> Trained:
        """Make the optimizer steps of a batch."""
        ...

    def logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """Log-probabilities of each token but the first, shape (T-1,)."""
        ...


class Step(NamedTuple):
    """A step to make again."""

    version: str
    """What it made."""
    schedule_step: int
    """Its step in the schedule of the learning rate, counted from 1."""
    keys: dict[str, Any]
    """The run's keys that it was made with."""
    batch: list[list[TrainRow]]
    probe_ids: list[int]
    probe_logprobs: FloatArray


def write_step(
    path: Path, version: str, batch: Batch, probe: Probe, config: RunConfig, *, schedule_step: int
) -> None:
    """Write a step's batch, its keys, and the probe of its version, as safetensors.

    `schedule_step`: its step in the schedule of the learning rate.
    """
    rows = [row for mini_batch in batch for row in mini_batch]
    tensors: dict[str, Any] = {
        "rows_of_mini_batches": np.array([len(mini_batch) for mini_batch in batch], np.int64),
        "tokens_of_rows": np.array([len(row.token_ids) for row in rows], np.int64),
        "probe_ids": unpack_ids(probe.token_ids),
        "probe_logprobs": unpack_logprobs(probe.logprobs),
    }
    for field in msgspec.structs.fields(TrainRow):
        values = [getattr(row, field.name) for row in rows]
        if all(value is not None for value in values):
            tensors[f"row.{field.name}"] = np.concatenate(values)
    keys = msgspec.json.encode(_keys_of(config)).decode()
    metadata = {"version": version, "keys": keys, "schedule_step": str(schedule_step)}
    save_file(tensors, path, metadata=metadata)


def read_step(path: Path) -> Step:
    """Read what `write_step` wrote."""
    with cast("Any", safe_open(path, framework="numpy")) as file:
        metadata: dict[str, str] = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    columns = {
        name.removeprefix("row."): np.split(values, np.cumsum(tensors["tokens_of_rows"])[:-1])
        for name, values in tensors.items()
        if name.startswith("row.")
    }
    rows = iter(
        [
            TrainRow(**dict(zip(columns, values, strict=True)))
            for values in zip(*columns.values(), strict=True)
        ]
    )
    return Step(
        metadata["version"],
        # Earlier releases took the version's step, by which the file is named.
        int(metadata.get("schedule_step", path.stem)),
        msgspec.json.decode(metadata["keys"], type=dict[str, Any]),
        [[next(rows) for _ in range(count)] for count in tensors["rows_of_mini_batches"]],
        tensors["probe_ids"].tolist(),
        tensors["probe_logprobs"],
    )


def redo(trainer: MakesSteps, batches: Sequence[Path], config: RunConfig) -> None:
    """Make the steps again, the oldest first.

    Raises StepNotRepeated.
    """
    keys, rounding = _keys_of(config), _ROUNDING[config.engine.dtype]
    for path in batches:
        step = read_step(path)
        changed = [
            f"{key} = {value!r}, now {keys.get(key)!r}"
            for key, value in step.keys.items()
            if keys.get(key) != value
        ]
        if changed:
            raise StepNotRepeated(
                f"the step to {step.version}, which the checkpoint has no tensors of, was made "
                f"with {'; '.join(changed)}. Start the learner once with these keys as they were, "
                "and stop it with SIGTERM: it then leaves nothing to make again, and takes the "
                "new ones"
            )
        logger.info("making a step again, as it was", version=step.version)
        try:
            trainer.train(step.batch, step.schedule_step)
        except TrainingError as error:
            raise _not_repeated(step.version, f"fails now: {error}") from error
        found = np.asarray(trainer.logprobs(step.probe_ids), dtype=np.float32)
        difference = float(np.abs(found - step.probe_logprobs).mean())
        # `not <=`: NaN fails too.
        if not difference <= rounding:
            raise _not_repeated(
                step.version,
                f"gives log-probabilities that differ by {difference:.3g} on average from those "
                f"that were published; {rounding:g} is rounding",
            )
        liveness.beat()


def _not_repeated(version: str, what: str) -> StepNotRepeated:
    return StepNotRepeated(
        f"the step to {version}, which the checkpoint has no tensors of, {what}. The model, the "
        "machine or a library is not what it was: set back what changed, or train on under another "
        "policy.name"
    )


def _keys_of(config: RunConfig) -> dict[str, Any]:
    """The keys that make a step what it is, with their values."""
    tables: dict[str, Any] = config.model_dump(mode="json")
    engine = {name: tables["engine"][name] for name in ("dtype", "seed", "layout")}
    return dict(
        _flat(
            {
                "policy": {"weights": tables["policy"]["weights"]},
                "algorithm": tables["algorithm"],
                "optimizer": tables["optimizer"],
                "engine": engine,
            }
        )
    )


def _flat(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
