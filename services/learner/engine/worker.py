"""Trains one shard of a model: verl's `TrainingWorker` with the forest engine.

The same class computes alone, in the learner's process, and as one of many, in a process of its own
on each device (`services.learner.backends`). Methods that are registered with verl are called on
all workers at once; each call is a collective operation, so all workers must take part in it.
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUntypedFunctionDecorator=false, reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine_workers import TrainingWorker

from services.common.runtime.weights_index import Shard
from services.learner.adapter import write_config
from services.learner.config import RunConfig
from services.learner.engine.forest_engine import ForestEngine
from services.learner.errors import TrainingError
from services.learner.files import sha256
from services.learner.tensors import begin_to_save, load_tensors, save_tensors
from services.learner.train_row import without_frames
from services.learner.weights_dtype import version_dtype, write_model_config

_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a worker waits for the others: longer than any step takes, short of torch's half hour.
"""

_BY_SHARE: dict[str, Any] = make_nd_compute_dataproto_dispatch_fn(mesh_name="train")
"""verl gives each worker an equal and contiguous share of a batch's rows."""


class ForestWorker(TrainingWorker):
    """Trains the model of a run. Raises what loading the model raises.

    The environment says which worker this is (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).
    """

    def __init__(self, config: RunConfig, device: str) -> None:
        """`device`: "cpu" or "cuda". No key of `config.engine` may be "auto"."""
        open_process_group(device)
        torch.manual_seed(config.engine.seed)
        # verl prints to standard output, which is the service's log.
        with contextlib.redirect_stdout(sys.stderr):
            super().__init__(_worker_config(config, device))
        # Importing the engine registered it.
        assert isinstance(self.engine, ForestEngine)
        self._is_adapter = config.policy.weights.train == "lora"
        needs_reference = config.algorithm.kl > 0 and not self._is_adapter
        self._reference = self._new_engine() if needs_reference else None
        # Of its own: a step may need the other one while a checkpoint is written.
        self._saving_group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        self._saving: Future[Any] | None = None
        self._is_on_cpu = device == "cpu"

    @property
    def module(self) -> torch.nn.Module:
        """The sharded model."""
        return cast("torch.nn.Module", self.engine.module)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, of the shard's parameters."""
        return cast("torch.optim.Optimizer", self.engine.optimizer)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        """Load the model, and make a new optimizer."""
        with contextlib.redirect_stdout(sys.stderr):
            super().reset()
            if self._reference is not None:
                self._reference.initialize()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_optimizer(
        self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """Set what the next step is made with: a checkpoint brings back what it was saved with."""
        for group in self.optimizer.param_groups:
            group.update(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @register(dispatch_mode=_BY_SHARE, blocking=False)
    def train_batch(self, data: Any) -> Any:
        """See TrainingWorker. A step that is refused, by all workers alike, is an `error` among the
        metrics: it then crosses from process to process as what it is.
        """
        if self._saving is not None and self._is_on_cpu:
            # What is being written are the weights themselves.
            futures.wait([self._saving])
        try:
            return super().train_batch(data)
        except TrainingError as error:
            return tu.get_tensordict({}, {"metrics": {"error": without_frames(error)}})

    @register(dispatch_mode=_BY_SHARE, blocking=False)
    def infer_reference(self, data: Any) -> Any:
        """Compute log-probabilities as `infer_batch` does, by the base model."""
        if self._reference is None:
            tu.assign_non_tensor(data, no_lora_adapter=True)
            return super().infer_batch(data)
        with self._reference.eval_mode():
            output = self._reference.infer_batch(data)
        return self._postprocess_output(
            output, global_token_num=None, delta_time=0.0, forward_only=True, images_seqlens=None
        ).cpu()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export(self, path: Path) -> None:
        """Write the weights as safetensors, see `services.learner.trainer.Trainer.export`."""
        # Every worker gathers every tensor; the first one keeps them.
        tensors = {
            name: self._kept(value) for name, value in self._full_tensors() if self.rank == 0
        }
        if self.rank == 0:
            if self._is_adapter:
                peft_config = cast("Any", self.module).peft_config["default"]
                write_config(peft_config, self.model_config.hf_config, path.parent)
            else:
                self._write_model_config(path.parent)
            save_file(tensors, path, metadata={"format": "pt"})
        dist.barrier()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export_shard(self, folder: Path) -> Shard:
        """Write this worker's share of the weights into a folder that all share.

        Tensors are whole, and dealt out so that all have about as much to keep and to write.
        """
        loads = [0] * dist.get_world_size()
        tensors: dict[str, torch.Tensor] = {}
        for name, value in self._full_tensors():
            keeper = loads.index(min(loads))
            loads[keeper] += value.numel()
            if keeper == self.rank:
                tensors[name] = self._kept(value)
        file = f"model-{self.rank + 1:05d}-of-{len(loads):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        if self.rank == 0:
            self._write_model_config(folder)
        size = sum(tensor.nbytes for tensor in tensors.values())
        return Shard(file, sha256(folder / file), tuple(tensors), size)

    def _full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a version, each as all workers have it together."""
        parameters, _ = cast("Any", self.engine).get_per_tensor_param(
            base_sync_done=self._is_adapter
        )
        is_tied = not self._is_adapter and self.model_config.hf_config.tie_word_embeddings
        for name, value in parameters:
            if not (is_tied and name == "lm_head.weight"):
                yield name, value

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """A copy in the host's memory, in the type that a version has."""
        return value.detach().to("cpu", self._dtype, copy=True).contiguous()

    @property
    def _dtype(self) -> torch.dtype:
        computed: torch.dtype = cast("Any", self.engine).compute_dtype
        base: torch.dtype | None = self.model_config.hf_config.dtype
        return computed if self._is_adapter else version_dtype(base, computed)

    def _write_model_config(self, folder: Path) -> None:
        write_model_config(Path(self.model_config.local_hf_config_path), self._dtype, folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and random state into a folder that all share."""
        save_tensors(self.module, self.optimizer, folder)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def begin_to_save(self, folder: Path) -> None:
        """Begin what `save` does, and return; one at a time. On a GPU it is done with a copy in the
        host's memory, on a CPU the next step waits for it.
        """
        self._saving = begin_to_save(
            self.module, self.optimizer, folder, self._saving_group, copied=not self._is_on_cpu
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def is_saved(self, *, wait: bool = False) -> bool:
        """Whether the last `begin_to_save` has ended; `wait` for it. Raises what it raised."""
        saving = self._saving
        if saving is None or not (wait or saving.done()):
            return saving is None
        self._saving = None
        saving.result()
        return True

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load(self, folder: Path) -> None:
        """Read what any number of workers saved. Raises CheckpointForeign."""
        load_tensors(self.module, self.optimizer, folder)

    def close(self) -> None:
        """Nothing was started for it."""

    def _new_engine(self) -> Any:
        return EngineRegistry.new(
            model_type=self.config.model_type,
            backend=self.engine_config.strategy,
            model_config=self.model_config,
            engine_config=self.engine_config,
            optimizer_config=self.optimizer_config,
            checkpoint_config=self.checkpoint_config,
        )


def open_process_group(device: str) -> None:
    """Join the other workers, by what the environment says; one alone needs no network."""
    if dist.is_initialized():
        return
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.HashStore() if size == 1 else None  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=_COLLECTIVE_TIMEOUT
    )


def _worker_config(config: RunConfig, device: str) -> TrainingWorkerConfig:
    """The run, in verl's words."""
    engine, optimizer, weights = config.engine, config.optimizer, config.policy.weights
    is_adapter = weights.train == "lora"
    targets = weights.targets if isinstance(weights.targets, str) else list(weights.targets)
    return TrainingWorkerConfig(
        model_type="language_model",
        model_config=HFModelConfig(
            path=str(config.policy.model),
            override_config={
                "attn_implementation": "flex_attention" if engine.attention == "flex" else "sdpa"
            },
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
