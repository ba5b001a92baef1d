"""Creates the topics of `fulgurite.topics`, and checks that the broker's topics match the table."""

# confluent-kafka re-exports its admin types without `__all__` and annotates the futures partially.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, NewTopic, ResourceType

from fulgurite.topics import TOPICS, Topic
from services.common.kafka.consumer import make_consumer, watermarks
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings

_TIMEOUT_S = 20.0
logger = logging.getLogger(__name__)


class TopicLayoutError(Exception):
    """A topic is missing or differs from the table; the text says how, and what to do."""


def admin_client(settings: KafkaSettings) -> AdminClient:
    """An admin client with the deployment's security."""
    return AdminClient(settings.client_config(), logger=logger)  # pyright: ignore[reportCallIssue]


def create_topics(settings: KafkaSettings) -> list[str]:
    """Create missing topics and return their names. Existing topics are not changed."""
    return _create(settings, TOPICS)


def create_topic(settings: KafkaSettings, topic: Topic) -> bool:
    """Create one topic; returns whether it did not exist yet. Raises LogUnavailable."""
    return bool(_create(settings, (topic,)))


def records_in(settings: KafkaSettings, topic: Topic) -> int:
    """Count a topic's records by its offsets. Raises LogUnavailable."""
    consumer = make_consumer(settings)
    try:
        places = [
            TopicPartition(settings.topic(topic), partition)
            for partition in range(topic.partitions)
        ]
        marks = [watermarks(consumer, place, _TIMEOUT_S) for place in places]
    except KafkaException as error:
        raise LogUnavailable(f"{settings.topic(topic)}: {error}") from error
    finally:
        consumer.close()
    return sum(high - low for low, high in marks)


def _create(settings: KafkaSettings, topics: Sequence[Topic]) -> list[str]:
    admin = admin_client(settings)
    wanted = [
        NewTopic(
            settings.topic(topic),
            num_partitions=topic.partitions,
            replication_factor=settings.replication,
            config=topic.configs(settings.replication),
        )
        for topic in topics
    ]
    created: list[str] = []
    for name, future in admin.create_topics(
        wanted, operation_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S
    ).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            reason = cast(KafkaError, error.args[0])
            if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise LogUnavailable(
                    f"cannot create topic {name} on {settings.bootstrap_servers}: {reason.str()}"
                ) from error
    _wait_for_leaders(admin, [settings.topic(topic) for topic in topics])
    return created


def _wait_for_leaders(admin: AdminClient, names: list[str]) -> None:
    """Wait until all partitions have leaders; before that, brokers refuse requests."""
    deadline = time.monotonic() + _TIMEOUT_S
    waiting = set(names)
    while waiting:
        found = admin.list_topics(timeout=_TIMEOUT_S).topics
        led = {
            name
            for name in waiting
            if name in found and all(p.leader >= 0 for p in found[name].partitions.values())
        }
        waiting -= led
        if time.monotonic() > deadline:
            raise LogUnavailable(
                f"these topics have no leader after {_TIMEOUT_S:.0f} s: "
                f"{', '.join(sorted(waiting))}. Check that the brokers are up."
            )
        if waiting:
            time.sleep(0.1)


def check_topics(settings: KafkaSettings, timeout_s: float = _TIMEOUT_S) -> None:
    """Compare the broker's topics with the table.

    Raises TopicLayoutError with every difference, LogUnavailable if no broker answers in time.
    """
    admin = admin_client(settings)
    try:
        found = admin.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        raise LogUnavailable(
            f"no Kafka broker answers at {settings.bootstrap_servers} "
            f"(KAFKA_BOOTSTRAP_SERVERS): {error}"
        ) from error
    problems: list[str] = []
    for topic in TOPICS:
        name = settings.topic(topic)
        if name not in found:
            problems.append(f"{name} is missing")
        elif len(found[name].partitions) != topic.partitions:
            problems.append(
                f"{name} has {len(found[name].partitions)} partitions, not {topic.partitions}"
            )
    if not problems:
        problems = _config_problems(admin, settings, timeout_s)
    if problems:
        raise TopicLayoutError(
            "; ".join(problems)
            + ". Run `fulgurite topics create`, or choose another FULGURITE_TOPIC_PREFIX."
        )


def topic_names(settings: KafkaSettings) -> set[str]:
    """The names of all topics on the broker. Raises LogUnavailable."""
    try:
        return set(admin_client(settings).list_topics(timeout=_TIMEOUT_S).topics)
    except KafkaException as error:
        raise LogUnavailable(
            f"no Kafka broker answers at {settings.bootstrap_servers} "
            f"(KAFKA_BOOTSTRAP_SERVERS): {error}"
        ) from error


def topic_id(settings: KafkaSettings, name: str) -> str:
    """Kafka's id of a topic, which changes when it is deleted and created again.

    Raises LogUnavailable.
    """
    return topic_ids(settings, [name])[name]


def topic_ids(settings: KafkaSettings, names: Collection[str]) -> dict[str, str]:
    """Kafka's ids of topics, by name. Raises LogUnavailable."""
    # In a variable: a client that is garbage-collected loses its pending answers.
    admin = admin_client(settings)
    described = admin.describe_topics(TopicCollection(list(names)), request_timeout=_TIMEOUT_S)
    found: dict[str, str] = {}
    for name, future in described.items():
        try:
            found[name] = str(cast(Any, future.result()).topic_id)
        except KafkaException as error:
            raise LogUnavailable(f"{name}: {error}") from error
    return found


def _config_problems(admin: AdminClient, settings: KafkaSettings, timeout_s: float) -> list[str]:
    """Find differences in settings that the promises depend on."""
    problems: list[str] = []
    resources = {settings.topic(topic): topic for topic in TOPICS}
    futures = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in resources], request_timeout=timeout_s
    )
    for resource, future in futures.items():
        name = cast(str, cast(Any, resource).name)
        wanted = resources[name].configs(settings.replication)
        actual = cast("dict[str, ConfigEntry]", future.result())
        problems += [
            f"{name} has {option}={actual[option].value}, not {wanted[option]}"
            for option in (
                "cleanup.policy",
                "min.insync.replicas",
                "unclean.leader.election.enable",
            )
            if actual[option].value != wanted[option]
        ]
    return problems
