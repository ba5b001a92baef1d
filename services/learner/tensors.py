"""Saves and loads what a trainer resumes from, as safetensors: trained parameters, the optimizer's
state of each, and the random state.

`torch.distributed.checkpoint` writes them, so any number of processes reads what any other number
wrote. Frozen parameters are the base model's and are left out. Nothing is a pickle.
"""

# torch.distributed is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.fsdp import FSDPModule

from services.learner.errors import CheckpointForeign

_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random."

_FILE_BYTES = 256 * 2**20
"""About as much goes into one file, of all processes together."""


def save_tensors(module: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write a module's trained parameters, its optimizer's state and the random state."""
    tensors = _tensors(module, optimizer)
    save(tensors, storage_writer=_writer(folder, tensors))


def begin_to_save(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    group: dist.ProcessGroup,
    *,
    copied: bool,
) -> Future[Any]:
    """Write what `save_tensors` writes in a thread.

    `group`: of all processes, on CPUs, which nobody else uses meanwhile. `copied`: copy it into the
    host's memory first; otherwise nobody may change it meanwhile. Returns what ends, or fails, with
    the writing.
    """
    tensors = _tensors(module, optimizer)
    writing = async_save(
        tensors,
        storage_writer=_writer(folder, tensors),
        async_stager=None if copied else _InPlace(),
        process_group=group,
    )
    return cast("Future[Any]", writing)


class _InPlace(AsyncStager):
    """Has tensors written from where they are."""

    _synchronize_after_execute = False

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict


def _writer(folder: Path, tensors: Mapping[str, torch.Tensor]) -> HuggingFaceStorageWriter:
    """Writes several files: the writer has a copy of a whole file in memory."""
    files: dict[str, int] = {}
    size = 0
    for name, tensor in tensors.items():
        files[name] = 1 + size // _FILE_BYTES
        size += tensor.numel() * tensor.element_size()
    return HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)


def load_tensors(module: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read what `save_tensors` wrote. Raises CheckpointForeign if it is of another model."""
    reader = HuggingFaceStorageReader(str(folder))
    saved = {
        name: tuple(found.size)
        for name, found in reader.read_metadata().state_dict_metadata.items()
        if isinstance(found, TensorStorageMetadata)
    }
    _check(saved, module, folder)
    for name, parameter in _trained(module).items():
        optimizer.state[parameter] = _empty_state(f"{_OPTIMIZER}{name}.", saved, parameter)
    tensors = _tensors(module, optimizer)
    load({name: tensors[name] for name in saved if name in tensors}, storage_reader=reader)
    torch.set_rng_state(tensors[f"{_RANDOM}cpu"])
    if f"{_RANDOM}cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{_RANDOM}cuda"])


def _tensors(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Everything that is saved, by name."""
    tensors: dict[str, torch.Tensor] = {f"{_RANDOM}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state()
    for name, parameter in _trained(module).items():
        tensors[_MODEL + name] = parameter.detach()
        for kind, value in optimizer.state[parameter].items():
            tensors[f"{_OPTIMIZER}{name}.{kind}"] = value
    return tensors


def _trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters, in the precision that the optimizer has them in.

    After a forward pass a module may still have copies in place of them.
    """
    for one in module.modules():
        if isinstance(one, FSDPModule):
            one.reshard()
    return {name: one for name, one in module.named_parameters() if one.requires_grad}


def _empty_state(
    prefix: str, saved: dict[str, tuple[int, ...]], parameter: torch.nn.Parameter
) -> dict[str, Any]:
    """Tensors for the optimizer's state of a parameter to be read into."""
    kinds = {
        name.removeprefix(prefix): size for name, size in saved.items() if name.startswith(prefix)
    }
    return {
        kind: torch.zeros_like(parameter.detach())
        if size == tuple(parameter.shape)
        else torch.zeros(size)
        for kind, size in kinds.items()
    }


def _check(saved: dict[str, tuple[int, ...]], module: torch.nn.Module, folder: Path) -> None:
    """Raise CheckpointForeign unless the saved parameters are those of the module."""
    if not saved and any(folder.glob("*.pt")):
        raise CheckpointForeign(
            f"the checkpoint in {folder} is of an earlier release, as pickles, which are no longer "
            "read. Train on under another policy.name, with policy.model set to the folder of the "
            "newest version (`artifacts` in FULGURITE_DATA_DIR)"
        )
    found = {
        name.removeprefix(_MODEL): size for name, size in saved.items() if name.startswith(_MODEL)
    }
    wanted = {name: tuple(one.shape) for name, one in _trained(module).items()}
    if found == wanted:
        return
    name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    raise CheckpointForeign(
        f"the checkpoint in {folder} is of other weights than this run trains: the shape of {name} "
        f"is {found.get(name)} there and {wanted.get(name)} here. Set policy.model and "
        "policy.weights to what they were, or train under another policy.name"
    )
