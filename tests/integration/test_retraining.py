"""`fulgurite train --without` against a real Kafka, up to the start of its learner."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fulgurite.avro.codec import Codec
from fulgurite.enums import FilterReason, LedgerTerm, UpdateKind
from fulgurite.events import Event, GroupClosed, LedgerEntry, PolicyUpdate, Tombstone, Trajectory
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    LLM_CALLS,
    POLICY_UPDATES,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import kafka_settings
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

pytestmark = pytest.mark.engine

ANN = "su_" + "a" * 26


@pytest.fixture
def log(kafka: LocalKafka, topic_prefix: str) -> KafkaSettings:
    """Three groups of two: one of a version before Ann came, two with her."""
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    create_topics(settings)
    for group in (1, 2, 3):
        publish(settings, AGENT_STATUS, [make_declared(group, 2)])
        for index in (0, 1):
            call = make_call(group, index)
            subject = ANN if group > 1 and index == 0 else None
            publish(settings, LLM_CALLS, [replace(call, subject=subject)])
            publish(settings, AGENT_STATUS, [make_status(group, index)])
            publish(settings, AGENT_REWARDS, [make_reward(group, index, float(index))])
            publish(settings, TRAINING_LEDGER, [trained(group, call.call_id)])
    publish(settings, POLICY_UPDATES, [update(0, UpdateKind.claim), *map(update, (1, 2, 3))])
    return settings


def publish(log: KafkaSettings, topic: Topic, events: Iterable[Event]) -> None:
    producer = EventProducer(log, Codec(), "test")
    for event in events:
        producer.submit(topic, getattr(event, "group_id", "policy"), event)
    assert producer.close() == 0


def update(step: int, kind: UpdateKind = UpdateKind.update, policy: str = "policy") -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"{policy} {kind} {step}",
        event_time=1,
        policy=policy,
        kind=kind,
        epoch=1,
        step=step,
        version=f"{policy}@1.{step}" if kind is UpdateKind.update else None,
        parent_version=f"{policy}@1.{step - 1}" if step > 1 else f"{policy}@0.0",
        learner_id="l",
        trained_actions=2,
    )


def trained(step: int, call_id: str) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"trained {call_id}",
        event_time=1,
        policy="policy",
        group_id=group_id(step),
        term=LedgerTerm.trained,
        actions=(f"{call_id}#0",),
        version=f"policy@1.{step}",
        source="learner",
    )


def train(log: KafkaSettings, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.toml").write_text('[policy]\nmodel = "/no/such/model"\n')
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FULGURITE_", "KAFKA_", "REDIS_"))
    }
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": log.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": log.topic_prefix,
        "FULGURITE_DATA_DIR": str(folder),
        "COLUMNS": "1000",
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "services.cli.main", "train", "run.toml", *options],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_came_since_is_replayed_without_them(log: KafkaSettings, tmp_path: Path) -> None:
    done = train(log, tmp_path, "--without", ANN)
    assert done.returncode == 1, "the base model is not there"
    assert "/no/such/model" in done.stderr
    assert "policy@1.3 was trained on 2 of their actions, first in policy@1.2" in done.stdout
    topic = next(
        word.rstrip(":") for word in done.stdout.split() if word.startswith("trajectories.without-")
    )
    written = replace(TRAJECTORIES, name=topic)
    events = [record.event for record in read_all(log, written, Codec())]
    rows = [event for event in events if isinstance(event, Trajectory)]
    stones = [event for event in events if isinstance(event, Tombstone)]
    assert {row.group_id for row in rows} == {group_id(number) for number in (1, 2, 3)}, (
        "no weights of policy@1.1 are there, so it begins with the base model"
    )
    assert ANN not in {row.subject for row in rows}
    assert [stone.reason for stone in stones] == [FilterReason.excluded] * 2

    again = train(log, tmp_path, "--without", ANN)
    assert topic in again.stdout
    ids = [record.event.event_id for record in read_all(log, written, Codec()) if record.event]
    assert len(set(ids)) == len(events), "a part that was written twice has the same ids"

    new_policy = f"policy-{topic.partition('without-')[2]}"
    publish(log, POLICY_UPDATES, [update(0, UpdateKind.claim, new_policy)])
    third = train(log, tmp_path, "--without", ANN)
    assert f"topic {topic} is written already" in third.stdout
    assert len(list(read_all(log, written, Codec()))) == len(ids)
    assert any(isinstance(event, GroupClosed) for event in events)


def test_wrong_input_is_refused(log: KafkaSettings, tmp_path: Path) -> None:
    nobody = train(log, tmp_path, "--without", "su_" + "z" * 26)
    assert nobody.returncode == 0
    assert "no version of policy was trained on a call of theirs: nothing to do" in nobody.stdout
    for options, why in (
        (("--without", "ann"), "neither a subject nor a tenant"),
        (("--without", "0" * 64), "needs FULGURITE_SIGNING_KEYS"),
        (("--without", ANN, "--topic", "other"), "--without chooses what --topic would"),
        (("--archive", str(tmp_path)), "are for --without"),
        (("--without", ANN, "--policy", "other"), "there is no version of 'other'"),
    ):
        done = train(log, tmp_path, *options)
        assert (done.returncode, why in done.stderr) == (1, True), (options, done.stderr)
