"""`fulgurite topics create`."""

from __future__ import annotations

import typer

from services.brokers import answering
from services.kafka import KafkaSettings, LogUnavailable
from services.terminal import make_console, plain
from services.topic_admin import TopicLayoutError, check_topics, create_topics


def create_topics_command() -> None:
    """Create, then check; exit 1 with a plain message if that fails."""
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
