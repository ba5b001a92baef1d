"""Defines the command `fulgurite status`: shows the state of a running deployment.

It asks Kafka, the gateway and vLLM, and changes nothing.
"""

# confluent-kafka re-exports its admin types without `__all__` and annotates the futures partially.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, cast

import msgspec
import typer
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fulgurite.enums import ApplyOutcome
from fulgurite.events import Event, LedgerEntry, LlmCall, PolicyApplied, PolicyUpdate
from fulgurite.learning.offline import OFFLINE
from fulgurite.learning.target_version import TargetVersion
from fulgurite.ledger.remedies import frequent_remedies
from fulgurite.ledger.untrained import UntrainedActions
from fulgurite.topics import (
    LLM_CALLS,
    POLICY_APPLIED,
    POLICY_UPDATES,
    TOPICS,
    TRAINING_LEDGER,
    Topic,
)
from services.cli.alive import (
    Progress,
    ServiceState,
    appliers,
    finished,
    learners,
    processors,
    progress,
)
from services.cli.ledger import REASONS, untrained_lines
from services.cli.output import print_json
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import make_consumer, read_all, watermarks
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import TopicLayoutError, admin_client, check_topics
from services.common.runtime.backends import parse_backends
from services.common.runtime.clock import now_ms
from services.common.runtime.gateway_url import root_of
from services.common.runtime.terminal import make_console, plain

_TIMEOUT_S = 10.0
_HTTP_TIMEOUT_S = 3.0
_DAY_MS = 24 * 3600 * 1000
_NEWEST_CALLS = 250
"""Calls that are read of each partition: a day of them may be gigabytes."""
_COLOURS = {True: "green", False: "red", None: ""}


class TopicCount(msgspec.Struct, frozen=True):
    """How many records a topic has; None if it is missing."""

    topic: str
    records: int | None


class GroupLag(msgspec.Struct, frozen=True):
    """The lag of a consumer group on one topic, in records."""

    group: str
    state: str
    topic: str
    lag: int
    finished: bool
    """Whether a finished run has left the group behind."""


class Served(msgspec.Struct, frozen=True):
    """What a backend serves by its last report, and the newest published version."""

    policy: str
    backend: str
    serves: str | None
    version: str
    """The version of the last attempt."""
    outcome: str
    newest: str
    error: str | None


class Status(msgspec.Struct, frozen=True):
    """The state of the deployment."""

    endpoints: dict[str, str]
    layout: str
    topics: list[TopicCount]
    groups: list[GroupLag]
    served: list[Served]
    services: list[ServiceState]
    policies: list[Progress]
    actions: dict[str, int]
    """Outcomes of actions in the last day: `trained`, `filtered(no_signal)`, ..."""
    untrained: dict[str, int]
    """Actions of the newest calls that are recorded and never trained, by why."""

    @property
    def healthy(self) -> bool:
        """Whether every endpoint and the topics are ok, and no service is known to be down."""
        dead = any(one.alive is False for one in self.services)
        return (
            self.layout == "ok"
            and not dead
            and all(answer == "ok" for answer in self.endpoints.values())
        )


