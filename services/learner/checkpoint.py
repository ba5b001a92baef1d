"""Writes and reads checkpoints: everything that a learner needs to resume, in one folder.

The folder appears only when it is complete; one that a copy or a restore left incomplete is
refused. The order of every step is: checkpoint, update, ledger. The checkpoint holds the events
that are still to be published, so a learner that dies in between publishes them when it resumes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from fulgurite.events import Position
from services.learner.errors import CheckpointDamaged
from services.learner.files import complete_folder, remove_parts

_KEEP = 2
"""The newest checkpoint, and the one before it for people to look at."""


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a checkpoint that is not tensors."""

    policy: str
    topic: str
    topic_id: str
    """Kafka's id of the topic; it changes when a topic is deleted and created again."""
    epoch: int
    step: int
    version: str
    """The newest version; `policy@0.0` before the first step."""
    serial: int
    """Counts checkpoints."""
    positions: tuple[Position, ...]
    """Offsets to resume from, one per partition."""
    settled: dict[str, tuple[int, int]]
    """Groups settled at or above these offsets: id → (partition, last offset)."""
    pending: tuple[bytes, ...] = ()
    """Framed events to publish after this checkpoint, in order."""
    files: dict[str, int] = {}
    """The trainer's files and their sizes."""


class CheckpointStore:
    """The checkpoints of one policy."""

    def __init__(self, data: Path, policy: str, *, durable: bool = True) -> None:
        self.folder = data.resolve() / "checkpoints" / policy
        self._durable = durable
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)

    def write(self, state: CheckpointState, save: Callable[[Path], None] | None) -> None:
        """Write a checkpoint. `save` writes the trainer's tensors into a folder.

        None: they have not changed since the last checkpoint.
        """
        before = self._newest()
        with complete_folder(self.folder / f"{state.serial:08d}", durable=self._durable) as part:
            trainer = part / "trainer"
            if save is not None:
                trainer.mkdir()
                save(trainer)
            elif before is not None and (before / "trainer").is_dir():
                # Hard links: the tensors did not change, so nothing is copied.
                shutil.copytree(before / "trainer", trainer, copy_function=os.link)
            state = msgspec.structs.replace(state, files=_sizes(trainer))
            (part / "state.json").write_bytes(msgspec.json.encode(state))
        for old in self._all()[:-_KEEP]:
            shutil.rmtree(old)

    def latest(self) -> tuple[CheckpointState, Path | None] | None:
        """Return the newest checkpoint's state and its trainer folder; None without a checkpoint.

        The folder is None if nothing had been trained. Raises CheckpointDamaged.
        """
        newest = self._newest()
        if newest is None:
            return None
        trainer = newest / "trainer"
        try:
            state = msgspec.json.decode((newest / "state.json").read_bytes(), type=CheckpointState)
        except (OSError, msgspec.DecodeError) as error:
            raise _damaged(newest, str(error)) from error
        found = _sizes(trainer)
        broken = sorted(name for name, size in state.files.items() if found.get(name) != size)
        if broken:
            raise _damaged(newest, f"{', '.join(broken)} missing or incomplete")
        return state, trainer if trainer.is_dir() else None

    def _newest(self) -> Path | None:
        found = self._all()
        return found[-1] if found else None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*"))


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _damaged(folder: Path, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(
        f"the checkpoint {folder} is incomplete: {what}. Restore the folder from a backup, choose "
        "another data folder with FULGURITE_DATA_DIR, or train under another FULGURITE_POLICY."
    )
