"""Versions of a policy on a real log: what the learner keeps of them, and `fulgurite policy`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import RouteTarget
from fulgurite.topics import POLICY_ROUTES, POLICY_UPDATES
from services.cli.routes import last_routes, write_route
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topic
from services.learner.policy_log import PolicyLog
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
