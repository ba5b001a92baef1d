"""Folders that exist whole or not at all, and digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(target: Path, *, durable: bool = True) -> Generator[Path]:
    """Fill the folder that is yielded; it takes `target`'s name, replacing what was there, when the
    block ends well.

    `durable`: also survive a loss of power, at the price of waiting for the disk; a killed process
    needs none of it.
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
    """Remove what a killed process left half-written."""
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
