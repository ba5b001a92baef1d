"""`fulgurite topics create`."""

from __future__ import annotations

import typer
from rich.console import Console

from services.brokers import answering
from services.kafka import KafkaSettings, LogUnavailable
from services.topic_admin import TopicLayoutError, check_topics, create_topics


def create_topics_command() -> None:
    """Create, then check; exit 1 with a plain message if that fails."""
    console = Console(soft_wrap=True)
    try:
        settings = answering(KafkaSettings())
        created = create_topics(settings)
        check_topics(settings)
    except (LogUnavailable, TopicLayoutError) as error:
        console.print(f"[red]topics create:[/red] {error}")
        raise typer.Exit(1) from error
    for name in sorted(created):
        console.print(f"created {name}")
    console.print(f"all topics are in place on {settings.bootstrap_servers}")
