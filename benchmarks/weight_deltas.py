"""Says how much of a version's weights its steps changed, and how large a delta against the parent
would be: `python -m benchmarks.weight_deltas PARENT.safetensors CHILD.safetensors`.
"""

# safetensors is annotated in part only.
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.tables import table


def compare(
    parent: Mapping[str, torch.Tensor], child: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, float]:
    """The figures of one update. A delta has, of each tensor, one bit an element that says whether
    it is changed, and the new values of those that are: no smaller than indices only where less
    than one in 32 is changed.
    """
    began = time.monotonic()
    whole = _stored(dict(child), folder / "whole.safetensors")
    whole_written = time.monotonic()
    delta: dict[str, torch.Tensor] = {}
    changed = elements = 0
    for name, new in child.items():
        bits, old_bits = new.view(torch.int16).flatten(), parent[name].view(torch.int16).flatten()
        where = bits != old_bits
        count = int(where.sum())
        changed, elements = changed + count, elements + bits.numel()
        if count * 32 < bits.numel():
            delta[f"{name}.index"] = where.nonzero().flatten().to(torch.int32)
        else:
            delta[f"{name}.mask"] = _packed(where)
        delta[f"{name}.values"] = bits[where]
    small = _stored(delta, folder / "delta.safetensors")
    delta_written = time.monotonic()
    _check(parent, child, load_file(folder / "delta.safetensors"))
    return {
        "changed, %": 100 * changed / elements,
        "whole, MB": whole / 1e6,
        "delta, MB": small / 1e6,
        "write and digest whole, s": whole_written - began,
        "compare, write and digest delta, s": delta_written - whole_written,
    }


def _stored(tensors: dict[str, torch.Tensor], path: Path) -> int:
    """Write and digest a file; returns its size in bytes."""
    save_file(tensors, path)
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return path.stat().st_size


def _packed(where: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(where.numpy()))


def _unpacked(mask: torch.Tensor, size: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(mask.numpy(), count=size)).bool()


def _check(
    parent: Mapping[str, torch.Tensor],
    child: Mapping[str, torch.Tensor],
    delta: Mapping[str, torch.Tensor],
) -> None:
    """Apply the delta, and assert that the child comes out bit for bit."""
    for name, old in parent.items():
        bits = old.view(torch.int16).flatten().clone()
        index = delta.get(f"{name}.index")
        where = (
            index.long() if index is not None else _unpacked(delta[f"{name}.mask"], bits.numel())
        )
        bits[where] = delta[f"{name}.values"]
        assert torch.equal(bits, child[name].view(torch.int16).flatten()), name


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parent", type=Path, help="safetensors file of a version, in bf16")
    parser.add_argument("child", type=Path, help="of the version after it")
    options: Any = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = compare(load_file(options.parent), load_file(options.child), Path(name))
    table("Weights that a step changes", list(found), [list(found.values())])


if __name__ == "__main__":
    main()
