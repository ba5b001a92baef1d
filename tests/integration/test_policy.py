"""Versions of a policy on a real log: what the learner keeps of them, and `fulgurite policy`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, ArtifactFormat, UpdateKind
from fulgurite.events import Artifact, PolicyApplied, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.topics import POLICY_APPLIED, POLICY_ROUTES, POLICY_UPDATES
from fulgurite.versions import parse_version
from services.cli.loading import loaded
from services.cli.main import app
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topic
from services.common.policies.route_log import last_routes, write_route
from services.learner.policy_log import PolicyLog
from services.learner.retention import prune
from services.local_stack.kafka_local import LocalKafka

pytestmark = pytest.mark.engine


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> KafkaSettings:
    found = KafkaSettings.model_validate(
        {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": topic_prefix,
        }
    )
    for topic in (POLICY_UPDATES, POLICY_ROUTES):
        create_topic(found, topic)
    return found


@pytest.fixture
def producer(settings: KafkaSettings) -> Iterator[EventProducer]:
    made = EventProducer(settings, Codec(), "test")
    yield made
    made.close()


def target(version: str) -> RouteTarget:
    return RouteTarget(policy="policy", version=version, weight=1.0)


def test_a_learner_knows_the_routes_of_before_and_those_that_come(
    settings: KafkaSettings, producer: EventProducer
) -> None:
    write_route(settings, "policy", (target("policy@1.1"),), "first")
    log = PolicyLog(settings, Codec(), producer, "policy", "learner")
    assert log.routes["policy"].targets == (target("policy@1.1"),)
    log.acquire_epoch(0, "{}")
    write_route(settings, "policy", (target("policy@1.2"),), "second")
    while log.routes["policy"].reason != "second":
        log.catch_up(None)
    assert log.routes["policy"].previous == (target("policy@1.1"),)
    log.check_epoch()
    log.close()
    assert last_routes(settings) == log.routes


class Deployment:
    """`fulgurite policy` on this test's topics, with no gateway."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._environment = {
            "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": settings.topic_prefix,
            "FULGURITE_GATEWAY_URL": "http://127.0.0.1:9",
        }

    def __call__(self, *words: str, exit_code: int = 0) -> str:
        done = CliRunner().invoke(app, ["policy", *words], env=self._environment)
        assert done.exit_code == exit_code, done.output
        return done.output


def version(step: int, folder: Path, kind: ArtifactFormat = ArtifactFormat.full) -> PolicyUpdate:
    file = folder / f"1.{step}" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights %d" % step)
    return PolicyUpdate(
        event_id=f"u{step}",
        event_time=step,
        policy="policy",
        kind=UpdateKind.update,
        epoch=1,
        step=step,
        version=f"policy@1.{step}",
        parent_version=f"policy@1.{step - 1}",
        learner_id="learner",
        artifact=Artifact(
            uri=file.as_uri(),
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            size=file.stat().st_size,
            format=kind,
        ),
        trained_actions=10 * step,
        metrics={"reward_mean": step / 10},
    )


