"""Trains one policy: verl's `TrainingWorker` on the forest engine, in this process, without Ray.

A step either happens or changes nothing. Rows come in any number and order. Micro-batches are cut
along the prefix forest, and filled up to equal numbers of rows with short prefixes of other rows,
which carry no loss and cost nothing. Not thread-safe; one per process.
"""

# verl, tensordict and torch.distributed are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import save_file

from fulgurite.trajectories.forest import build, partition
from services.common.runtime import logs
from services.learner import verl_cpu
from services.learner.attention import CHECKED, check_model
from services.learner.errors import IncompatibleModel, IncompatibleObjective
from services.learner.train_row import TrainRow
from services.learner.trainer_settings import TrainerSettings

__all__ = ["TrainRow", "Trainer", "TrainerSettings"]

_FILLER_TOKENS = 2
"""Tokens of a filler row: the shortest row with a token to predict."""

_TRIAL_BOUNDS = {"fp32": 1e-3, "bf16": 0.15}
"""Largest difference of log-probabilities between a forest and its rows that is rounding."""

logger = logs.get()


class Trainer:
    """Trains the model in a Hugging Face folder.

    Raises IncompatibleObjective if the settings do not fit together.
    """

    def __init__(self, model: Path, settings: TrainerSettings) -> None:
        self.settings = settings
        self.device = verl_cpu.select(settings.device)
        # Imported after the platform is chosen: verl's engine asks for it while being imported.
        from services.learner.objective import Objective

        self._objective = Objective(settings)
        check_model(model, forest=settings.share_prefixes)
        torch.manual_seed(settings.seed)
        self._worker = _worker(model, settings, self.device)
        self._worker.engine.before_step = self._objective.require_finite
        self._reference = _worker(model, settings, self.device) if settings.kl_coef else None
        if settings.share_prefixes:
            self._check_forest()

    @property
    def module(self) -> torch.nn.Module:
        """The sharded model."""
        return cast("torch.nn.Module", self._worker.engine.module)

    def step(self, rows: Sequence[TrainRow]) -> dict[str, float]:
        """Make one optimizer step on a batch and return its metrics.

        Raises PolicyDrift, StepNotFinite, IncompatibleObjective; then no weight was changed.
        """
        began = time.monotonic()
        self._refuse(rows)
        bins, filled = _filled(rows, self.settings.max_forest_tokens)
        fields = _fields(filled)
        if self.settings.correction == "decoupled":
            old = self._infer(self._worker, fields, bins)
            fields |= {
                "old_log_probs": old,
                "rollout_is_weights": self._truncated_weights(old, fields),
            }
        if self._reference is not None:
            fields["ref_log_probs"] = self._infer(self._reference, fields, bins)
        self._objective.begin(
            rows=len(rows), trained_tokens=sum(int(row.trained.sum()) for row in rows)
        )
        self._worker.set_loss_fn(self._objective)
        result = self._worker.train_batch(
            self._batch(fields, bins, calculate_entropy=self.settings.entropy_coef != 0)
        )
        from verl.utils import tensordict_utils as tu

        metrics = cast("dict[str, Any]", tu.get(result, "metrics"))
        return {
            "loss": float(metrics["loss"]),
            "grad_norm": float(metrics["grad_norm"]),
            **self._objective.metrics(),
            "forest_tokens": float(
                sum(
                    len(build([filled[i].token_ids for i in b], [filled[i].trained for i in b]))
                    for b in bins
                )
            ),
            "row_tokens": float(sum(len(row.token_ids) for row in rows)),
            "micro_batches": float(len(bins)),
            "train_seconds": time.monotonic() - began,
        }

    def logprobs(self, token_ids: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float32]:
        """Log-probabilities (T-1,) of each token but the first, at temperature 1."""
        tokens = np.asarray(token_ids, dtype=np.int32)
        zeros, ones = np.zeros(len(tokens), np.float32), np.ones(len(tokens), np.float32)
        row = TrainRow(tokens, np.arange(len(tokens)) > 0, zeros, zeros, zeros, ones)
        return self.row_logprobs([row])[0][1:]

    def row_logprobs(self, rows: Sequence[TrainRow]) -> list[NDArray[np.float32]]:
        """Log-probabilities (T,) of each row's trained tokens, at their temperatures; else 0."""
        return self._row_logprobs(rows, share_prefixes=self.settings.share_prefixes)

    def export(self, path: Path) -> None:
        """Write the weights as safetensors under Hugging Face's names, in the base model's dtype.

        A tied head is left out, as Hugging Face does.
        """
        config = self._worker.model_config.hf_config
        parameters, _ = self._worker.engine.get_per_tensor_param()
        dtype = config.dtype or torch.bfloat16
        tensors = {
            name: value.detach().to("cpu", dtype, copy=True).contiguous()
            for name, value in parameters
        }
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        save_file(tensors, path, metadata={"format": "pt"})

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random state, as verl does."""
        with contextlib.redirect_stdout(sys.stderr):
            self._worker.save_checkpoint(str(folder))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        with contextlib.redirect_stdout(sys.stderr):
            self._worker.load_checkpoint(str(folder))

    def _row_logprobs(
        self, rows: Sequence[TrainRow], *, share_prefixes: bool
    ) -> list[NDArray[np.float32]]:
        bins, filled = _filled(rows, self.settings.max_forest_tokens)
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
        bound = _TRIAL_BOUNDS[self.settings.dtype]
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
        if self.settings.single_row_episodes:
            sums = [float(row.weights[row.trained].sum()) * len(rows) for row in rows]
            if not np.allclose(sums, 1.0, atol=1e-3):
                raise IncompatibleObjective(
                    "FULGURITE_TRAINER_SINGLE_ROW_EPISODES is set, but the batch has episodes of "
                    "several rows: unset it, and use a policy loss that is not over sequences"
                )
        if not self.settings.share_prefixes and any(
            len(np.unique(row.temperature[row.trained])) > 1 for row in rows
        ):
            raise IncompatibleObjective(
                "a row has several temperatures, and without FULGURITE_TRAINER_SHARE_PREFIXES "
                "verl computes a row at one temperature: set it to true"
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
        shared = options.pop("share_prefixes", self.settings.share_prefixes)
        return tu.get_tensordict(
            tensors,
            {
                "share_prefixes": shared,
                "use_remove_padding": False,
                "use_dynamic_bsz": not shared,
                "max_token_len_per_gpu": max(self.settings.max_forest_tokens, longest),
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

    def _truncated_weights(
        self, old: list[torch.Tensor], fields: dict[str, Any]
    ) -> list[torch.Tensor]:
        from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

        lengths = [len(row) for row in old]
        dense = [
            torch.nested.to_padded_tensor(_jagged(rows), 0.0)
            for rows in (old, fields["behaviour_logprobs"], fields["weights"])
        ]
        mask = torch.nested.to_padded_tensor(
            _jagged([row.float() for row in fields["loss_mask"]]), 0.0
        )
        weights, _ = compute_rollout_correction_weights(
            log_ratio=dense[0] - dense[1],
            response_mask=mask,
            rollout_is="token",
            rollout_is_threshold=self.settings.is_cap,
        )
        return [row[:length] for row, length in zip(weights, lengths, strict=True)]


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
        "rollout_is_weights": [torch.ones(len(row.token_ids)) for row in rows],
        "temperature": [
            float(row.temperature[row.trained][0]) if row.trained.any() else 1.0 for row in rows
        ],
    }


def _shifted(values: NDArray[Any], last: float = 0) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([values[1:], np.array([last], values.dtype)]))


def _jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _worker(model: Path, settings: TrainerSettings, device: str) -> Any:
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
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(model),
            override_config={"attn_implementation": "sdpa"},
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            model_dtype="fp32",
            mixed_precision={
                "param_dtype": settings.dtype,
                "reduce_dtype": "fp32",
                "buffer_dtype": "fp32",
            },
            use_torch_compile=False,
            use_remove_padding=False,
            reshard_after_forward=device != "cpu",
            max_token_len_per_gpu=settings.max_forest_tokens,
            infer_max_token_len_per_gpu=settings.max_forest_tokens,
            seed=settings.seed,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=settings.lr, weight_decay=settings.weight_decay, clip_grad=settings.grad_clip
        ),
        checkpoint_config=CheckpointConfig(),
    )
    # verl prints to standard output, which is the service's log.
    with contextlib.redirect_stdout(sys.stderr):
        worker = TrainingWorker(config)
        # Importing the engine registered it.
        assert isinstance(worker.engine, ForestEngine)
        worker.reset()
    return worker
