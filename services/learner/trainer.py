"""Trains one policy: verl's `TrainingWorker` on the forest engine, in this process, without Ray.

A batch is one or more mini-batches, an optimizer step each. A step either happens or changes
nothing. Rows come in any number and order. Micro-batches are cut
along the prefix forest, and filled up to equal numbers of rows with short prefixes of other rows,
which carry no loss and cost nothing. Not thread-safe; one per process.
"""

# verl, tensordict and torch.distributed are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import save_file

from fulgurite.trajectories.forest import build, partition
from services.common.runtime import logs
from services.common.runtime.cpu import multiplies_bf16
from services.learner import verl_cpu
from services.learner.adapter import write_config
from services.learner.attention import CHECKED, check_model
from services.learner.config import OptimizerConfig, RunConfig
from services.learner.drift import Drift
from services.learner.entropy import warn_of_low_entropy
from services.learner.errors import (
    ConfigInvalid,
    IncompatibleModel,
    IncompatibleObjective,
    StepRefused,
)
from services.learner.tensors import load_tensors, save_tensors
from services.learner.train_row import STEP_FAILURES, Trained, TrainRow, without_frames

_FILLER_TOKENS = 2
"""Tokens of a filler row: the shortest row with a token to predict."""

_TRIAL_BOUNDS = {"fp32": 1e-3, "bf16": 0.15}
"""Largest difference of log-probabilities between a forest and its rows that is rounding."""

logger = logs.get()


class _Prepared(NamedTuple):
    """A mini-batch, ready for the engine."""

    rows: Sequence[TrainRow]
    filled: list[TrainRow]
    bins: list[list[int]]
    fields: dict[str, Any]


