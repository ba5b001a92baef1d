"""Defines the command `fulgurite tail TOPIC`: prints the records of a topic as they come."""

from __future__ import annotations

import heapq
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import typer

from fulgurite.errors import BadClaim
from fulgurite.events import Event, LedgerEntry, LlmCall
from fulgurite.topics import TOPICS, TRAJECTORIES, Topic
from fulgurite.untrusted_json import encoded
from services.cli.errors import report_errors
from services.cli.event_lines import line_of
from services.common.blobs.blob_store import readable
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record
from services.common.kafka.log_follower import LogFollower
from services.common.kafka.logged_calls import expanded_calls
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import topic_names
from services.common.runtime.escaping import escaped, escaped_json
from services.common.runtime.event_json import event_json
from services.common.runtime.interrupts import interrupts_noted
from services.common.runtime.logs import hidden
from services.replay.errors import BadArgument, NotFound
from services.replay.lookup import group_of
from services.replay.windows import parse_since, shown


def tail(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC",
            help="Topic, with or without FULGURITE_TOPIC_PREFIX (docs/reference/topics.md).",
        ),
    ],
    newest: Annotated[
        int, typer.Option("-n", min=0, metavar="N", help="Print the newest N records first.")
    ] = 0,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Print records from this time on first: an age (90s, 30m, 24h, 7d), or an ISO "
            "time in UTC.",
        ),
    ] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Print all that the topic holds first.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Stop at the end of the topic; do not follow it.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Only records with this key: a group, policy or alias."),
    ] = None,
    rollout: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Only records about this rollout; the id of a call names its rollout.",
        ),
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="With --json, print all token ids and log-probabilities."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
) -> None:
    """Print the records of a topic as they are written, one per line, until stopped.

    Begins at the end of the topic, unless told otherwise. Calls are complete: deltas and claim
    checks are expanded; without --tokens, tokens are counted. Texts that look like keys are
    hidden. Records of one partition are in order. Exits 1 for a topic that does not exist, 2 if
    the log cannot be read.

    Example: `fulgurite tail agent.rewards --json -n 10 --once`
    """
    if sum((newest > 0, since is not None, from_beginning)) > 1:
        raise typer.BadParameter("-n, --since and --from-beginning exclude one another: give one")
    with report_errors("tail"), suppress(KeyboardInterrupt), interrupts_noted() as stop:
        kafka = answering(KafkaSettings())
        chosen = find_topic(kafka, topic)
        wanted = Wanted(key, rollout)
        since_ms = parse_since(since)
        # The newest records with a key may be anywhere.
        all_of_it = from_beginning or since_ms is not None or (newest and not wanted.all)
        with LogFollower(
            kafka,
            make_codec(),
            [chosen],
            since_ms=since_ms,
            newest=None if all_of_it else newest,
        ) as follower:
            write = _json_line if as_json else _line
            records = _selected(follower, wanted, newest, stop, once=once)
            for record in _expanded(kafka, chosen, records):
                _print(write(kafka.topic(chosen), record, tokens))


def find_topic(kafka: KafkaSettings, name: str) -> Topic:
    """Find a topic by its name: one of the deployment's, or one that a replay wrote.

    Raises NotFound with the list of topics, LogUnavailable.
    """
    prefix = kafka.topic_prefix
    there = topic_names(kafka)
    bare = name.removeprefix(prefix)
    known = {topic.name: topic for topic in TOPICS}
    if prefix + bare in there:
        return known.get(bare) or msgspec.structs.replace(TRAJECTORIES, name=bare)
    if bare in known:
        raise NotFound(
            f"the topic {prefix}{bare} does not exist on {kafka.bootstrap_servers}: run "
            "`fulgurite topics create`, or choose another FULGURITE_TOPIC_PREFIX"
        )
    others = {one.removeprefix(prefix) for one in there if prefix and one.startswith(prefix)}
    raise NotFound(
        f"there is no topic {name!r}; there are {', '.join([*known, *sorted(others - set(known))])}"
    )


class Wanted:
    """Says which records to print. Raises BadArgument for what is no rollout."""

    def __init__(self, key: str | None, rollout: str | None) -> None:
        group, self._rollout = (None, None) if rollout is None else group_of(rollout)
        if rollout is not None and self._rollout is None:
            raise BadArgument(f"--rollout {rollout} is a group: use --key {group}")
        if key is not None and group is not None and key != group:
            raise BadArgument(f"--rollout {rollout} is of the group {group}, not of --key {key}")
        wanted = key if key is not None else group
        self.all = wanted is None
        """Whether every record is printed."""
        self._key = None if wanted is None else wanted.encode()

    def __call__(self, record: Record) -> bool:
        """Whether the record is one of them."""
        if self._key is not None and record.key != self._key:
            return False
        return self._rollout is None or self._is_about(record.event, self._rollout)

    def _is_about(self, event: Event | None, rollout: str) -> bool:
        if isinstance(event, LedgerEntry):
            return any(group_of(action)[1] == rollout for action in event.actions)
        return getattr(event, "rollout_id", None) == rollout


def _selected(
    follower: LogFollower, wanted: Wanted, newest: int, stop: threading.Event, *, once: bool
) -> Iterator[Record]:
    """The chosen records: the newest in order of their time, then what comes."""
    if newest:
        past = (record for _, record in follower.records(stop, once=True) if wanted(record))
        latest = heapq.nlargest(newest, past, key=lambda one: (one.timestamp, one.offset))
        yield from reversed(latest)
    for _, record in follower.records(stop, once=once):
        if wanted(record):
            yield record


def _expanded(kafka: KafkaSettings, topic: Topic, records: Iterator[Record]) -> Iterator[Record]:
    """The same with complete calls."""
    carries_calls = LlmCall in topic.carries
    for record in expanded_calls(kafka, make_codec(), records) if carries_calls else records:
        if isinstance(record.event, LlmCall):
            try:
                record = msgspec.structs.replace(record, event=readable(record.event))
            except (BadClaim, OSError) as error:
                record = msgspec.structs.replace(record, error=f"{type(error).__name__}: {error}")
        yield record


def _print(line: str) -> None:
    """Print a line; end quietly when the reader of a pipe has ended."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Python flushes stdout again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise KeyboardInterrupt from None


def _json_line(topic: str, record: Record, tokens: bool) -> str:
    event = record.event
    line: dict[str, Any] = {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": None if record.key is None else hidden(record.key.decode(errors="replace")),
        "type": None if event is None else type(event).__name__,
        "event": None if event is None else event_json(event, tokens=tokens),
    }
    if record.error is not None:
        line["error"] = record.error
    return escaped_json(encoded(line).decode())


def _line(topic: str, record: Record, _tokens: bool) -> str:
    event = record.event
    said = f"{type(event).__name__}  {line_of(event)}" if event is not None else ""
    place = f"{topic}[{record.partition}]@{record.offset}"
    return escaped(f"{shown(record.timestamp)}  {place}  {said}{record.error or ''}")
