"""A learner's checkpoint: everything to go on from, in one folder that exists whole or not at all;
one that a copy or a restore left in pieces is refused.

Order of every step: checkpoint, then update, then ledger. The checkpoint holds the update and the
entries it has yet to publish, so a learner that dies in between publishes exactly those when it
resumes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from fulgurite.events import Position
from services.learner.errors import CheckpointDamaged
from services.learner.files import remove_parts, whole_folder

_KEEP = 2
"""The newest, and the one before it for people who want to look."""


class CheckpointState(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a checkpoint that is not tensors."""

    policy: str
    topic: str
    topic_id: str
    """Kafka's id of the topic: a topic deleted and made again has another."""
    epoch: int
    step: int
    version: str
    """The newest version; `policy@0.0` before the first step."""
    serial: int
    """Counts checkpoints."""
    positions: tuple[Position, ...]
    """Low-water offsets."""
    settled: dict[str, tuple[int, int]]
    """Groups settled at or above them: id → (partition, last offset)."""
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
        """Write a checkpoint; `save` fills a folder with the trainer's tensors, None: they are
        those of the checkpoint before.
        """
        before = self._newest()
        with whole_folder(self.folder / f"{state.serial:08d}", durable=self._durable) as part:
            trainer = part / "trainer"
            if save is not None:
                trainer.mkdir()
                save(trainer)
            elif before is not None and (before / "trainer").is_dir():
                # Hard links: the tensors did not change, so nothing is copied.
                shutil.copytree(before / "trainer", trainer, copy_function=os.link)
            whole = msgspec.structs.replace(state, files=_sizes(trainer))
            (part / "state.json").write_bytes(msgspec.json.encode(whole))
        for old in self._all()[:-_KEEP]:
            shutil.rmtree(old)

    def latest(self) -> tuple[CheckpointState, Path | None] | None:
        """The newest checkpoint's state and its trainer folder (None if nothing had been trained),
        or None. Raises CheckpointDamaged.
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
            raise _damaged(newest, f"{', '.join(broken)} missing or half-written")
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
        f"the checkpoint {folder} is not whole: {what}; restore its folder from a backup, name "
        "another one with FULGURITE_DATA_DIR, or train anew under another FULGURITE_POLICY"
    )
