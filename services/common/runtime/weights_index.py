"""The index of weights that are stored in several files, as Hugging Face has it, with each file's
digest beside: whoever knows the digest of the index can check all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

NAME = "model.safetensors.index.json"


class Shard(msgspec.Struct, frozen=True):
    """One of the files."""

    file: str
    """Its name, in the folder of the index."""
    sha256: str
    tensors: tuple[str, ...]
    """Names of the tensors in it."""
    tensor_bytes: int


class _Metadata(msgspec.Struct):
    total_size: int
    sha256: dict[str, str]


class _Index(msgspec.Struct):
    metadata: _Metadata
    weight_map: dict[str, str]


class IndexUnreadable(ValueError):
    """The file is no index, or names no digests."""


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the index of a folder's shards."""
    index = _Index(
        _Metadata(
            sum(shard.tensor_bytes for shard in shards),
            {shard.file: shard.sha256 for shard in shards},
        ),
        {tensor: shard.file for shard in shards for tensor in shard.tensors},
    )
    encoded = msgspec.json.encode(index, order="sorted")
    (folder / NAME).write_bytes(msgspec.json.format(encoded, indent=2))


def digests(index: Path) -> dict[Path, str]:
    """The files that an index names, and their SHA-256. Raises IndexUnreadable, OSError."""
    try:
        read = msgspec.json.decode(index.read_bytes(), type=_Index)
    except msgspec.DecodeError as error:
        raise IndexUnreadable(
            f"{index} is not the index of a learner's shards: {error}. Restore it from a backup, "
            "or take another version"
        ) from error
    return {index.with_name(file): digest for file, digest in read.metadata.sha256.items()}
