"""Trains one policy, on whatever workers the run has.

A batch is one or more mini-batches, an optimizer step each. A step either happens or changes
nothing. Rows come in any number and order. Not thread-safe; one per process.
"""

# verl, tensordict and torch.distributed are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from services.common.runtime import logs
from services.common.runtime.cpu import multiplies_bf16
from services.learner.backends.workers import start_workers
from services.learner.config import OptimizerConfig, RunConfig
from services.learner.drift import Drift, drift_sums
from services.learner.engine import cpu_platform
from services.learner.engine.attention import CHECKED, check_model
from services.learner.entropy import warn_of_low_entropy
from services.learner.errors import (
    ConfigInvalid,
    IncompatibleModel,
    IncompatibleObjective,
    StepRefused,
)
from services.learner.plan import Plan, plan_batch
from services.learner.train_row import STEP_FAILURES, Trained, TrainRow, without_frames

_TRIAL_BOUNDS = {"fp32": 1e-3, "bf16": 0.15}
"""Largest difference of log-probabilities between a forest and its rows that is rounding."""

logger = logs.get()


class _Prepared(NamedTuple):
    """A mini-batch, ready for the workers."""

    rows: Sequence[TrainRow]
    plan: Plan
    fields: dict[str, Any]


class Trainer:
    """Trains a run's model. Raises ConfigInvalid, IncompatibleModel; and WorkersLost, from any
    method, where the run has several workers and one has failed.
    """

    def __init__(self, config: RunConfig) -> None:
        self.device = cpu_platform.select(config.engine.device)
        self.config = config = _resolved(config, self.device)
        # Imported after the platform is chosen: verl's engine asks for it while being imported.
        from services.learner.objective import Objective

        self._objective = Objective(config)
        self._by_forest = config.engine.layout == "forest"
        flex = config.engine.attention == "flex"
        check_model(config.policy.model, forest=self._by_forest, flex=flex)
        self._model_config: Any = AutoConfig.from_pretrained(config.policy.model)
        self._worker_count = config.engine.worker_count
        self.workers = start_workers(config, self.device)
        if self._by_forest:
            self._check_forest()

    def close(self) -> None:
        """End the workers."""
        self.workers.close()

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has."""
        return int(self._model_config.vocab_size)

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        """Make an optimizer step on each mini-batch, `algorithm.epochs` times.

        `step` counts batches from 1; the learning rate depends on it alone. If no step was made,
        and no weight was changed, raises StepRefused, IncompatibleObjective, or one of
        STEP_FAILURES.
        """
        began = time.monotonic()
        self._set_optimizer(step, self.config.optimizer)
        for rows in batch:
            self._refuse(rows)
        prepared = [self._prepared(rows) for rows in batch]
        decoupled = self.config.algorithm.correction == "decoupled"
        drift = self._correct(prepared) if decoupled else None
        steps: list[dict[str, float]] = []
        trained = [False] * len(batch)
        failures: dict[int, Exception] = {}
        refusal: StepRefused | None = None
        passes = itertools.product(range(self.config.algorithm.epochs), enumerate(prepared))
        for _, (index, mini_batch) in passes:
            try:
                steps.append(self._step(mini_batch))
                trained[index] = True
            except STEP_FAILURES as error:
                logger.debug("a step failed", exc_info=error)
                failures[index] = without_frames(error)
            except StepRefused as error:
                refusal = error
                break
        if not steps:
            raise refusal or failures[0]
        metrics = _means(steps)
        metrics |= {
            **(drift.metrics() if drift is not None else {}),
            "lr": self.config.optimizer.lr_at(step),
            "optimizer_steps": float(len(steps)),
            "tokens/computed": sum(
                step["forest_tokens" if self._by_forest else "row_tokens"] for step in steps
            ),
            "train_seconds": time.monotonic() - began,
        }
        warn_of_low_entropy(metrics["entropy"], self.config.algorithm)
        return Trained(metrics, tuple(trained), failures, refusal)

    def _set_optimizer(self, step: int, optimizer: OptimizerConfig) -> None:
        """Set what the run says: a checkpoint brings back what it was saved with."""
        lr = optimizer.lr_at(step)
        if lr == 0:
            logger.warning(
                "the learning rate of a step is 0, which changes no weight: raise "
                "optimizer.decay_steps, or set optimizer.min_lr",
                step=step,
                decay_steps=optimizer.decay_steps,
            )
        self.workers.set_optimizer(lr, optimizer.betas, optimizer.eps, optimizer.weight_decay)

    def _prepared(self, rows: Sequence[TrainRow]) -> _Prepared:
        prepared = self._planned(rows)
        if self.config.algorithm.kl:
            prepared.fields["ref_log_probs"] = self._infer(self.workers.infer_reference, prepared)
        return prepared

    def _planned(self, rows: Sequence[TrainRow]) -> _Prepared:
        plan = plan_batch(rows, self.config.engine.micro_batch_tokens, self._worker_count)
        return _Prepared(rows, plan, _fields(plan.rows))

    def _correct(self, batch: Sequence[_Prepared]) -> Drift:
        """Compute the old log-probabilities of a batch, and the weights between engine and trainer.

        Raises PolicyDrift, StepNotFinite.
        """
        from services.learner.correction import correction_weights

        sums: defaultdict[str, float] = defaultdict(float)
        for mini_batch in batch:
            fields = mini_batch.fields
            old = self._infer(self.workers.infer_batch, mini_batch)
            padded, behaviour = _padded(old), _padded(fields["behaviour_logprobs"])
            mask = _padded([row.float() for row in fields["loss_mask"]])
            found = drift_sums(padded, behaviour, mask.bool(), _padded(fields["ages"]))
            for name, value in found.items():
                sums[name] += value
            weights = correction_weights(padded - behaviour, mask, self.config.algorithm)
            fields["old_log_probs"] = old
            fields["rollout_is_weights"] = [
                row[: len(values)] for row, values in zip(weights, old, strict=True)
            ]
        drift = Drift(sums)
        drift.check(self.config.drift)
        return drift

    def _step(self, mini_batch: _Prepared) -> dict[str, float]:
        metrics, sums = self._run(mini_batch, self._objective)
        return metrics | self._objective.metrics(sums) | Drift(sums).metrics()

    def fit(self, rows: Sequence[TrainRow], step: int, lr: float | None = None) -> dict[str, float]:
        """Make an optimizer step that makes trained tokens likelier, by their weights; those with a
        negative weight less likely.

        `step` counts from 1, for the schedule. `lr`: in the place of the run's. Raises
        StepNotFinite; then no weight was changed.
        """
        from services.learner.likelihood import weighted_sft_loss

        optimizer = self.config.optimizer
        optimizer = optimizer if lr is None else optimizer.model_copy(update={"lr": lr})
        self._set_optimizer(step, optimizer)
        metrics, _ = self._run(self._planned(rows), weighted_sft_loss)
        return metrics | {"lr": optimizer.lr_at(step)}

    def _run(
        self, mini_batch: _Prepared, loss: Callable[..., Any]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Have the workers make a step by a loss, in verl's form; returns metrics, and the sums
        that the loss returned.
        """
        self.workers.set_loss_fn(loss)
        result = self.workers.train_batch(
            self._batch(
                mini_batch,
                calculate_entropy=loss is self._objective,
                batch_rows=len(mini_batch.rows),
            )
        )
        metrics = _metrics_of(result)
        if "error" in metrics:
            raise metrics["error"]
        plan = mini_batch.plan
        return {
            "loss": float(metrics["loss"]),
            "grad_norm": float(metrics["grad_norm"]),
            "forest_tokens": float(plan.forest_tokens),
            "row_tokens": float(sum(len(row.token_ids) for row in mini_batch.rows)),
            "micro_batches": float(len(plan.bins)),
        }, metrics["sums"][0]

    def logprobs(self, token_ids: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float32]:
        """Log-probabilities (T-1,) of each token but the first, at temperature 1."""
        tokens = np.asarray(token_ids, dtype=np.int32)
        zeros, ones = np.zeros(len(tokens), np.float32), np.ones(len(tokens), np.float32)
        row = TrainRow(tokens, np.arange(len(tokens)) > 0, zeros, zeros, zeros, ones)
        return self.row_logprobs([row])[0][1:]

    def row_logprobs(self, rows: Sequence[TrainRow]) -> list[NDArray[np.float32]]:
        """Log-probabilities (T,) of each row's trained tokens, at their temperatures; else 0."""
        return self._row_logprobs(rows, share_prefixes=self._by_forest)

    def export(self, path: Path) -> None:
        """Write the weights as safetensors.

        All of them under Hugging Face's names, in the type of `version_dtype`, which config.json
        beside them names; a tied head is left out. Of an adapter its own under PEFT's names, in the
        dtype that the trainer computes in, with its configuration beside them. Several workers
        write all weights in a file each, with Hugging Face's index, into the folder of `path`.
        """
        self.workers.export(path)

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and random state as safetensors."""
        self.workers.save(folder)

    def begin_to_save(self, folder: Path) -> None:
        """Begin what `save` does with what is there now, and return; one at a time."""
        self.workers.begin_to_save(folder)

    def is_saved(self, *, wait: bool = False) -> bool:
        """Whether the last `begin_to_save` has ended; `wait` for it. Raises what it raised."""
        return self.workers.is_saved(wait=wait)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises CheckpointForeign if it is of another model."""
        self.workers.load(folder)

    def _row_logprobs(
        self, rows: Sequence[TrainRow], *, share_prefixes: bool
    ) -> list[NDArray[np.float32]]:
        shifted = self._infer(
            self.workers.infer_batch, self._planned(rows), share_prefixes=share_prefixes
        )
        return [
            np.roll(values.numpy(), 1) * row.trained
            for values, row in zip(shifted, rows, strict=False)
        ]

    def _check_forest(self) -> None:
        """Raise IncompatibleModel if the model is not the same over a forest as row by row."""
        config = self._model_config
        if config.model_type in CHECKED:
            return
        rows = _trial_rows(config.vocab_size)
        forest, by_row = (
            np.concatenate(self._row_logprobs(rows, share_prefixes=shared))
            for shared in (True, False)
        )
        error = float(np.abs(forest - by_row).max())
        bound = _TRIAL_BOUNDS[self.config.engine.dtype]
        if not error <= bound:
            raise IncompatibleModel(
                f"{config.model_type} computes rows otherwise as a forest: log-probabilities "
                f"differ by up to {error:.3g}, at most {bound:g} is rounding; set engine.layout = "
                '"rows", which computes them one by one'
            )
        logger.info("forest and rows agree", model_type=config.model_type, error=error)

    def _refuse(self, rows: Sequence[TrainRow]) -> None:
        if not any(row.trained.any() for row in rows):
            raise IncompatibleObjective("the batch has no trained token; a step needs at least one")
        if not self._by_forest and any(
            len(np.unique(row.temperature[row.trained])) > 1 for row in rows
        ):
            raise IncompatibleObjective(
                'a row has several temperatures, and with engine.layout = "rows" verl computes '
                'a row at one: set it to "forest"'
            )

    def _batch(self, mini_batch: _Prepared, **options: Any) -> Any:
        from verl.utils import tensordict_utils as tu

        fields, plan = mini_batch.fields, mini_batch.plan
        order = plan.order
        tensors: dict[str, Any] = {
            name: _jagged([values[i] for i in order])
            for name, values in fields.items()
            if name != "temperature"
        }
        tensors["temperature"] = torch.tensor([fields["temperature"][i] for i in order])
        longest = max(len(row) for row in fields["input_ids"])
        shared = options.pop("share_prefixes", self._by_forest)
        return tu.get_tensordict(
            tensors,
            {
                "share_prefixes": shared,
                "use_remove_padding": False,
                "use_fused_kernels": False,
                "use_dynamic_bsz": not shared,
                "max_token_len_per_gpu": max(self.config.engine.micro_batch_tokens, longest),
                "micro_batch_size_per_gpu": len(plan.bins[0]),
                **options,
            },
        )

    def _infer(
        self, infer: Callable[[Any], Any], mini_batch: _Prepared, **options: Any
    ) -> list[torch.Tensor]:
        """Compute the log-probabilities of each row of the plan, in the order of its rows."""
        result = infer(self._batch(mini_batch, compute_loss=False, **options))
        in_bins = [row.detach().float().cpu() for row in result["log_probs"].unbind()]
        rows = dict(zip(mini_batch.plan.order, in_bins, strict=True))
        return [rows[i] for i in range(len(rows))]