class Trainer:
    """Trains a run's model. Raises ConfigInvalid, IncompatibleModel."""

    def __init__(self, config: RunConfig) -> None:
        _refuse_several_processes()
        self.device = verl_cpu.select(config.engine.device)
        self.config = config = _with_dtype(config, self.device)
        # Imported after the platform is chosen: verl's engine asks for it while being imported.
        from services.learner.objective import Objective

        self._objective = Objective(config)
        self._by_forest = config.engine.layout == "forest"
        check_model(config.policy.model, forest=self._by_forest)
        torch.manual_seed(config.engine.seed)
        self._worker = _worker(config, self.device)
        self._worker.engine.before_step = self._objective.check_step
        self._is_adapter = config.policy.weights.train == "lora"
        needs_reference = config.algorithm.kl > 0 and not self._is_adapter
        self._reference = _worker(config, self.device) if needs_reference else None
        if self._by_forest:
            self._check_forest()

    @property
    def module(self) -> torch.nn.Module:
        """The sharded model."""
        return cast("torch.nn.Module", self._worker.engine.module)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has."""
        return int(self._worker.model_config.hf_config.vocab_size)

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
        drift = drift or self._objective.drift
        metrics = {name: fmean(step[name] for step in steps) for name in steps[0]}
        metrics |= {
            **drift.metrics(),
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
        for group in self._worker.engine.optimizer.param_groups:
            group["lr"] = optimizer.lr_at(step)
            group["betas"] = optimizer.betas
            group["eps"] = optimizer.eps
            group["weight_decay"] = optimizer.weight_decay

    def _prepared(self, rows: Sequence[TrainRow]) -> _Prepared:
        bins, filled = _filled(rows, self.config.engine.micro_batch_tokens)
        fields = _fields(filled)
        if self.config.algorithm.kl:
            fields["ref_log_probs"] = self._reference_logprobs(fields, bins)
        return _Prepared(rows, filled, bins, fields)

    def _reference_logprobs(
        self, fields: dict[str, Any], bins: list[list[int]]
    ) -> list[torch.Tensor]:
        """Log-probabilities of the base model, which is the policy without its adapter."""
        if self._reference is not None:
            return self._infer(self._reference, fields, bins)
        return self._infer(self._worker, fields, bins, no_lora_adapter=True)

    def _correct(self, batch: Sequence[_Prepared]) -> Drift:
        """Compute the old log-probabilities of a batch, and the weights between engine and trainer.

        Raises PolicyDrift.
        """
        from services.learner.correction import correction_weights

        drift = Drift()
        for mini_batch in batch:
            fields = mini_batch.fields
            old = self._infer(self._worker, fields, mini_batch.bins)
            padded, behaviour = _padded(old), _padded(fields["behaviour_logprobs"])
            mask = _padded([row.float() for row in fields["loss_mask"]])
            drift.add(padded, behaviour, mask.bool(), _padded(fields["ages"]))
            weights = correction_weights(padded - behaviour, mask, self.config.algorithm)
            fields["old_log_probs"] = old
            fields["rollout_is_weights"] = [
                row[: len(values)] for row, values in zip(weights, old, strict=True)
            ]
        drift.check(self.config.drift)
        return drift

    def _step(self, mini_batch: _Prepared) -> dict[str, float]:
        self._objective.begin(rows=len(mini_batch.rows))
        metrics = self._run(mini_batch, self._objective)
        return metrics | self._objective.metrics()

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
        bins, filled = _filled(rows, self.config.engine.micro_batch_tokens)
        prepared = _Prepared(rows, filled, bins, _fields(filled))
        engine = self._worker.engine
        # The check is of the online objective. A loss that is not finite has no finite gradient,
        # which the engine refuses by itself.
        check, engine.before_step = engine.before_step, None
        try:
            metrics = self._run(prepared, weighted_sft_loss)
        finally:
            engine.before_step = check
        return metrics | {"lr": optimizer.lr_at(step)}

    def _run(self, mini_batch: _Prepared, loss: Any) -> dict[str, float]:
        """Have the engine make a step by a loss, in verl's form."""
        rows, filled, bins = mini_batch.rows, mini_batch.filled, mini_batch.bins
        self._worker.set_loss_fn(loss)
        result = self._worker.train_batch(
            self._batch(mini_batch.fields, bins, calculate_entropy=loss is self._objective)
        )
        from verl.utils import tensordict_utils as tu

        metrics = cast("dict[str, Any]", tu.get(result, "metrics"))
        return {
            "loss": float(metrics["loss"]),
            "grad_norm": float(metrics["grad_norm"]),
            "forest_tokens": float(
                sum(
                    len(build([filled[i].token_ids for i in b], [filled[i].trained for i in b]))
                    for b in bins
                )
            ),
            "row_tokens": float(sum(len(row.token_ids) for row in rows)),
            "micro_batches": float(len(bins)),
        }

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

        All of them under Hugging Face's names, in the base model's dtype; a tied head is left out.
        Of an adapter its own under PEFT's names, in the dtype that the trainer computes in, with
        its configuration beside them.
        """
        engine = self._worker.engine
        parameters, _ = engine.get_per_tensor_param(base_sync_done=self._is_adapter)
        base = self._worker.model_config.hf_config
        dtype = engine.compute_dtype if self._is_adapter else base.dtype or torch.bfloat16
        tensors = {
            name: value.detach().to("cpu", dtype, copy=True).contiguous()
            for name, value in parameters
        }
        if self._is_adapter:
            write_config(cast("Any", self.module).peft_config["default"], base, path.parent)
        elif base.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        save_file(tensors, path, metadata={"format": "pt"})

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and random state as safetensors."""
        save_tensors(self.module, self._worker.engine.optimizer, folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises CheckpointForeign if it is of another model."""
        load_tensors(self.module, self._worker.engine.optimizer, folder)

    def _row_logprobs(
        self, rows: Sequence[TrainRow], *, share_prefixes: bool
    ) -> list[NDArray[np.float32]]:
        bins, filled = _filled(rows, self.config.engine.micro_batch_tokens)
        shifted = self._infer(self._worker, _fields(filled), bins, share_prefixes=share_prefixes)
        return [
            np.roll(values.numpy(), 1) * row.trained
            for values, row in zip(shifted, rows, strict=False)
        ]

    def _check_forest(self) -> None:
        """Raise IncompatibleModel if the model is not the same over a forest as row by row."""
        config = self._worker.model_config.hf_config
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
        if self.config.algorithm.single_row_episodes:
            sums = [float(row.weights[row.trained].sum()) * len(rows) for row in rows]
            if not np.allclose(sums, 1.0, atol=1e-3):
                raise IncompatibleObjective(
                    "algorithm.single_row_episodes is set, but the batch has episodes of several "
                    "rows: unset it, and take an algorithm that is not over sequences"
                )
        if not self._by_forest and any(
            len(np.unique(row.temperature[row.trained])) > 1 for row in rows
        ):
            raise IncompatibleObjective(
                'a row has several temperatures, and with engine.layout = "rows" verl computes '
                'a row at one: set it to "forest"'
            )

    def _batch(self, fields: dict[str, Any], bins: list[list[int]], **options: Any) -> Any:
        from verl.utils import tensordict_utils as tu

        order = [i for b in bins for i in b]
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
                "use_dynamic_bsz": not shared,
                "max_token_len_per_gpu": max(self.config.engine.micro_batch_tokens, longest),
                "micro_batch_size_per_gpu": len(bins[0]),
                **options,
            },
        )

    def _infer(
        self, worker: Any, fields: dict[str, Any], bins: list[list[int]], **options: Any
    ) -> list[torch.Tensor]:
        """Compute the log-probabilities of each row of the batch, in the order of the rows."""
        result = worker.infer_batch(self._batch(fields, bins, compute_loss=False, **options))
        in_bins = [row.detach().float().cpu() for row in result["log_probs"].unbind()]
        order = [i for b in bins for i in b]
        rows = dict(zip(order, in_bins, strict=True))
        return [rows[i] for i in range(len(order))]


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


def _filled(rows: Sequence[TrainRow], max_tokens: int) -> tuple[list[list[int]], list[TrainRow]]:
    """Cut rows along the forest into bins with equal numbers of rows.

    Returns the bins as indices, and the rows with filler rows at the end.
    """
    bins = partition([row.token_ids for row in rows], max_tokens)
    filled = list(rows)
    most = max(len(b) for b in bins)
    for b in bins:
        model = filled[b[0]]
        empty = np.zeros(_FILLER_TOKENS, np.float32)
        filler = TrainRow(
            model.token_ids[:_FILLER_TOKENS], empty.astype(bool), empty, empty, empty, empty + 1
        )
        while len(b) < most:
            b.append(len(filled))
            filled.append(filler)
    return bins, filled


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


def _refuse_several_processes() -> None:
    """Raise ConfigInvalid where torchrun or a scheduler has started several trainers."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigInvalid(
            f"WORLD_SIZE={size}, but a learner is one process on one device: several would each "
            "train alone. Start one, without torchrun, and unset WORLD_SIZE"
        )


