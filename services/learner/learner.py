"""Runs the learner's loop: read → batch → train → checkpoint → update → ledger, in this order.

Even if it dies in between, an action is trained into at most one published version: nothing is
published before the checkpoint that holds it, and unpublished events of a checkpoint are published
when the learner resumes. What a step fails on is left out, and the learner continues
(`services.learner.stepping`). A batch beyond the bounds of drift or entropy is filtered, and the
learner stops.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from fulgurite.avro.codec import Codec
from fulgurite.enums import LedgerTerm, Mode
from fulgurite.events import DeadLetter, Event, LedgerEntry, Tombstone, Trajectory
from fulgurite.learning.amendments import amended_entries
from fulgurite.learning.baselines import MovingAverages
from fulgurite.learning.batch_metrics import batch_metrics
from fulgurite.learning.batching import BatchGroup, BatchRules, RowBatcher, ledger_entries
from fulgurite.topics import DEAD_LETTERS
from fulgurite.versions import Version
from services.common.kafka.consumer import Record
from services.common.kafka.dead_letters import addressed
from services.common.kafka.producer import EventProducer
from services.common.runtime import liveness, logs
from services.common.runtime.clock import now_ms
from services.learner.checkpoint import CheckpointState
from services.learner.config import RunConfig
from services.learner.dead_rows import odd_row, rows_of_culprits, unreadable
from services.learner.errors import CheckpointForeign
from services.learner.explaining import misplaced_rule, shortcomings
from services.learner.gauges import show_groups, show_refusal, show_start, show_update
from services.learner.policy_log import PolicyLog
from services.learner.redo import Batch
from services.learner.rows import oddity, permuted, without_actions
from services.learner.settings import LearnerSettings
from services.learner.source import TrajectorySource, trainable
from services.learner.stepping import MakesSteps, Stepped, Stepping
from services.learner.versions import (
    NOTHING_READ,
    HasWeights,
    PolicyVersions,
    Progress,
    progress_of,
)

_READ_TIMEOUT_S = 0.2
_SETTLE_AFTER_S = 1.0
"""Groups that teach nothing are settled together: each time costs a checkpoint without tensors."""

_UNREPORTED_GROUPS = 10_000
"""Where nothing is trained for long, metrics are of the newest groups."""

logger = logs.get()


class Trains(HasWeights, MakesSteps, Protocol):
    """The interface of `services.learner.trainer.Trainer` that the loop uses."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has."""
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
        self._versions = PolicyVersions(settings, config, trainer, policy_log, codec)
        rules = BatchRules(
            groups_per_step=config.batch.groups,
            max_staleness=config.batch.max_staleness,
            max_row_tokens=config.batch.max_row_tokens,
            tokens_per_step=config.batch.tokens,
            baseline=config.batch.baseline,
        )
        self._averages = MovingAverages(config.batch.baseline_decay)
        self._trained_batches = 0
        """Batches that a version was made of; the schedule of the learning rate counts them."""
        self.batcher = RowBatcher(config.policy.name, rules)
        self._topic_id = source.topic_id()
        self._waiting_since: float | None = None
        self._amending_since: float | None = None
        self._settling_since: float | None = None
        self._stopping = False
        self._has_warned_of_rules = False
        self._stopwatch = self._versions.stopwatch
        self._unreported: deque[BatchGroup] = deque(maxlen=_UNREPORTED_GROUPS)
        """Groups that were settled since the last update, for the metrics of the next."""

    @property
    def version(self) -> Version:
        """The newest version."""
        return self._versions.version

    def resume(self) -> None:
        """Resume from the newest checkpoint, publish its pending events, acquire the next epoch.

        Raises LearnerError.
        """
        show_start(self.config.policy.name)
        found = self._versions.newest_checkpoint()
        if found is not None:
            state, tensors = found
            self._check_ours(state)
            settled = self._versions.resume(state, tensors)
            self._versions.redo(self._trainer)
            progress = progress_of(state)
            self.batcher.restore(progress.positions, progress.settled, settled)
            self._averages.restore(progress.baselines)
            self._trained_batches = progress.trained_batches
        else:
            # Without a version, another folder's learner may have settled groups all the same.
            self.batcher.restore((), {}, self._policy_log.ledger().settled)
        self.batcher.lineage = self._versions.lineage
        self._versions.acquire_epoch()
        self._source.start(self.batcher.positions())

    def stop(self) -> None:
        """Make `run` return after the current step."""
        self._stopping = True

    def run(self) -> None:
        """Read and train until stopped, or with `policy.until_end` until the topic is settled.

        Raises LearnerError, LogUnavailable.
        """
        while not self._stopping:
            liveness.beat()
            self._versions.write_tensors_beside()
            # What is ready to be trained is not read past: a long topic would fill the memory.
            if not self.batcher.has_batch(self.version):
                self._read()
            has_trained = self._train_if_ready()
            self._account_if_due()
            show_groups(self.batcher, self.version)
            if not has_trained and self._is_through():
                logger.info("the topic is settled", version=str(self.version))
                break
        self._versions.leave_tensors()

    def _is_at_end(self) -> bool:
        return self.config.policy.until_end and self._source.is_at_end()

    def _is_through(self) -> bool:
        """Whether nothing of the topic is left to do. What is still ready makes no batch: there is
        nothing to compare it with.
        """
        batcher = self.batcher
        return (
            self._is_at_end()
            and not batcher.amendments()
            and batcher.complete() == batcher.ready(self.version)
        )

    def _read(self) -> None:
        began, found = time.monotonic(), False
        for record in self._source.read(_READ_TIMEOUT_S):
            found = True
            self._apply(record)
        self._stopwatch.add("read" if found else "wait", time.monotonic() - began)

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
            self._bury(unreadable(record, self._source.topic_name))

    def _checked(self, record: Record, row: Trajectory) -> Trajectory | Tombstone:
        """Return the row; a malformed one goes to `dead.letters` and loses its actions."""
        odd = oddity(row, self._trainer.vocabulary)
        if odd is None:
            return row
        self._bury(odd_row(record, row, odd, self._source.topic_name))
        return without_actions(row)

    def _train_if_ready(self) -> bool:
        """Train a batch, if there is one; returns whether there was."""
        groups = self.batcher.next_batch(self.version, partial=self._waited_long())
        if not groups:
            return False
        self._waiting_since = None
        self._policy_log.check_epoch()
        began = time.monotonic()
        permute = self.config.batch.permute_rewards
        if permute is not None:
            groups = permuted(groups, permute + self.version.step)
        for line in shortcomings(groups, self.config.batch.max_row_tokens):
            logger.warning(line)
        self._warn_of_rules(groups)
        stepped = self._make_steps(groups)
        letters = rows_of_culprits(stepped.culprits, self.version.policy, self._source)
        if stepped.batches:
            self._make_version(stepped, letters, began)
        else:
            logger.error("no step was made of a batch")
            show_refusal(self.version.policy)
            self._settle(stepped.groups, letters)
        if stepped.refusal is not None:
            # A person may change the run's keys now.
            self._versions.leave_tensors()
            raise stepped.refusal
        return True

    def _warn_of_rules(self, groups: Sequence[BatchGroup]) -> None:
        """Warn once of credit rules that do not go with what credits are compared with."""
        line = misplaced_rule(groups, self.config.algorithm.algorithm)
        if line is not None and not self._has_warned_of_rules:
            self._has_warned_of_rules = True
            logger.warning(line)

    def _make_steps(self, groups: Sequence[BatchGroup]) -> Stepped:
        moving = self.config.batch.baseline == "moving_average"
        self._averages.begin(groups)
        stepped = Stepping(
            self._trainer,
            self.config,
            self._stopwatch,
            self._trained_batches + 1,
            self._averages if moving else None,
        ).make(groups)
        self._averages.observe(groups)
        return stepped

    def _make_version(self, stepped: Stepped, letters: Sequence[DeadLetter], began: float) -> None:
        """Publish what a batch has made of the weights, and account for its groups."""
        parent, artifact = self._versions.advance()
        self._trained_batches += 1
        settled = self._with_others(stepped.groups)
        self._unreported += settled
        metrics = batch_metrics(self._unreported) | stepped.metrics
        self._unreported.clear()
        update = self._versions.update(
            parent,
            artifact,
            stepped.probe_row,
            topic=self.config.policy.topic,
            positions=self.batcher.positions(),
            trained_actions=_trained_actions(settled),
            metrics=metrics | {"step_seconds": time.monotonic() - began},
        )
        # Steps that a split batch made are not made again from one batch.
        whole = stepped.batches[0] if len(stepped.batches) == 1 else None
        self._publish([update, *letters, *self._entries(settled)], trained=True, batch=whole)
        show_update(update)
        # The log has the plain ones: there are many by name.
        plain = {name: value for name, value in update.metrics.items() if "/" not in name}
        logger.info("settled", version=str(self.version), **plain)

    def _settle(self, groups: Sequence[BatchGroup], letters: Sequence[DeadLetter] = ()) -> None:
        """Account for groups of which no version came, and for all amendments."""
        settled = self._with_others(groups)
        self._unreported += settled
        entries = self._entries(settled)
        self._publish([*letters, *entries], trained=False)
        logger.info("settled without a step", groups=len(settled), entries=len(entries))

    def _with_others(self, groups: Sequence[BatchGroup]) -> tuple[BatchGroup, ...]:
        """The groups, and those that are complete and teach nothing."""
        return (*groups, *self.batcher.without_signal(self.version))

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
        self._settle(())

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
        if self._is_at_end():
            return True
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        return _is_over(self._waiting_since, self.config.batch.max_wait_s, now)

    def _publish(
        self, events: Sequence[Event], *, trained: bool, batch: Batch | None = None
    ) -> None:
        """Write a checkpoint and publish. `batch`: what made the newest version, if it is one."""
        positions = self.batcher.positions()
        progress = Progress(
            self.config.policy.topic,
            self._topic_id,
            positions,
            self.batcher.settled(),
            self._averages.state(),
            self._trained_batches,
        )
        self._versions.publish(events, progress, trained=trained, batch=batch)
        self._source.show(positions)

    def _check_ours(self, state: CheckpointState) -> None:
        read = (state.topic, state.topic_id)
        known = (self.config.policy.topic, self._topic_id)
        if state.policy != self.config.policy.name or read not in (known, NOTHING_READ[:2]):
            raise CheckpointForeign(
                f"the checkpoint in {self.settings.data_dir} is of policy {state.policy} on topic "
                f"{state.topic} ({state.topic_id}), but this learner trains "
                f"{self.config.policy.name} on {self.config.policy.topic} ({self._topic_id}): set "
                "FULGURITE_POLICY, policy.topic or FULGURITE_DATA_DIR so that they match"
            )

    def _bury(self, letter: DeadLetter) -> None:
        logger.warning(
            "a record cannot be trained; it goes to dead.letters (see `fulgurite dlq list`)",
            partition=letter.partition,
            offset=letter.offset,
            error=f"{letter.error_type}: {letter.error}",
        )
        for key, part in addressed(letter):
            self._producer.publish_sync(DEAD_LETTERS, key, part)


def _trained_actions(groups: Sequence[BatchGroup]) -> int:
    return sum(
        outcome[0] is LedgerTerm.trained for group in groups for outcome in group.outcomes.values()
    )


def _is_over(since: float | None, wait_s: float, now: float) -> bool:
    """Whether a wait, if one began, has taken longer than it may."""
    return since is not None and now - since > wait_s
