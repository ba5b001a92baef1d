"""The versions of a policy, as whoever trains it makes them: resumes from the newest checkpoint,
acquires an epoch, and writes checkpoints, weights and updates.

Of every version the order is: checkpoint, `policy.updates`, `training.ledger`. The checkpoint holds
the events that are still to be published; a process that dies in between publishes them when it
resumes. Nobody waits for weights and optimizer to be written: the checkpoint has the step's batch,
and they are written beside the loop once the version is published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from fulgurite.avro.codec import Codec
from fulgurite.enums import ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, Event, LedgerEntry, PolicyUpdate, Position, Probe
from fulgurite.ids import derive_id
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.lineage import descends, lineage_of
from fulgurite.tokens import FloatArray, pack_ids, pack_logprobs
from fulgurite.versions import Version, base_version, parse_version
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.learner.artifacts import ArtifactStore
from services.learner.checkpoint import CheckpointState, CheckpointStore
from services.learner.config import RunConfig
from services.learner.errors import CheckpointMissing, CheckpointOld
from services.learner.metrics import Stopwatch
from services.learner.policy_log import PolicyLog
from services.learner.redo import Batch, MakesSteps, redo, write_step
from services.learner.retention import prune
from services.learner.settings import LearnerSettings
from services.learner.train_row import TrainRow

PROBE_TOKENS = 24
"""Tokens of a probe: enough to notice wrong weights, and cheap."""

logger = logs.get()


class HasWeights(Protocol):
    """The interface of `services.learner.trainer.Trainer` that versions are made by."""

    def logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """Log-probabilities of each token but the first, shape (T-1,)."""
        ...

    def export(self, path: Path) -> None:
        """Write the weights as safetensors, under Hugging Face's or PEFT's names; an adapter's
        configuration beside them. Or in several files beside, with an index.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random state."""
        ...

    def begin_to_save(self, folder: Path) -> None:
        """Begin what `save` does with what is there now, and return; one at a time."""
        ...

    def is_saved(self, *, wait: bool = False) -> bool:
        """Whether the last `begin_to_save` has ended; `wait` for it. Raises what it raised."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...


class _Beside(NamedTuple):
    """Tensors that are written beside the loop."""

    step: int
    folder: Path


class Progress(NamedTuple):
    """How far a topic was read when a checkpoint was written."""

    topic: str
    topic_id: str
    """Kafka's id of the topic."""
    positions: tuple[Position, ...]
    settled: dict[str, tuple[int, int]]
    """Groups settled at or above the positions: id → (partition, last offset)."""
    baselines: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """Moving averages (`fulgurite.learning.baselines`)."""
    trained_batches: int = 0
    """Batches that a learner has trained: the step of the newest one in the learning rate's
    schedule. Offline training counts its own steps.
    """


NOTHING_READ = Progress("", "", (), {})
"""Of a policy that was only trained offline."""


def progress_of(state: CheckpointState) -> Progress:
    """How far the topic was read at a checkpoint, and what the learner knew then."""
    batches = state.trained_batches
    return Progress(
        state.topic,
        state.topic_id,
        state.positions,
        dict(state.settled),
        dict(state.baselines),
        # Earlier releases took the version's step.
        state.step if batches is None else batches,
    )


