"""Weights on disk, one file or the shards of a folder: read into memory, checked against a SHA-256,
and compared with what the engine serves. Knows nothing of vLLM.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

Shapes = dict[str, tuple[int, ...]]
"""Tensor name → shape."""

_CHUNK = 16 * 1024 * 1024


class ArtifactRefused(ValueError):
    """The file is not the announced one, or does not fit the model; nothing was loaded."""


def local_path(path: str) -> Path:
    """Turn a path or a file:// URI into a path. Raises ArtifactRefused for other URIs."""
    parsed = urlparse(path)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    if parsed.scheme:
        raise ArtifactRefused(f"{path}: only local files can be loaded, as a path or a file:// URI")
    return Path(path)


def weights_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, or the file itself. Raises ArtifactRefused."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ArtifactRefused(f"{path} cannot be read: it is no file, and no folder of safetensors")
    return files


def read_ahead(files: Iterable[Path]) -> None:
    """Read files to their ends, so that the system has them in memory. Raises OSError."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def verify(path: Path, sha256: str) -> None:
    """Raise ArtifactRefused unless the file has this digest (hex)."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactRefused(f"{path} cannot be read: {error}") from error
    if found != sha256.lower():
        raise ArtifactRefused(f"{path} has SHA-256 {found}, but the update announces {sha256}")


def shapes(path: Path) -> Shapes:
    """Read the names and shapes of a safetensors file's tensors from its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = cast("Mapping[str, Mapping[str, Any]]", json.loads(file.read(length)))
    return {
        name: tuple(cast("list[int]", entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def check_shapes(found: Shapes, wanted: Shapes) -> None:
    """Raise ArtifactRefused with the differences of two models; a tied head may be missing."""
    optional = {"lm_head.weight"}
    missing = sorted(wanted.keys() - found.keys() - optional)
    surplus = sorted(found.keys() - wanted.keys() - optional)
    reshaped = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    differences = {"missing": missing, "unknown": surplus, "reshaped": reshaped}
    problems = [f"{word}: {', '.join(names[:5])}" for word, names in differences.items() if names]
    if problems:
        raise ArtifactRefused(
            f"the tensors are not those of the served model ({'; '.join(problems)})"
        )