def test_versions_are_listed_shown_pulled_promoted_and_rolled_back(
    settings: KafkaSettings, producer: EventProducer, tmp_path: Path
) -> None:
    create_topic(settings, POLICY_APPLIED)
    policy = Deployment(settings)
    assert "no versions" in policy("list")
    log = PolicyLog(settings, Codec(), producer, "policy", "learner")
    log.acquire_epoch(0, '{"batch": {"groups": 5}}')
    log.publish([version(step, tmp_path / "policy") for step in (1, 2, 3)])

    policy("promote", "policy@1.2", "--reason", "better")
    policy("promote", "policy@1.9", exit_code=1)
    found = {one["version"]: one for one in json.loads(policy("list", "--json"))}
    assert found["policy@1.2"]["routed"] == {"policy": 1.0}
    assert found["policy@1.3"]["metrics"] == {"reward_mean": 0.3}
    assert "policy@1.3" in policy("list", "--last", "1")
    assert "policy@1.2" not in policy("list", "--last", "1")
    policy("list", "--policy", "polisy", exit_code=1)

    shown = policy("show", "policy@1.2")
    assert "from policy@1.1" in shown
    assert '"groups": 5' in shown
    policy("show", "policy@1.9", exit_code=1)

    policy("pull", "policy", str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == b"weights 3"
    policy("pull", "policy", str(tmp_path / "mine"), exit_code=1)

    policy("promote", "policy@1.3")
    policy("rollback", "policy", "--reason", "worse")
    log.catch_up(None)
    route = last_routes(settings)["policy"]
    assert (route.targets, route.reason) == ((target("policy@1.2"),), "worse")
    prune(tmp_path / "policy", "policy", 1, last_routes(settings).values())
    policy("promote", "policy@1.1", exit_code=1)
    policy("rollback", "policy")
    assert last_routes(settings)["policy"].targets == (target("policy@1.3"),)
    log.close()


@contextlib.contextmanager
def applier(settings: KafkaSettings, producer: EventProducer) -> Generator[list[PolicyRoute]]:
    """Reports each version that a route names as served. Yields the routes, as they come."""
    seen: list[PolicyRoute] = []
    over = threading.Event()

    def follow() -> None:
        while not over.is_set():
            events = [record.event for record in read_all(settings, POLICY_ROUTES, Codec())]
            for event in events[len(seen) :]:
                assert isinstance(event, PolicyRoute)
                seen.append(event)
                for named in (one.version for one in event.targets if one.version):
                    producer.publish_sync(POLICY_APPLIED, "policy", applied(named))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def applied(version: str) -> PolicyApplied:
    return PolicyApplied(
        event_id=f"applied {version}",
        event_time=1,
        policy="policy",
        backend="vllm",
        engine_id="e",
        version=version,
        outcome=ApplyOutcome.applied,
        seconds=0.1,
    )


@pytest.mark.parametrize(
    ("kind", "held"),
    [
        (ArtifactFormat.full, (target("policy@1.1"),)),
        (
            ArtifactFormat.lora,
            (target("policy@1.2"), RouteTarget(policy="policy", version="policy@1.1", weight=0.0)),
        ),
    ],
)
def test_a_version_is_held_while_it_is_evaluated_and_the_route_is_put_back(
    settings: KafkaSettings,
    producer: EventProducer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: ArtifactFormat,
    held: tuple[RouteTarget, ...],
) -> None:
    def is_served(_: str) -> bool:
        return True

    monkeypatch.setattr("services.cli.loading.is_served", is_served)
    create_topic(settings, POLICY_APPLIED)
    log = PolicyLog(settings, Codec(), producer, "policy", "learner")
    log.acquire_epoch(0, "{}")
    log.publish([version(step, tmp_path / "policy", kind) for step in (1, 2)])
    log.close()
    producer.publish_sync(POLICY_APPLIED, "policy", applied("policy@1.2"))
    write_route(settings, "policy", (target("policy@1.1"),), "first")
    write_route(settings, "policy", (target("policy@1.2"),), "second")
    before = last_routes(settings)["policy"]
    wanted = parse_version("policy@1.1")
    with applier(settings, producer):
        with loaded(settings, "policy", wanted, 30.0, load=True):
            assert last_routes(settings)["policy"].targets == held
        after = last_routes(settings)["policy"]
        assert after == before, "also who wrote it, and when"
        with loaded(settings, "policy", wanted, 30.0, load=True):
            write_route(settings, "policy", (target("policy@1.1"),), "by somebody else")
        assert last_routes(settings)["policy"].reason == "by somebody else"


def test_full_weights_are_not_loaded_unasked(settings: KafkaSettings) -> None:
    with loaded(settings, "policy", parse_version("policy@1.1"), 1.0, load=False):
        assert last_routes(settings) == {}
