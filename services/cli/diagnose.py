"""Defines the command `fulgurite diagnose`: says why a policy does not learn, from the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from fulgurite.avro.codec import Codec
from fulgurite.diagnosis.facts import TRAINED, Facts
from fulgurite.diagnosis.findings import Finding, find
from fulgurite.diagnosis.log_facts import LogFacts
from fulgurite.events import AgentStatus
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    DEAD_LETTERS,
    EPISODES,
    POLICY_UPDATES,
    TRAINING_LEDGER,
    TRAJECTORIES,
)
from services.cli.errors import report_errors
from services.cli.output import print_json
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record, read_all
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import NotFound
from services.replay.windows import parse_since

NO_SIGNAL = 3
"""Exit code if no group gave a training signal, as of `fulgurite run`."""

_TOPICS = (TRAINING_LEDGER, TRAJECTORIES, DEAD_LETTERS, EPISODES, AGENT_REWARDS)
"""Downstream first, so that what moves on meanwhile is found where it was or where it went."""


def diagnose(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Id of a run, as `fulgurite run` prints it. Without it, all that is recent, also "
            "what other harnesses and live traffic recorded.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only records from this time on: an age (90s, 30m, 24h, 7d) or an ISO time in "
            "UTC. Without it 24h, or with RUN all that the log has.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the counted facts and the findings.")
    ] = False,
) -> None:
    """Say why a policy does not learn, the likely cause first, and what to do about it.

    Looks at failed rollouts, reward errors, groups without signal, masked, cut and oversized
    answers, broken prefixes, staleness, drift, and what the learner waits for. Exits 3 if groups
    were closed and none gave a training signal, 1 if there is no such run or nothing was recorded,
    2 if the log cannot be read.

    Example: `fulgurite diagnose --since 1h`
    """
    with report_errors("diagnose"):
        start = since or (None if run else "24h")
        since_ms = parse_since(start)
        facts = read_facts(answering(KafkaSettings()), make_codec(), run, since_ms)
        if not facts.rollouts:
            raise NotFound(
                f"no rollout was recorded since {start or 'the beginning'}: see `fulgurite status`"
                ", or give an earlier --since"
            )
        found = find(facts)
    if as_json:
        print_json({"run_id": run, "facts": facts, "findings": found})
    else:
        show(facts, found, make_console())
    if facts.groups and facts.groups_without_signal == facts.groups:
        raise typer.Exit(NO_SIGNAL)


def read_facts(
    settings: KafkaSettings, codec: Codec, run: str | None, since_ms: int | None
) -> Facts:
    """Count the facts of a run, or of all groups. Raises NotFound, LogUnavailable."""
    counted = LogFacts(codec.decode)
    # All of them: a learner's claim may be old.
    for record in read_all(settings, POLICY_UPDATES, codec):
        counted.add(record.event)
    statuses = list(_statuses(settings, codec, run, since_ms))
    keys = None
    if run is not None:
        keys = {status.group_id.encode() for status in statuses}
        if not keys:
            raise NotFound(
                f"the log has no group of the run {run!r}: `fulgurite rollouts list --since 24h "
                "--json` prints the ids of runs"
            )
    for topic in _TOPICS:
        for record in read_all(settings, topic, codec, since_ms=since_ms, keys=keys):
            counted.add(record.event)
    for status in statuses:
        counted.add(status)
    return counted.facts(now_ms())


def _statuses(
    settings: KafkaSettings, codec: Codec, run: str | None, since_ms: int | None
) -> Iterator[AgentStatus]:
    """The statuses of a run's groups, or of all. A group's declaration is its first status."""
    groups: set[str] = set()
    records: Iterator[Record] = read_all(settings, AGENT_STATUS, codec, since_ms=since_ms)
    for record in records:
        event = record.event
        if not isinstance(event, AgentStatus):
            continue
        if event.declaration is not None and event.declaration.run_id == run:
            groups.add(event.group_id)
        if run is None or event.group_id in groups:
            yield event


def show(facts: Facts, found: tuple[Finding, ...], console: Console) -> None:
    """Print what was looked at, then each finding with what to do."""
    trained, total = facts.actions.get(TRAINED, 0), sum(facts.actions.values())
    console.print(
        f"{facts.rollouts} rollouts; {facts.groups} closed groups of mode `train`, {trained} of "
        f"{total} actions trained"
    )
    if not found:
        console.print("[green]Nothing was found that keeps the policy from learning.[/green]")
    for finding in found:
        console.print(f"[bold]{plain(finding.what)}[/bold]")
        if finding.remedy:
            console.print(f"  {plain(finding.remedy)}")
