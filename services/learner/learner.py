"""Runs the learner's loop: read → batch → train → checkpoint → update → ledger, in this order.

Even if it dies in between, an action is trained into at most one published version: nothing is
published before the checkpoint that holds it, and unpublished events of a checkpoint are published
when the learner resumes. A batch whose loss or gradient is not finite is not trained: its actions
are filtered, and the learner continues with the next batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Protocol

import msgspec
import numpy as np

from fulgurite.avro.codec import Codec
from fulgurite.enums import FilterReason, LedgerTerm, Mode, UpdateKind
from fulgurite.events import (
    Artifact,
    Event,
    LedgerEntry,
    PolicyUpdate,
    Probe,
    Tombstone,
    Trajectory,
)
from fulgurite.ids import action_id, derive_id
from fulgurite.learning.amendments import amended_entries
from fulgurite.learning.batching import (
    BatchGroup,
    BatchRules,
    RowBatcher,
    ledger_entries,
    untrained,
)
from fulgurite.learning.lineage import descends, lineage_of
from fulgurite.tokens import FloatArray, pack_ids, pack_logprobs, unpack_ids
from fulgurite.topics import DEAD_LETTERS
from fulgurite.versions import Version, base_version, parse_version
from services.common.kafka.consumer import Record
from services.common.kafka.dead_letters import addressed, unusable
from services.common.kafka.producer import EventProducer
from services.common.runtime import liveness, logs
from services.common.runtime.clock import now_ms
from services.learner.artifacts import ArtifactStore
from services.learner.checkpoint import CheckpointState, CheckpointStore
from services.learner.config import RunConfig
from services.learner.errors import (
    CheckpointForeign,
    CheckpointMissing,
    CheckpointOld,
    StepNotFinite,
)
from services.learner.explaining import shortcomings
from services.learner.policy_log import PolicyLog
from services.learner.retention import prune
from services.learner.rows import mini_batches, oddity, permuted, without_actions
from services.learner.settings import LearnerSettings
from services.learner.source import TrajectorySource, trainable
from services.learner.train_row import Trained, TrainRow

PROBE_TOKENS = 24
"""Tokens of a probe: enough to notice wrong weights, and cheap."""

_READ_TIMEOUT_S = 0.2
_SETTLE_AFTER_S = 1.0
"""Groups that teach nothing are settled together: each time costs a checkpoint without tensors."""

logger = logs.get()


class Trains(Protocol):
    """The interface of `services.learner.trainer.Trainer` that the loop uses."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has."""
        ...

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        """Make an optimizer step on each mini-batch; `step` counts batches from 1.

        Raises StepNotFinite; then no weight was changed.
        """
        ...

    def logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """Log-probabilities of each token but the first, shape (T-1,)."""
        ...

    def export(self, path: Path) -> None:
        """Write the weights as safetensors under Hugging Face's names."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and random state."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        ...


class Learner:
    """Trains one policy. Not thread-safe; `run` returns after `stop`."""

    def __init__(
        self,
        settings: LearnerSettings,
        config: RunConfig,
        trainer: Trains,
        source: TrajectorySource,
        policy_log: PolicyLog,
        producer: EventProducer,
        codec: Codec,
    ) -> None:
        self.settings = settings
        self.config = config
        self._trainer = trainer
        self._source = source
        self._policy_log = policy_log
        self._producer = producer
        self._codec = codec
        self._checkpoints = CheckpointStore(
            settings.data_dir, config.policy.name, durable=settings.durable_files
        )
        self._artifacts = ArtifactStore(
            settings.data_dir,
            config.policy.name,
            config.policy.model,
            durable=settings.durable_files,
        )
        rules = BatchRules(
            groups_per_step=config.batch.groups,
            max_staleness=config.batch.max_staleness,
            max_row_tokens=config.batch.max_row_tokens,
        )
        self.batcher = RowBatcher(config.policy.name, rules)
        self.version = base_version(config.policy.name)
        self._lineage = lineage_of(self.version, ())
        self._step = 0
        self._serial = 0
        self._topic_id = source.topic_id()
        self._waiting_since: float | None = None
        self._amending_since: float | None = None
        self._settling_since: float | None = None
        self._stopping = False

    def resume(self) -> None:
        """Resume from the newest checkpoint, publish its pending events, acquire the next epoch.

        Raises LearnerError.
        """
        found = self._checkpoints.latest()
        if found is None:
            self._refuse_known_versions()
        else:
            state, tensors = found
            self._check_ours(state)
            self.version = parse_version(state.version)
            self._step, self._serial = state.step, state.serial
            if tensors is not None:
                self._trainer.load(tensors)
            events = [self._codec.decode(frame) for frame in state.pending]
            self._lineage = self._checked_lineage(events)
            # Publish before the next epoch is acquired: an update counts only while its epoch is
            # the highest in the log.
            ledger = self._policy_log.ledger()
            published = self._policy_log.republish(events, ledger)
            # The ledger also knows groups that are written again long after they were settled.
            pending = {
                event.group_id: event.group_revision
                for event in events
                if isinstance(event, LedgerEntry)
            }
            self.batcher.restore(state.positions, state.settled, ledger.settled | pending)
            logger.info(
                "resumed", version=state.version, checkpoint=state.serial, republished=published
            )
        self.batcher.lineage = self._lineage
        epoch = self._policy_log.acquire_epoch(self._step, self.config.resolved())
        self._source.start(self.batcher.positions())
        logger.info("epoch acquired", epoch=epoch, step=self._step)

    def _checked_lineage(self, pending: Sequence[Event]) -> dict[int, int]:
        """What the checkpoint's version descends from. Raises CheckpointOld."""
        to_come = [event for event in pending if isinstance(event, PolicyUpdate)]
        lineage = lineage_of(self.version, [*self._policy_log.updates, *to_come])
        newest = self._policy_log.newest
        if (
            newest is not None
            and not descends(lineage, parse_version(newest.version or ""))
            and self.config.checkpoint.resume_from != str(self.version)
        ):
            raise CheckpointOld(
                f"the checkpoint in {self.settings.data_dir} is of {self.version}, and "
                f"policy.updates has {newest.version}, which does not come from it: the folder was "
                "restored from an older copy. Restore the newer one, or go on from here with "
                f'checkpoint.resume_from = "{self.version}"; what later versions generated is then '
                "stale"
            )
        return lineage

    def stop(self) -> None:
        """Make `run` return after the current step."""
        self._stopping = True

    def run(self) -> None:
        """Read and train until stopped. Raises LearnerError, LogUnavailable."""
        while not self._stopping:
            liveness.beat()
            # What is ready to be trained is not read past: a long topic would fill the memory.
            if self.batcher.ready(self.version) < self.config.batch.groups:
                for record in self._source.read(_READ_TIMEOUT_S):
                    self._apply(record)
            self._train_if_ready()
            self._account_if_due()

    def _apply(self, record: Record) -> None:
        event = trainable(record)
        if event is not None:
            if (
                isinstance(event, Trajectory)
                and event.mode is Mode.train
                and event.policy == self.config.policy.name
            ):
                event = self._checked(record, event)
            self.batcher.add(record.partition, record.offset, event)
        elif record.error is not None:
            self._bury(record)

    def _checked(self, record: Record, row: Trajectory) -> Trajectory | Tombstone:
        """Return the row; a malformed one goes to `dead.letters` and loses its actions."""
        odd = oddity(row, self._trainer.vocabulary)
        if odd is None:
            return row
        lost = tuple(
            action_id(action.call_id, action.choice) for action in row.actions if action.loss
        )
        self._bury(msgspec.structs.replace(record, error=f"OddRow: {odd}"), lost)
        return without_actions(row)

    def _train_if_ready(self) -> None:
        groups = self.batcher.next_batch(self.version, partial=self._waited_long())
        if not groups:
            return
        self._waiting_since = None
        self._policy_log.check_epoch()
        began = time.monotonic()
        permute = self.config.batch.permute_rewards
        if permute is not None:
            groups = permuted(groups, permute + self._step)
        for line in shortcomings(groups, self.config.batch.max_row_tokens):
            logger.warning(line)
        parts = mini_batches(groups, self.config)
        metrics = batch_metrics(groups, self.version)
        update: PolicyUpdate | None = None
        try:
            trained = self._trainer.train([rows for _, rows in parts], self._step + 1)
        except StepNotFinite as error:
            logger.error("no step was made", error=str(error))
            groups = _settled(parts, [False] * len(parts))
        else:
            groups = _settled(parts, trained.mini_batches)
            # A step takes minutes, in which another learner may have taken over.
            self._policy_log.check_epoch()
            self._step += 1
            parent, self.version = (
                self.version,
                Version(self.config.policy.name, self._policy_log.epoch, self._step),
            )
            self._lineage[self.version.epoch] = self.version.step
            artifact = self._artifacts.write(self.version, self._trainer.export)
            metrics |= trained.metrics | {"step_seconds": time.monotonic() - began}
            row = next(
                rows[0] for (_, rows), done in zip(parts, trained.mini_batches, strict=True) if done
            )
            update = self._update(parent, artifact, row, groups, metrics)
        entries = self._entries((*groups, *self.batcher.without_signal(self.version)))
        events: list[Event] = [update, *entries] if update else [*entries]
        self._checkpoint(events, trained=update is not None)
        self._policy_log.publish(events)
        self._prune()
        self._source.show(self.batcher.positions())
        logger.info("settled", version=str(self.version), **metrics)

    def _prune(self) -> None:
        """Remove old weights, by the routes as they are now."""
        self._policy_log.catch_up(None)
        prune(
            self._artifacts.folder,
            self.config.policy.name,
            self.config.publish.keep,
            self._policy_log.routes.values(),
        )

    def _account_if_due(self) -> None:
        """Tell the ledger of groups that teach nothing and of amendments, if no step did so before:
        of the former soon, for a runner waits for them.
        """
        now = time.monotonic()
        if self.batcher.complete() > self.batcher.ready(self.version):
            self._settling_since = self._settling_since or now
        if self.batcher.amendments():
            self._amending_since = self._amending_since or now
        if not (
            _is_over(self._settling_since, _SETTLE_AFTER_S, now)
            or _is_over(self._amending_since, self.config.batch.max_wait_s, now)
        ):
            return
        self._policy_log.check_epoch()
        groups = self.batcher.without_signal(self.version)
        entries = self._entries(groups)
        self._checkpoint(entries, trained=False)
        self._policy_log.publish(entries)
        self._source.show(self.batcher.positions())
        logger.info("settled without a step", groups=len(groups), entries=len(entries))

    def _entries(self, groups: Sequence[BatchGroup]) -> list[LedgerEntry]:
        """What the ledger is to be told: of these groups and of all amendments."""
        self._settling_since = self._amending_since = None
        return [*ledger_entries(groups, self.version, now_ms()), *self._amendments()]

    def _amendments(self) -> list[LedgerEntry]:
        """Make ledger entries for newer revisions of settled groups, and mark these as done."""
        held = self.batcher.amendments()
        if not held:
            return []
        accounts = self._policy_log.accounts(held)
        entries = [
            entry
            for group in held
            for entry in amended_entries(group, accounts[group.group_id], self.version, now_ms())
        ]
        for group in held:
            self.batcher.amend(group)
        logger.info("amended", groups=len(held), entries=len(entries))
        return entries

    def _waited_long(self) -> bool:
        if not self.batcher.ready(self.version):
            self._waiting_since = None
            return False
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        return _is_over(self._waiting_since, self.config.batch.max_wait_s, now)

    def _update(
        self,
        parent: Version,
        artifact: Artifact,
        row: TrainRow,
        groups: Sequence[BatchGroup],
        metrics: Mapping[str, float],
    ) -> PolicyUpdate:
        return PolicyUpdate(
            event_id=derive_id("update", str(self.version)),
            event_time=now_ms(),
            policy=self.config.policy.name,
            kind=UpdateKind.update,
            epoch=self.version.epoch,
            step=self.version.step,
            version=str(self.version),
            parent_version=str(parent),
            learner_id=self.settings.learner_id,
            artifact=artifact,
            probe=self._probe(row),
            topic=self.config.policy.topic,
            positions=self.batcher.positions(),
            trained_actions=sum(
                outcome[0] is LedgerTerm.trained
                for group in groups
                for outcome in group.outcomes.values()
            ),
            metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        )

    def _probe(self, row: TrainRow) -> Probe:
        token_ids = row.token_ids[-PROBE_TOKENS:]
        logprobs = self._trainer.logprobs([int(token) for token in token_ids])
        return Probe(
            token_ids=pack_ids(token_ids),
            logprobs=pack_logprobs(np.asarray(logprobs, dtype=np.float32)),
        )

    def _checkpoint(self, pending: Sequence[Event], *, trained: bool) -> None:
        self._serial += 1
        state = CheckpointState(
            policy=self.config.policy.name,
            topic=self.config.policy.topic,
            topic_id=self._topic_id,
            epoch=self._policy_log.epoch,
            step=self._step,
            version=str(self.version),
            serial=self._serial,
            positions=self.batcher.positions(),
            settled=self.batcher.settled(),
            pending=tuple(self._codec.encode(event) for event in pending),
        )
        self._checkpoints.write(state, self._trainer.save if trained else None)

    def _check_ours(self, state: CheckpointState) -> None:
        if (state.policy, state.topic, state.topic_id) != (
            self.config.policy.name,
            self.config.policy.topic,
            self._topic_id,
        ):
            raise CheckpointForeign(
                f"the checkpoint in {self.settings.data_dir} is of policy {state.policy} on topic "
                f"{state.topic} ({state.topic_id}), but this learner trains "
                f"{self.config.policy.name} on {self.config.policy.topic} ({self._topic_id}): set "
                "FULGURITE_POLICY, policy.topic or FULGURITE_DATA_DIR so that they match"
            )

    def _refuse_known_versions(self) -> None:
        known = [
            update.version
            for update in self._policy_log.updates
            if update.kind is UpdateKind.update
        ]
        if known:
            raise CheckpointMissing(
                f"policy.updates has versions up to {known[-1]}, but {self.settings.data_dir} has "
                f"no checkpoint of {self.config.policy.name}; point FULGURITE_DATA_DIR to the "
                "folder with it, or train under another policy.name"
            )

    def _bury(self, record: Record, actions: tuple[str, ...] = ()) -> None:
        logger.warning(
            "a record cannot be trained; it goes to dead.letters (see `fulgurite dlq list`)",
            partition=record.partition,
            offset=record.offset,
            error=record.error,
        )
        letter = unusable(
            record, self._source.topic_name, "learner", stage="learner.read", actions=actions
        )
        for key, part in addressed(letter):
            self._producer.publish_sync(DEAD_LETTERS, key, part)