def _with_dtype(config: RunConfig, device: str) -> RunConfig:
    """The run with the type that this device computes in."""
    if config.engine.dtype != "auto":
        return config
    dtype = "bf16" if device != "cpu" or multiplies_bf16() else "fp32"
    engine = config.engine.model_copy(update={"dtype": dtype})
    return config.model_copy(update={"engine": engine})


def _worker(config: RunConfig, device: str) -> Any:
    """Make verl's worker with the forest engine, which it finds in its registry."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import (
        FSDPEngineConfig,
        FSDPOptimizerConfig,
        HFModelConfig,
        TrainingWorkerConfig,
    )
    from verl.workers.engine_workers import TrainingWorker

    from services.learner.forest_engine import ForestEngine

    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        os.environ.setdefault(name, value)
    if not dist.is_initialized():
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    engine, optimizer, weights = config.engine, config.optimizer, config.policy.weights
    is_adapter = weights.train == "lora"
    targets = weights.targets if isinstance(weights.targets, str) else list(weights.targets)
    worker_config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(config.policy.model),
            override_config={"attn_implementation": "sdpa"},
            use_remove_padding=False,
            enable_gradient_checkpointing=engine.gradient_checkpointing,
            lora_rank=weights.rank if is_adapter else 0,
            lora_alpha=weights.alpha,
            target_modules=targets,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            # A frozen base needs no more precision than it is computed with.
            model_dtype=engine.dtype if is_adapter else "fp32",
            mixed_precision={
                "param_dtype": engine.dtype,
                "reduce_dtype": "fp32",
                "buffer_dtype": "fp32",
            },
            use_torch_compile=False,
            use_remove_padding=False,
            reshard_after_forward=device != "cpu",
            max_token_len_per_gpu=engine.micro_batch_tokens,
            infer_max_token_len_per_gpu=engine.micro_batch_tokens,
            seed=engine.seed,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=optimizer.lr, weight_decay=optimizer.weight_decay, clip_grad=optimizer.grad_clip
        ),
        checkpoint_config=CheckpointConfig(),
    )
    # verl prints to standard output, which is the service's log.
    with contextlib.redirect_stdout(sys.stderr):
        worker = TrainingWorker(worker_config)
        # Importing the engine registered it.
        assert isinstance(worker.engine, ForestEngine)
        worker.reset()
    return worker
