"""Acquires an epoch in `policy.updates`, and publishes a learner's updates and ledger entries.

A learner that finds a later epoch in the log was replaced by another learner, and stops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from confluent_kafka import TopicPartition

from fulgurite.avro.codec import Codec
from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import DeadLetter, Event, LedgerEntry, PolicyRoute, PolicyUpdate
from fulgurite.ids import derive_id
from fulgurite.learning.amendments import accounts_of
from fulgurite.learning.batching import LEARNER, PendingGroup
from fulgurite.learning.policy_epochs import PolicyEpochs
from fulgurite.topics import DEAD_LETTERS, POLICY_ROUTES, POLICY_UPDATES, TRAINING_LEDGER
from services.common.kafka.consumer import make_consumer, read_all, read_message
from services.common.kafka.dead_letters import addressed
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms
from services.learner.errors import EpochLost

_SKEW_MS = 60_000
"""How far the clocks that stamp a group's start and the ledger's records may differ."""


class LedgerMemory(NamedTuple):
    """What `training.ledger` holds from the past."""

    event_ids: set[str]
    settled: dict[str, str | None]
    """Settled groups of this policy, with the last revision that the ledger knows.

    They are never trained again.
    """


class PolicyLog:
    """One policy's updates, read and written by its learner. Not thread-safe."""

    def __init__(
        self,
        kafka: KafkaSettings,
        codec: Codec,
        producer: EventProducer,
        policy: str,
        learner_id: str,
    ) -> None:
        self._kafka = kafka
        self._codec = codec
        self._producer = producer
        self._policy = policy
        self._learner_id = learner_id
        self.updates: list[PolicyUpdate] = []
        """The events of this policy in `policy.updates`, in order."""
        self.newest: PolicyUpdate | None = None
        """The last update that counts: of the learner that holds its epoch."""
        self.epoch = 0
        """The epoch of this learner; 0 before `acquire_epoch`."""
        self.routes: dict[str, PolicyRoute] = {}
        """The last route of each alias, whatever its policy."""
        self._epochs = PolicyEpochs()
        self._seen: set[str] = set()
        places: list[TopicPartition] = []
        for topic in (POLICY_UPDATES, POLICY_ROUTES):
            read = 0
            for record in read_all(kafka, topic, codec):
                self._apply(record.event)
                read = record.offset + 1
            places.append(TopicPartition(kafka.topic(topic), 0, read))
        self._consumer = make_consumer(kafka)
        self._consumer.assign(places)

    def acquire_epoch(self, step: int, config: str, offline_method: str | None = None) -> int:
        """Acquire the next epoch and return it. Raises EpochLost if another learner was first.

        `offline_method`: what a recording is trained with; None for a learner.
        """
        epoch = 1 + self._epochs.highest
        claim = PolicyUpdate(
            event_id=derive_id("claim", self._policy, epoch, self._learner_id, time.time_ns()),
            event_time=now_ms(),
            policy=self._policy,
            kind=UpdateKind.claim,
            epoch=epoch,
            step=step,
            learner_id=self._learner_id,
            trained_actions=0,
            config=config,
            offline_method=offline_method,
        )
        delivery = self._producer.publish_sync(POLICY_UPDATES, self._policy, claim)
        self.catch_up(delivery.offset)
        first = self._epochs.claims[epoch]
        if first.event_id != claim.event_id:
            raise EpochLost(
                f"learner {first.learner_id} acquired epoch {epoch} of {self._policy} first "
                "(policy.updates); stop one of the two learners"
            )
        self.epoch = epoch
        return epoch

    def check_epoch(self) -> None:
        """Raise EpochLost if another learner has acquired a later epoch."""
        self.catch_up(None)
        later = [claim for epoch, claim in self._epochs.claims.items() if epoch > self.epoch]
        if later:
            raise EpochLost(
                f"learner {later[0].learner_id} acquired epoch {later[0].epoch} of {self._policy} "
                f"(policy.updates); this learner, of epoch {self.epoch}, stops. Run one learner "
                "per policy"
            )

    def catch_up(self, up_to: int | None) -> None:
        """Read new updates and routes; wait until the update at offset `up_to` has come, if it is
        given.
        """
        while True:
            message = self._consumer.poll(5.0 if up_to is not None else 0.0)
            if message is None:
                if up_to is None:
                    return
                continue
            if message.error() is not None:
                continue
            record = read_message(message, self._codec)
            self._apply(record.event)
            is_update = message.topic() == self._kafka.topic(POLICY_UPDATES)
            if up_to is not None and is_update and record.offset >= up_to:
                return

    def publish(self, events: Sequence[Event]) -> None:
        """Publish updates, dead letters and ledger entries in order.

        An update's time is that at which it is published. Every other event is acknowledged before
        the entries after it are sent.
        """
        entries: list[LedgerEntry] = []
        for event in events:
            if isinstance(event, PolicyUpdate):
                self._publish_entries(entries)
                entries = []
                published = msgspec.structs.replace(event, event_time=now_ms())
                self._producer.publish_sync(POLICY_UPDATES, event.policy, published)
            elif isinstance(event, DeadLetter):
                for key, part in addressed(event):
                    self._producer.publish_sync(DEAD_LETTERS, key, part)
            elif isinstance(event, LedgerEntry):
                entries.append(event)
        self._publish_entries(entries)

    def ledger(self) -> LedgerMemory:
        """Read the whole ledger once."""
        entries = [
            r.event
            for r in read_all(self._kafka, TRAINING_LEDGER, self._codec)
            if isinstance(r.event, LedgerEntry)
        ]
        ours = [
            entry for entry in entries if entry.policy == self._policy and entry.source == LEARNER
        ]
        return LedgerMemory(
            {entry.event_id for entry in entries},
            {entry.group_id: entry.group_revision for entry in ours},
        )

    def accounts(self, groups: Sequence[PendingGroup]) -> dict[str, dict[str, LedgerTerm]]:
        """Read from the ledger the terms of the actions of settled groups, by group."""
        keys = {held.group_id.encode() for held in groups}
        partitions = sorted({held.partition for held in groups})
        since = max(0, min(held.started_at for held in groups) - _SKEW_MS)
        found: dict[str, list[LedgerEntry]] = {held.group_id: [] for held in groups}
        for record in read_all(
            self._kafka,
            TRAINING_LEDGER,
            self._codec,
            partitions=partitions,
            since_ms=since,
            keys=keys,
        ):
            entry = record.event
            if (
                isinstance(entry, LedgerEntry)
                and entry.policy == self._policy
                and entry.source == LEARNER
            ):
                found[entry.group_id].append(entry)
        return {group_id: accounts_of(entries) for group_id, entries in found.items()}

    def republish(self, events: Sequence[Event], ledger: LedgerMemory) -> int:
        """Publish the events of a checkpoint that the log lacks; returns how many."""
        missing = [
            event
            for event in events
            if event.event_id not in self._seen and event.event_id not in ledger.event_ids
        ]
        self.publish(missing)
        return len(missing)

    def close(self) -> None:
        """Close the consumer; the producer belongs to the caller."""
        self._consumer.close()

    def _publish_entries(self, entries: Sequence[LedgerEntry]) -> None:
        futures = [
            self._producer.submit(TRAINING_LEDGER, entry.group_id, entry) for entry in entries
        ]
        for future in futures:
            future.result()

    def _apply(self, event: Event | None) -> None:
        if isinstance(event, PolicyRoute):
            self.routes[event.alias] = event
        if (
            isinstance(event, PolicyUpdate)
            and event.policy == self._policy
            and event.event_id not in self._seen
        ):
            self._seen.add(event.event_id)
            self.updates.append(event)
            if self._epochs.apply(event):
                self.newest = event
