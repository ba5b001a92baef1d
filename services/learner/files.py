"""Writes folders that are complete or do not exist, and computes digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def complete_folder(target: Path, *, durable: bool = True) -> Generator[Path]:
    """Yield a folder to fill; it replaces `target` when the block ends without an error.

    `durable`: wait for the disk, so that the folder survives a loss of power. A killed process does
    no harm either way.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if durable:
            for path in [*part.rglob("*"), part]:
                _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        if durable:
            _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_parts(folder: Path) -> None:
    """Remove incomplete folders that a killed process left."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