def _metrics_of(result: Any) -> dict[str, Any]:
    """The metrics of a step, which all workers agree on."""
    from verl.utils import tensordict_utils as tu

    found = tu.get(result, "metrics")
    return cast("dict[str, Any]", found[0] if isinstance(found, list) else found)


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means over steps; what some have not, over those that have it."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: fmean(step[name] for step in steps if name in step) for name in names}


def _trial_rows(vocabulary: int) -> list[TrainRow]:
    """Rows that part at several places, for a model that nobody has tried as a forest."""
    chance = np.random.default_rng(0)
    stem = chance.integers(0, vocabulary, 24)
    rows: list[TrainRow] = []
    for shared in (24, 24, 12, 4):
        tokens = np.concatenate([stem[:shared], chance.integers(0, vocabulary, 8)])
        zeros = np.zeros(len(tokens), np.float32)
        rows.append(
            TrainRow(
                tokens.astype(np.int32), np.arange(len(tokens)) > 0, zeros, zeros, zeros, zeros + 1
            )
        )
    return rows


def _fields(rows: Sequence[TrainRow]) -> dict[str, Any]:
    """The batch's tensors row by row, in verl's layout: index t stands for token t+1."""
    behaviour = [_shifted(row.behaviour_logprobs) for row in rows]
    return {
        "input_ids": [torch.from_numpy(row.token_ids.astype(np.int64)) for row in rows],
        "position_ids": [torch.arange(len(row.token_ids)) for row in rows],
        "loss_mask": [_shifted(row.trained) for row in rows],
        "token_temperature": [_shifted(row.temperature, 1.0) for row in rows],
        "behaviour_logprobs": behaviour,
        "old_log_probs": behaviour,
        "advantages": [_shifted(row.advantages) for row in rows],
        "weights": [_shifted(row.weights) for row in rows],
        "ages": [
            torch.zeros(len(row.token_ids), dtype=torch.int32)
            if row.ages is None
            else _shifted(row.ages)
            for row in rows
        ],
        "rollout_is_weights": [torch.ones(len(row.token_ids)) for row in rows],
        "temperature": [
            float(row.temperature[row.trained][0]) if row.trained.any() else 1.0 for row in rows
        ],
    }


def _shifted(values: NDArray[Any], last: float = 0) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([values[1:], np.array([last], values.dtype)]))


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.to_padded_tensor(_jagged(rows), 0.0)


def _jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _resolved(config: RunConfig, device: str) -> RunConfig:
    """The run with what this device computes with. Raises ConfigInvalid."""
    engine = config.engine
    if engine.attention == "flex" and device == "cpu":
        raise ConfigInvalid(
            'engine.attention = "flex", but there is no GPU, and FlexAttention has no backward '
            'pass on a CPU; set it to "auto" or "dense"'
        )
    is_flex = device != "cpu" and engine.layout == "forest"
    found = {
        "dtype": "bf16" if device != "cpu" or multiplies_bf16() else "fp32",
        "attention": "flex" if is_flex else "dense",
    }
    chosen = {name: value for name, value in found.items() if getattr(engine, name) == "auto"}
    return config.model_copy(update={"engine": engine.model_copy(update=chosen)})