def status(
    gateway: Annotated[
        str,
        typer.Option(metavar="URL", envvar="FULGURITE_GATEWAY_URL", help="URL of the gateway."),
    ] = "http://127.0.0.1:8080",
    vllm: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="VLLM_BASE_URL",
            help="URLs of vLLM servers, separated by commas; checked only if given.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show endpoints, services, served versions, outcomes of actions, what of the newest calls is
    never trained and why, consumer lag, and topic sizes.

    Exits 1 if the gateway or vLLM (where given) does not answer, a topic is missing or has other
    settings, or a service is known to be down. Exits 2 if no Kafka broker answers.

    Example: `fulgurite status --vllm http://127.0.0.1:8000`
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
    """Ask Kafka and the endpoints once. Raises LogUnavailable, KafkaException."""
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
    endpoints = {"gateway": answers(f"{root_of(gateway)}/readyz")}
    if vllm:
        endpoints |= {
            name: answers(f"{url}/health") for name, url in parse_backends(vllm, "vllm").items()
        }
    updates = [e for e in _events(kafka, POLICY_UPDATES, known) if isinstance(e, PolicyUpdate)]
    applied = [e for e in _events(kafka, POLICY_APPLIED, known) if isinstance(e, PolicyApplied)]
    states = _group_states(admin, kafka)
    policies = progress(updates)
    return Status(
        endpoints=endpoints,
        layout=layout,
        topics=[
            TopicCount(
                topic.name,
                sum(high - low for low, high in ends[topic.name].values())
                if topic in known
                else None,
            )
            for topic in TOPICS
        ],
        groups=_groups(
            admin, kafka, states, {kafka.topic(topic): ends[topic.name] for topic in known}
        ),
        served=served(updates, applied),
        services=[*processors(kafka.topic_prefix, states), *learners(policies), *appliers(applied)],
        policies=policies,
        actions=_actions(kafka, known),
        untrained=_untrained(kafka, known),
    )


def _events(
    kafka: KafkaSettings,
    topic: Topic,
    known: Sequence[Topic],
    since_ms: int | None = None,
    newest: int | None = None,
) -> Iterator[Event]:
    if topic in known:
        yield from (
            record.event
            for record in read_all(kafka, topic, make_codec(), since_ms=since_ms, newest=newest)
            if record.event is not None
        )


def _actions(kafka: KafkaSettings, known: Sequence[Topic]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for event in _events(kafka, TRAINING_LEDGER, known, now_ms() - _DAY_MS):
        if isinstance(event, LedgerEntry):
            counts[outcome_of(event)] += len(event.actions)
    return dict(counts.most_common())


def _untrained(kafka: KafkaSettings, known: Sequence[Topic]) -> dict[str, int]:
    found = UntrainedActions()
    for event in _events(kafka, LLM_CALLS, known, newest=_NEWEST_CALLS):
        if isinstance(event, LlmCall):
            found.add(event)
    return found.counts()


def outcome_of(entry: LedgerEntry) -> str:
    """What a ledger entry says of its actions, such as `trained` or `filtered(no_signal)`."""
    detail = OFFLINE if entry.source == OFFLINE else entry.reason
    return str(entry.term) if detail is None else f"{entry.term}({detail})"


def answers(url: str) -> str:
    """Ask a URL; returns `ok`, or the error."""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S):
            return "ok"
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {error.read(300).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def served(updates: Iterable[PolicyUpdate], applied: Iterable[PolicyApplied]) -> list[Served]:
    """What each backend serves, by its last report."""
    newest: dict[str, TargetVersion] = {}
    for update in updates:
        newest.setdefault(update.policy, TargetVersion(update.policy)).apply(update)
    last: dict[tuple[str, str], PolicyApplied] = {}
    for event in applied:
        if event.outcome is not ApplyOutcome.retired:
            last[event.policy, event.backend] = event
    return [
        Served(
            policy=policy,
            backend=backend,
            serves=event.version if event.outcome is ApplyOutcome.applied else event.previous,
            version=event.version,
            outcome=event.outcome.value,
            newest=str(newest.get(policy, TargetVersion(policy)).version()),
            error=event.error,
        )
        for (policy, backend), event in sorted(last.items())
    ]


def show(found: Status, console: Console) -> None:
    """Print the state as tables."""
    for name, answer in found.endpoints.items():
        console.print(plain(f"{name}: {answer}"), style="green" if answer == "ok" else "red")
    if found.layout != "ok":
        console.print(plain(found.layout), style="red")
    for title, table in _tables(found).items():
        console.print(table if table.row_count else f"[italic]{title}[/italic]: none yet")
    for reason, words in frequent_remedies(found.actions, REASONS):
        console.print(plain(f"{reason}: {words}"))
    for line in untrained_lines(found.untrained):
        console.print(f"Of the newest calls, {line}")
    finished_runs = len({one.group for one in found.groups if one.finished})
    if finished_runs:
        console.print(f"{finished_runs} consumer groups of finished runs are not shown")


def _tables(found: Status) -> dict[str, Table]:
    """Make the tables, by title."""
    return {
        "services": _table(
            "services",
            ("service", "state"),
            [(one.service, Text(one.said, _COLOURS[one.alive])) for one in found.services],
        ),
        "served": _table(
            "served",
            ("policy", "backend", "serves", "last attempt", "newest"),
            [
                (one.policy, one.backend, one.serves or "unknown", _attempt(one), one.newest)
                for one in found.served
            ],
        ),
        "actions of the last day": _table(
            "actions of the last day",
            ("outcome", "actions"),
            [(term, str(count)) for term, count in found.actions.items()],
        ),
        "consumer groups": _table(
            "consumer groups",
            ("group", "state", "topic", "lag"),
            [
                (one.group, one.state, one.topic, str(one.lag))
                for one in found.groups
                if not one.finished
            ],
        ),
        "topics": _table(
            "topics",
            ("topic", "records"),
            [
                (one.topic, "missing" if one.records is None else str(one.records))
                for one in found.topics
            ],
        ),
    }


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str | Text, ...]]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in row))
    return table


def _attempt(one: Served) -> str:
    return (
        f"{one.version} {one.outcome}: {one.error}" if one.error else f"{one.version} {one.outcome}"
    )


def _ends(consumer: Consumer, kafka: KafkaSettings, topic: Topic) -> dict[int, tuple[int, int]]:
    name = kafka.topic(topic)
    return {
        n: watermarks(consumer, TopicPartition(name, n), _TIMEOUT_S)
        for n in range(topic.partitions)
    }


def _group_states(admin: AdminClient, kafka: KafkaSettings) -> dict[str, str]:
    """The states of this deployment's groups: those whose id begins with its prefix."""
    listing = cast(Any, admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result())
    found = {str(group.group_id): str(group.state.name.lower()) for group in listing.valid}
    return {name: found[name] for name in sorted(found) if name.startswith(kafka.topic_prefix)}


def _groups(
    admin: AdminClient,
    kafka: KafkaSettings,
    states: Mapping[str, str],
    ends: dict[str, dict[int, tuple[int, int]]],
) -> list[GroupLag]:
    found: list[GroupLag] = []
    for name, state in states.items():
        over = finished(kafka.topic_prefix, name, state)
        asked = admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(name)], request_timeout=_TIMEOUT_S
        )
        lags: dict[str, int] = {}
        for place in cast("list[TopicPartition]", asked[name].result().topic_partitions):
            low, high = ends.get(place.topic, {}).get(place.partition, (0, 0))
            lags[place.topic] = lags.get(place.topic, 0) + high - max(place.offset, low)
        # A learner assigns its partitions itself: its group has no members, and shows how far it
        # has settled.
        shown = "without members" if name.startswith(f"{kafka.topic_prefix}learner.") else state
        found += [
            GroupLag(name, shown, topic.removeprefix(kafka.topic_prefix), lag, over)
            for topic, lag in sorted(lags.items())
        ]
    return found
