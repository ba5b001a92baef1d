"""Writes and reads checkpoints: everything that a learner needs to resume, in one folder.

The folder appears only when it is complete; one that a copy or a restore left incomplete is
refused. It has the trainer's tensors, or those of an earlier step and the batches of the steps
since, to make these again (`services.learner.redo`). Tensors may be written beside the loop, into a
folder that becomes part of a checkpoint when they are complete. The order of every step is:
checkpoint, update, ledger. The checkpoint holds the events that are still to be published, so a
learner that dies in between publishes them when it resumes.
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
    """Empty if the policy was only trained offline; so is the id."""
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
    baselines: dict[str, tuple[float, float]] = {}
    """Moving averages: kind → (mean, mean of squares)."""
    trained_batches: int | None = None
    """Batches that a learner has trained, by which the learning rate's schedule counts; None in
    checkpoints of earlier releases, which counted by `step`.
    """
    pending: tuple[bytes, ...] = ()
    """Framed events to publish after this checkpoint, in order."""
    files: dict[str, int] = {}
    """The trainer's files and their sizes."""
    batches: dict[str, int] = {}
    """The batches of the steps since those files were written, and their sizes."""


class CheckpointStore:
    """The checkpoints of one policy."""

    def __init__(self, data: Path, policy: str, *, durable: bool = True) -> None:
        self.folder = data.resolve() / "checkpoints" / policy
        self._durable = durable
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)

    def write(
        self,
        state: CheckpointState,
        save: Callable[[Path], None] | None,
        save_batch: Callable[[Path], None] | None = None,
    ) -> None:
        """Write a checkpoint. `save` writes the trainer's tensors into a folder.

        None: the last checkpoint's stay. If they have changed since, `save_batch` writes the file
        by which the step can be made again.
        """
        before = self._newest()
        with complete_folder(self.folder / f"{state.serial:08d}", durable=self._durable) as part:
            trainer, batches = part / "trainer", part / "batches"
            if save is not None:
                trainer.mkdir()
                save(trainer)
            elif before is not None:
                for name in ("trainer", "batches"):
                    _link(before / name, part / name)
            if save_batch is not None:
                batches.mkdir(exist_ok=True)
                save_batch(batches / f"{state.step:08d}.safetensors")
            _write_state(part, state)
        self._remove_old()

    def folder_beside(self, step: int) -> Path:
        """Make a folder, in no checkpoint yet, for tensors that are written beside the loop."""
        folder = self.folder / f".{step:08d}.tensors.part"
        folder.mkdir()
        return folder

    def adopt(self, tensors: Path, step: int, serial: int) -> None:
        """Make a checkpoint of the newest one with the tensors of a step that `folder_beside` has;
        batches up to that step are no longer needed.
        """
        found = self.latest()
        assert found is not None, "a step's batch is in a checkpoint before its tensors are"
        with complete_folder(self.folder / f"{serial:08d}", durable=self._durable) as part:
            _link(tensors, part / "trainer")
            for batch in self.batches():
                if int(batch.stem) > step:
                    (part / "batches").mkdir(exist_ok=True)
                    os.link(batch, part / "batches" / batch.name)
            _write_state(part, msgspec.structs.replace(found[0], serial=serial))
        shutil.rmtree(tensors)
        self._remove_old()

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
        for folder, sizes in ((trainer, state.files), (newest / "batches", state.batches)):
            found = _sizes(folder)
            broken = sorted(name for name, size in sizes.items() if found.get(name) != size)
            if broken:
                raise _damaged(newest, f"{', '.join(broken)} missing or incomplete")
        return state, trainer if trainer.is_dir() else None

    def batches(self) -> list[Path]:
        """The newest checkpoint's batches of steps to make again, the oldest first."""
        newest = self._newest()
        return sorted((newest / "batches").glob("*")) if newest else []

    def _remove_old(self) -> None:
        for old in self._all()[:-_KEEP]:
            shutil.rmtree(old)

    def _newest(self) -> Path | None:
        found = self._all()
        return found[-1] if found else None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*"))


def _link(folder: Path, target: Path) -> None:
    """Have a folder's files in another, too, if it exists. As hard links: nothing is copied."""
    if folder.is_dir():
        shutil.copytree(folder, target, copy_function=os.link)


def _write_state(part: Path, state: CheckpointState) -> None:
    """Write the state of a checkpoint whose other files are there."""
    sizes = {"files": _sizes(part / "trainer"), "batches": _sizes(part / "batches")}
    state = msgspec.structs.replace(state, **sizes)
    (part / "state.json").write_bytes(msgspec.json.encode(state))


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
