"""What one number of processes writes into a checkpoint, another number reads."""

# torch.distributed is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

from services.learner.tensors import load_tensors, save_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def sharded(seed: int) -> tuple[Any, torch.optim.AdamW]:
    """A module with a frozen layer and one whose rows two processes do not share evenly."""
    torch.manual_seed(0)
    frozen = torch.nn.Linear(4, 6)
    torch.manual_seed(seed)
    module = torch.nn.Sequential(frozen, torch.nn.Linear(6, 5))
    module[0].requires_grad_(False)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(module, mesh=mesh)
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)


def step(module: Any, optimizer: torch.optim.AdamW) -> list[list[float]]:
    """One step on the same numbers everywhere; what the trained layer is after it."""
    optimizer.zero_grad()
    module(torch.arange(8.0).reshape(2, 4) / 8).square().sum().backward()
    optimizer.step()
    return module[1].weight.full_tensor().tolist()


def run(rank: int, ranks: int, folder: Path, *, writes: bool) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{ranks}-{writes}", rank=rank, world_size=ranks
    )
    module, optimizer = sharded(seed=1 if writes else 2)
    if writes:
        step(module, optimizer)
        save_tensors(module, optimizer, folder / "tensors")
    else:
        load_tensors(module, optimizer, folder / "tensors")
    after = step(module, optimizer)
    if rank == 0:
        torch.save(after, folder / f"after-{writes}")
    dist.barrier()  # Gloo aborts a process whose peer closes its connections first.
    dist.destroy_process_group()


def worker(rank: int, ranks: int, folder: Path, writes: bool) -> None:
    run(rank, ranks, folder, writes=writes)


@pytest.mark.parametrize(("writers", "readers"), [(2, 1), (1, 2)])
def test_a_checkpoint_is_read_by_another_number_of_processes(
    tmp_path: Path, writers: int, readers: int
) -> None:
    (tmp_path / "tensors").mkdir()
    for ranks, writes in ((writers, True), (readers, False)):
        spawn(worker, args=(ranks, tmp_path, writes), nprocs=ranks)
    written, read = (torch.load(tmp_path / f"after-{writes}") for writes in (True, False))
    torch.testing.assert_close(torch.tensor(read), torch.tensor(written))
    assert {path.suffix for path in (tmp_path / "tensors").iterdir()} == {".safetensors"}
    assert len(list((tmp_path / "tensors").iterdir())) == writers