def _settled(
    parts: Sequence[tuple[Sequence[BatchGroup], object]], trained: Sequence[bool]
) -> tuple[BatchGroup, ...]:
    """The groups of a batch; those of mini-batches that were not trained are `not_finite`."""
    settled: list[BatchGroup] = []
    for (groups, _), done in zip(parts, trained, strict=True):
        if not done:
            logger.error(
                "a mini-batch is not trained: its loss or gradient is not finite",
                groups=[group.group_id for group in groups],
            )
        settled += [
            group if done else untrained(group, FilterReason.not_finite) for group in groups
        ]
    return tuple(settled)


def _is_over(since: float | None, wait_s: float, now: float) -> bool:
    """Whether a wait, if one began, has taken longer than it may."""
    return since is not None and now - since > wait_s


def batch_metrics(groups: Sequence[BatchGroup], version: Version) -> dict[str, float]:
    """Describe a batch in numbers, for the update and the log."""
    rewards = [reward for group in groups for reward in group.rewards]
    episodes = [episode for group in groups for episode in group.episodes]
    return {
        "version_step": float(version.step),
        "groups": float(len(groups)),
        "groups_with_signal": float(sum(bool(group.episodes) for group in groups)),
        "reward_mean": fmean(rewards) if rewards else 0.0,
        "rows_per_episode": fmean(len(episode.rows) for episode in episodes) if episodes else 0.0,
        "row_tokens": float(
            sum(len(unpack_ids(row.token_ids)) for episode in episodes for row in episode.rows)
        ),
    }