class PolicyVersions:
    """The newest version of one policy, and how the next one is made. Not thread-safe."""

    def __init__(
        self,
        settings: LearnerSettings,
        config: RunConfig,
        trainer: HasWeights,
        policy_log: PolicyLog,
        codec: Codec,
    ) -> None:
        self._settings = settings
        self._config = config
        self._trainer = trainer
        self._policy_log = policy_log
        self._codec = codec
        self._checkpoints = CheckpointStore(
            settings.data_dir, config.policy.name, durable=settings.durable_files
        )
        self._artifacts = ArtifactStore(
            settings.data_dir,
            config.policy.name,
            config.policy.model,
            kind=ArtifactFormat(config.policy.weights.train),
            durable=settings.durable_files,
        )
        self.version = base_version(config.policy.name)
        self.lineage = lineage_of(self.version, ())
        """What the version descends from."""
        self._serial = 0
        self._beside: _Beside | None = None
        self._is_due = False
        """Whether tensors of the newest version are to be written beside the loop."""
        self.stopwatch = Stopwatch()
        """What the phases take; its owner adds those before the version."""

    def newest_checkpoint(self) -> tuple[CheckpointState, Path | None] | None:
        """Read the newest checkpoint; None if nothing was ever trained here.

        Raises CheckpointDamaged, and CheckpointMissing if the log knows versions.
        """
        found = self._checkpoints.latest()
        if found is None:
            self._refuse_known_versions()
        return found

    def resume(self, state: CheckpointState, tensors: Path | None) -> dict[str, str | None]:
        """Go on from a checkpoint, and publish its pending events.

        Returns the settled groups that the ledger knows, with their last revision. Raises
        CheckpointOld.
        """
        self.version = parse_version(state.version)
        self._serial = state.serial
        if tensors is not None:
            self._trainer.load(tensors)
        events = [self._codec.decode(frame) for frame in state.pending]
        self.lineage = self._checked_lineage(events)
        # Publish before the next epoch is acquired: an update counts only while its epoch is the
        # highest in the log.
        ledger = self._policy_log.ledger()
        published = self._policy_log.republish(events, ledger)
        logger.info(
            "resumed", version=state.version, checkpoint=state.serial, republished=published
        )
        # The ledger also knows groups that are written again long after they were settled.
        return ledger.settled | {
            event.group_id: event.group_revision
            for event in events
            if isinstance(event, LedgerEntry) and event.source == LEARNER
        }

    def redo(self, trainer: MakesSteps) -> None:
        """Make the steps again that the checkpoint has no tensors of. Raises StepNotRepeated."""
        redo(trainer, self._checkpoints.batches(), self._config)

    def leave_tensors(self) -> None:
        """Write a checkpoint with tensors unless the newest has no step to make again.

        The next start may then be with other keys. Raises EpochLost.
        """
        self._finish_beside()
        found = self._checkpoints.latest()
        if found is None or not self._checkpoints.batches():
            return
        self._policy_log.check_epoch()
        self._serial += 1
        state = msgspec.structs.replace(found[0], serial=self._serial)
        self._checkpoints.write(state, self._trainer.save)

    def write_tensors_beside(self) -> None:
        """Take over tensors that were written beside the loop, and begin with those that are due.

        Raises EpochLost, and what writing has raised.
        """
        if self._beside is None and not self._is_due:
            return
        with self.stopwatch.phase("checkpoint"):
            self._take_tensors(wait=False)
            if self._is_due and self._beside is None:
                self._is_due = False
                step = self.version.step
                self._beside = _Beside(step, self._checkpoints.folder_beside(step))
                self._trainer.begin_to_save(self._beside.folder)

    def acquire_epoch(self, offline_method: str | None = None) -> None:
        """Acquire the next epoch, so that no other learner trains the policy. Raises EpochLost."""
        epoch = self._policy_log.acquire_epoch(
            self.version.step, self._config.resolved(), offline_method
        )
        logger.info("epoch acquired", epoch=epoch, step=self.version.step)

    def advance(self, steps: int = 1) -> tuple[Version, Artifact]:
        """Name the version after so many steps, and write its weights; returns its parent and the
        artifact. Raises EpochLost.
        """
        # A step takes minutes, in which another learner may have taken over.
        self._policy_log.check_epoch()
        parent = self.version
        self.version = Version(parent.policy, self._policy_log.epoch, parent.step + steps)
        self.lineage[self.version.epoch] = self.version.step
        with self.stopwatch.phase("export"):
            return parent, self._artifacts.write(self.version, self._trainer.export)

    def update(
        self,
        parent: Version,
        artifact: Artifact,
        row: TrainRow,
        *,
        topic: str | None,
        positions: tuple[Position, ...],
        trained_actions: int,
        metrics: Mapping[str, float],
        offline_method: str | None = None,
    ) -> PolicyUpdate:
        """Make the update of the newest version, with the seconds of all phases since the last one.

        `row`: one it was trained on, to probe it by.
        """
        measured = {
            **metrics,
            "version_step": float(parent.step),
            **self.stopwatch.metrics(),
        }
        return PolicyUpdate(
            event_id=derive_id("update", str(self.version)),
            event_time=now_ms(),
            policy=self._config.policy.name,
            kind=UpdateKind.update,
            epoch=self.version.epoch,
            step=self.version.step,
            version=str(self.version),
            parent_version=str(parent),
            learner_id=self._settings.learner_id,
            artifact=artifact,
            probe=self._probe(row),
            topic=topic,
            positions=positions,
            trained_actions=trained_actions,
            metrics={name: value for name, value in measured.items() if math.isfinite(value)},
            offline_method=offline_method,
        )

    def publish(
        self,
        events: Sequence[Event],
        progress: Progress,
        *,
        trained: bool,
        batch: Batch | None = None,
    ) -> None:
        """Write a checkpoint that holds the events, publish them, and remove old weights.

        `trained`: whether the weights changed since the last checkpoint. `batch`: by what; with it
        tensors are written later (`write_tensors_beside`), every `checkpoint.every_steps` steps.
        """
        probe = next((e.probe for e in events if isinstance(e, PolicyUpdate) and e.probe), None)
        with self.stopwatch.phase("checkpoint"):
            save, save_batch = None, None
            if trained and batch is not None and probe is not None:
                save_batch = partial(
                    write_step,
                    version=str(self.version),
                    batch=batch,
                    probe=probe,
                    schedule_step=progress.trained_batches,
                    config=self._config,
                )
                self._is_due |= self.version.step % self._config.checkpoint.every_steps == 0
            elif trained:
                self._finish_beside()
                save = self._trainer.save
            self._serial += 1
            self._checkpoints.write(self._state(events, progress), save, save_batch)
        with self.stopwatch.phase("publish"):
            self._policy_log.publish(events)
        if trained:
            self.write_tensors_beside()
            self._prune()

    def _state(self, events: Sequence[Event], progress: Progress) -> CheckpointState:
        return CheckpointState(
            policy=self._config.policy.name,
            topic=progress.topic,
            topic_id=progress.topic_id,
            epoch=self._policy_log.epoch,
            step=self.version.step,
            version=str(self.version),
            serial=self._serial,
            positions=progress.positions,
            settled=progress.settled,
            baselines=dict(progress.baselines),
            trained_batches=progress.trained_batches,
            pending=tuple(self._codec.encode(event) for event in events),
        )

    def _finish_beside(self) -> None:
        """Have nothing written beside the loop that would come after tensors that are newer."""
        self._take_tensors(wait=True)
        self._is_due = False

    def _take_tensors(self, *, wait: bool) -> None:
        """Make a checkpoint with the tensors that were written beside the loop, if they are."""
        beside = self._beside
        if beside is None or not self._trainer.is_saved(wait=wait):
            return
        self._beside = None
        self._policy_log.check_epoch()
        self._serial += 1
        self._checkpoints.adopt(beside.folder, beside.step, self._serial)
        logger.info("weights and optimizer were written", step=beside.step)

    def _prune(self) -> None:
        """Remove old weights, by the routes as they are now."""
        self._policy_log.catch_up(None)
        prune(
            self._artifacts.folder,
            self._config.policy.name,
            self._config.publish.keep,
            self._policy_log.routes.values(),
        )

    def _checked_lineage(self, pending: Sequence[Event]) -> dict[int, int]:
        """What the checkpoint's version descends from. Raises CheckpointOld."""
        to_come = [event for event in pending if isinstance(event, PolicyUpdate)]
        lineage = lineage_of(self.version, [*self._policy_log.updates, *to_come])
        newest = self._policy_log.newest
        if (
            newest is not None
            and not descends(lineage, parse_version(newest.version or ""))
            and self._config.checkpoint.resume_from != str(self.version)
        ):
            raise CheckpointOld(
                f"the checkpoint in {self._settings.data_dir} is of {self.version}, and "
                f"policy.updates has {newest.version}, which does not come from it: the folder was "
                "restored from an older copy. Restore the newer one, or go on from here with "
                f'checkpoint.resume_from = "{self.version}"; what later versions generated is then '
                "stale"
            )
        return lineage

    def _refuse_known_versions(self) -> None:
        known = [
            update.version
            for update in self._policy_log.updates
            if update.kind is UpdateKind.update
        ]
        if known:
            raise CheckpointMissing(
                f"policy.updates has versions up to {known[-1]}, but {self._settings.data_dir} has "
                f"no checkpoint of {self._config.policy.name}; point FULGURITE_DATA_DIR to the "
                "folder with it, or train under another policy.name"
            )

    def _probe(self, row: TrainRow) -> Probe:
        token_ids = row.token_ids[-PROBE_TOKENS:]
        logprobs = self._trainer.logprobs([int(token) for token in token_ids])
        return Probe(
            token_ids=pack_ids(token_ids),
            logprobs=pack_logprobs(np.asarray(logprobs, dtype=np.float32)),
        )
