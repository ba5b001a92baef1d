"""Writes folders that are complete or do not exist, and computes digests of files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from services.common.runtime.disk import sync_to_disk
from services.learner.errors import CheckpointLocked


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
                sync_to_disk(path)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        if durable:
            sync_to_disk(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def only_learner(data: Path, policy: str) -> Generator[None]:
    """Keep other learners of a policy out of its folders. Raises CheckpointLocked.

    The lock ends with the process, however that ends.
    """
    folder = data.resolve() / "checkpoints" / policy
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointLocked(
                f"{folder} is in use by another learner of the policy {policy}: stop that one, or "
                "set another FULGURITE_DATA_DIR"
            ) from None
        yield


def remove_parts(folder: Path) -> None:
    """Remove incomplete folders that a killed process left."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
