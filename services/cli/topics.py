"""Implements `fulgurite topics create` and `fulgurite topics list`."""

from __future__ import annotations

import msgspec
import typer
from rich.table import Table

from fulgurite.topics import TOPICS, TRAJECTORIES, Topic
from services.cli.errors import report_errors
from services.cli.output import print_table
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import (
    TopicLayoutError,
    check_topics,
    create_topics,
    records_in,
    topic_names,
)
from services.common.runtime.terminal import make_console, plain

_DAY_MS = 24 * 3600 * 1000


def create_topics_command() -> None:
    """Create missing topics, then check all; exits 1 if that fails."""
    console = make_console()
    try:
        settings = answering(KafkaSettings())
        created = create_topics(settings)
        check_topics(settings)
    except (LogUnavailable, TopicLayoutError) as error:
        console.print(f"[red]topics create:[/red] {plain(error)}")
        raise typer.Exit(1) from error
    for name in sorted(created):
        console.print(f"created {plain(name)}")
    console.print(f"all topics are in place on {plain(settings.bootstrap_servers)}")


def list_topics_command() -> None:
    """Print every topic of the table, and those that replays wrote.

    Exits 1 if a topic of the table is missing, 2 if no broker answers.
    """
    with report_errors("topics"):
        kafka = answering(KafkaSettings())
        there = topic_names(kafka)
        table = Table("topic", "holds", "key", "partitions", "records", "kept")
        for topic in (*TOPICS, *_others(there, kafka.topic_prefix)):
            name = kafka.topic(topic)
            records = str(records_in(kafka, topic)) if name in there else "[red]missing[/red]"
            holds = ", ".join(kind.__name__ for kind in topic.carries)
            table.add_row(
                plain(name), holds, topic.key.value, str(topic.partitions), records, _kept(topic)
            )
    print_table(table)
    if any(kafka.topic(topic) not in there for topic in TOPICS):
        make_console(stderr=True).print("topics are missing: run `fulgurite topics create`")
        raise typer.Exit(1)


def _others(there: set[str], prefix: str) -> list[Topic]:
    """The topics that `fulgurite replay --into` wrote: trajectories under other names."""
    known = {topic.name for topic in TOPICS}
    names = sorted(name.removeprefix(prefix) for name in there if name.startswith(prefix))
    return [
        msgspec.structs.replace(TRAJECTORIES, name=name)
        for name in names
        if name and name not in known
    ]


def _kept(topic: Topic) -> str:
    if topic.cleanup == "compact":
        return "the last of each key"
    return "for ever" if topic.retention_ms < 0 else f"{topic.retention_ms // _DAY_MS} days"
