"""`fulgurite status`: one look at a running deployment. Reads only; asks Kafka, the gateway and vLLM."""

# confluent-kafka re-exports its admin types without `__all__` and annotates the futures partially.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Annotated, Any, cast

import msgspec
import typer
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from fulgurite.codec import Codec
from fulgurite.desired import DesiredVersion
from fulgurite.events import PolicyApplied, PolicyUpdate
from fulgurite.kinds import ApplyOutcome
from fulgurite.topics import POLICY_APPLIED, POLICY_UPDATES, TOPICS, Topic
from services.backends import parse_backends
from services.brokers import answering
from services.cli.printing import print_json
from services.kafka import KafkaSettings, LogUnavailable, make_consumer, read_all, watermarks
from services.terminal import make_console, plain
from services.topic_admin import TopicLayoutError, admin_client, check_topics

_TIMEOUT_S = 10.0
_HTTP_TIMEOUT_S = 3.0


class TopicCount(msgspec.Struct, frozen=True):
    """A topic's records; `records` is None if it is missing."""

    topic: str
    records: int | None


class GroupLag(msgspec.Struct, frozen=True):
    """A consumer group on one topic."""

    group: str
    state: str
    topic: str
    lag: int


class Served(msgspec.Struct, frozen=True):
    """What a backend last said it serves, and the newest version there is."""

    policy: str
    backend: str
    version: str
    outcome: str
    newest: str
    error: str | None


class Status(msgspec.Struct, frozen=True):
    """All of it."""

    endpoints: dict[str, str]
    layout: str
    topics: list[TopicCount]
    groups: list[GroupLag]
    served: list[Served]

    @property
    def healthy(self) -> bool:
        """Whether everything that was asked answered well."""
        return self.layout == "ok" and all(answer == "ok" for answer in self.endpoints.values())


def status(
    gateway: Annotated[str, typer.Option(envvar="FULGURITE_GATEWAY_URL", help="The gateway's address.")] = "http://127.0.0.1:8080",
    vllm: Annotated[str | None, typer.Option(envvar="VLLM_BASE_URL", help="vLLM's address, or several; asked only if given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what answers, what is served, how far behind each consumer group is and how much each topic holds.

    Exits 1 if the gateway, vLLM (where given) or the topics are not as they should be, 2 if no Kafka broker answers.
    """
    console = make_console()
    try:
        found = look(answering(KafkaSettings()), gateway, vllm)
    except (LogUnavailable, KafkaException) as error:
        console.print(f"[red]status:[/red] {plain(error)}")
        raise typer.Exit(2) from error
    if as_json:
        print_json({**msgspec.structs.asdict(found), "healthy": found.healthy})
    else:
        show(found, console)
    if not found.healthy:
        raise typer.Exit(1)


def look(kafka: KafkaSettings, gateway: str, vllm: str | None) -> Status:
    """Ask everything once. Raises LogUnavailable, KafkaException."""
    try:
        check_topics(kafka)
        layout = "ok"
    except TopicLayoutError as error:
        layout = str(error)
    admin = admin_client(kafka)
    there = set(admin.list_topics(timeout=_TIMEOUT_S).topics)
    known = [topic for topic in TOPICS if kafka.topic(topic) in there]
    consumer = make_consumer(kafka)
    try:
        ends = {topic.name: _ends(consumer, kafka, topic) for topic in known}
    finally:
        consumer.close()
    endpoints = {"gateway": answers(f"{gateway}/readyz")}
    if vllm:
        endpoints |= {name: answers(f"{url}/health") for name, url in parse_backends(vllm, "vllm").items()}
    return Status(
        endpoints=endpoints,
        layout=layout,
        topics=[
            TopicCount(topic.name, sum(high - low for low, high in ends[topic.name].values()) if topic in known else None)
            for topic in TOPICS
        ],
        groups=_groups(admin, kafka, {kafka.topic(topic): ends[topic.name] for topic in known}),
        served=served(kafka) if POLICY_APPLIED in known and POLICY_UPDATES in known else [],
    )


def answers(url: str) -> str:
    """`ok`, or what is wrong."""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S):
            return "ok"
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.read(300).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def served(kafka: KafkaSettings) -> list[Served]:
    """The last word of each backend. Raises LogUnavailable."""
    codec = Codec()
    newest: dict[str, DesiredVersion] = {}
    for record in read_all(kafka, POLICY_UPDATES, codec):
        if isinstance(record.event, PolicyUpdate):
            newest.setdefault(record.event.policy, DesiredVersion(record.event.policy)).take(record.event)
    last: dict[tuple[str, str], PolicyApplied] = {}
    for record in read_all(kafka, POLICY_APPLIED, codec):
        if isinstance(record.event, PolicyApplied) and record.event.outcome is not ApplyOutcome.retired:
            last[record.event.policy, record.event.backend] = record.event
    return [
        Served(
            policy=policy,
            backend=backend,
            version=event.version,
            outcome=event.outcome.value,
            newest=str(newest.get(policy, DesiredVersion(policy)).version()),
            error=event.error,
        )
        for (policy, backend), event in sorted(last.items())
    ]


def show(found: Status, console: Console) -> None:
    """As tables."""
    for name, answer in found.endpoints.items():
        console.print(plain(f"{name}: {answer}"), style="green" if answer == "ok" else "red")
    if found.layout != "ok":
        console.print(plain(found.layout), style="red")
    served = Table("policy", "backend", "last version", "outcome", "newest", title="served", title_justify="left")
    for one in found.served:
        served.add_row(*map(plain, (one.policy, one.backend, one.version, one.error or one.outcome, one.newest)))
    groups = Table("group", "state", "topic", "lag", title="consumer groups", title_justify="left")
    for one in found.groups:
        groups.add_row(*map(plain, (one.group, one.state, one.topic, one.lag)))
    topics = Table("topic", "records", title="topics", title_justify="left")
    for one in found.topics:
        topics.add_row(one.topic, "missing" if one.records is None else str(one.records))
    for table in (served, groups, topics):
        console.print(table)


def _ends(consumer: Consumer, kafka: KafkaSettings, topic: Topic) -> dict[int, tuple[int, int]]:
    name = kafka.topic(topic)
    return {n: watermarks(consumer, TopicPartition(name, n), _TIMEOUT_S) for n in range(topic.partitions)}


def _groups(admin: AdminClient, kafka: KafkaSettings, ends: dict[str, dict[int, tuple[int, int]]]) -> list[GroupLag]:
    """Groups of this deployment: those whose id begins with its prefix."""
    listing = cast(Any, admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result())
    found: list[GroupLag] = []
    for group in sorted(listing.valid, key=lambda group: group.group_id):
        if not group.group_id.startswith(kafka.topic_prefix):
            continue
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group.group_id)], request_timeout=_TIMEOUT_S)
        lags: dict[str, int] = {}
        for place in cast("list[TopicPartition]", asked[group.group_id].result().topic_partitions):
            low, high = ends.get(place.topic, {}).get(place.partition, (0, 0))
            lags[place.topic] = lags.get(place.topic, 0) + high - max(place.offset, low)
        found += [
            GroupLag(group.group_id, group.state.name.lower(), topic.removeprefix(kafka.topic_prefix), lag)
            for topic, lag in sorted(lags.items())
        ]
    return found
