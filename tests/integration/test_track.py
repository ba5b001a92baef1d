"""`fulgurite track` on a real log: every version is copied once, whenever it is started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fulgurite.avro.codec import Codec
from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import LedgerEntry, PolicyUpdate
from fulgurite.topics import POLICY_UPDATES, TRAINING_LEDGER
from services.cli.main import app
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topic
from services.local_stack.kafka_local import LocalKafka
from tests.integration.command_line import fulgurite_command
from tests.integration.test_processors import wait_until

pytestmark = pytest.mark.engine


@pytest.fixture
def producer(
    kafka: LocalKafka, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EventProducer]:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("FULGURITE_TOPIC_PREFIX", topic_prefix)
    settings = KafkaSettings()
    create_topic(settings, POLICY_UPDATES)
    create_topic(settings, TRAINING_LEDGER)
    made = EventProducer(settings, Codec(), "test")
    yield made
    made.close()


def publish(producer: EventProducer, policy: str, step: int, kind: UpdateKind) -> None:
    event = PolicyUpdate(
        event_id=f"{policy} {step} {kind}",
        event_time=1_700_000_000_000 + step,
        policy=policy,
        kind=kind,
        epoch=1,
        step=step,
        version=f"{policy}@1.{step}" if kind is UpdateKind.update else None,
        learner_id="learner",
        trained_actions=3,
        metrics={"reward_mean": step / 10},
        config='{"optimizer": {"lr": 1e-5}}' if kind is UpdateKind.claim else None,
    )
    producer.publish_sync(POLICY_UPDATES, policy, event)


def publish_entry(producer: EventProducer, group: str, step: int) -> None:
    entry = LedgerEntry(
        event_id=f"entry {group}",
        event_time=1_700_000_000_000,
        policy="writer",
        group_id=group,
        term=LedgerTerm.trained,
        actions=("a#0", "b#0"),
        version=f"writer@1.{step}",
        source="learner",
    )
    producer.publish_sync(TRAINING_LEDGER, group, entry)


def scalars(folder: Path, policy: str, name: str = "reward_mean") -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing import event_accumulator

    found: Any = event_accumulator.EventAccumulator(str(folder / policy))
    found.Reload()
    return [(one.step, round(one.value, 3)) for one in found.Scalars(name)]


def test_each_version_is_copied_once_over_restarts(producer: EventProducer, tmp_path: Path) -> None:
    publish(producer, "writer", 0, UpdateKind.claim)
    publish(producer, "writer", 1, UpdateKind.update)
    publish(producer, "critic", 1, UpdateKind.update)
    command = ["track", "--to", "tensorboard", "--dir", str(tmp_path), "--once"]
    for expected in ("copied to tensorboard: 2", "copied to tensorboard: 0"):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert expected in done.output
    publish(producer, "writer", 2, UpdateKind.update)
    done = CliRunner().invoke(app, [*command, "--policy", "critic"])
    assert "copied to tensorboard: 0" in done.output
    assert "copied to tensorboard: 1" in CliRunner().invoke(app, command).output
    assert scalars(tmp_path, "writer") == [(1, 0.1), (2, 0.2)]
    assert scalars(tmp_path, "critic") == [(1, 0.1)]


def test_the_ledger_of_a_version_follows_once_the_next_is_there(
    producer: EventProducer, tmp_path: Path
) -> None:
    command = ["track", "--to", "tensorboard", "--dir", str(tmp_path), "--once"]
    publish(producer, "writer", 1, UpdateKind.update)
    for group in ("g1", "g2", "g3"):
        publish_entry(producer, group, 1)
    for step in (2, 3):
        assert CliRunner().invoke(app, command).exit_code == 0
        publish(producer, "writer", step, UpdateKind.update)
        publish_entry(producer, f"g of {step}", step)
    # As after a restart of the learner, which publishes again what its checkpoint ends with.
    publish_entry(producer, "g1", 1)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert scalars(tmp_path, "writer", "ledger/trained") == [(1, 6), (2, 2)]
    assert scalars(tmp_path, "writer") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_it_follows_the_log_until_it_is_stopped(producer: EventProducer, tmp_path: Path) -> None:
    process = subprocess.Popen(
        fulgurite_command("track", "--to", "tensorboard", "--dir", str(tmp_path)),
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        publish(producer, "writer", 1, UpdateKind.update)
        noted = tmp_path / "tensorboard.json"
        wait_until(noted.exists, "the version is copied")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    finally:
        process.kill()
    assert "versions copied to tensorboard: 1" in said
    assert scalars(tmp_path, "writer") == [(1, 0.1)]


def test_an_unknown_tracker_is_refused(producer: EventProducer, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["track", "--to", "paper", "--dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "there are tensorboard, wandb, mlflow, trackio" in " ".join(done.output.split())
