"""Reads and writes `prompt.updates` for `fulgurite prompts`."""

from __future__ import annotations

import getpass
import uuid

import msgspec

from fulgurite.enums import PromptKind
from fulgurite.events import PromptUpdate
from fulgurite.ids import derive_id
from fulgurite.prompts.history import PromptHistory
from fulgurite.prompts.tuning import edits_of
from fulgurite.topics import PROMPT_UPDATES
from services.cli.prompt_files import MAX_CHARACTERS, BadPrompt
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms


def read_prompts(kafka: KafkaSettings) -> PromptHistory:
    """Read every version. Raises LogUnavailable."""
    history = PromptHistory()
    for record in read_all(kafka, PROMPT_UPDATES, make_codec()):
        history.apply(record.event)
    return history


def write_version(kafka: KafkaSettings, edits: PromptUpdate) -> PromptUpdate:
    """Write a version with these edits, alias and role, and return it.

    Raises BadPrompt for one that changes nothing or is too large, or if another was written at the
    same time; LogUnavailable.
    """
    history = read_prompts(kafka)
    current = history.current(edits.alias, edits.role)
    if current is not None and edits_of(current) == edits_of(edits):
        raise BadPrompt(f"{current.version} is in force and says the same: nothing was written")
    size = sum(len(str(one)) for one in edits_of(edits).values())
    if size > MAX_CHARACTERS:
        raise BadPrompt(
            f"the version has {size:,} characters; the limit is {MAX_CHARACTERS:,}: shorten it"
        )
    version = history.next_version(edits.alias)
    event = msgspec.structs.replace(
        edits,
        event_id=derive_id("prompt", edits.alias, version),
        version=version,
        parent=current.version if current is not None else None,
    )
    _publish(kafka, event)
    if read_prompts(kafka).find(event.alias, version) != event:
        raise BadPrompt(
            f"somebody else wrote {version} of {event.alias} at the same time, and this one does "
            "not count: look at theirs (`fulgurite prompts show`), and set yours again"
        )
    return event


def write_return(
    kafka: KafkaSettings,
    kind: PromptKind,
    alias: str,
    role: str | None,
    version: str | None,
    reason: str,
) -> PromptUpdate:
    """Put a version in force that is written already, or none; returns the event.

    `kind`: `rollback` or `promoted`. Raises LogUnavailable.
    """
    current = read_prompts(kafka).current(alias, role)
    event = PromptUpdate(
        event_id=derive_id("prompt", alias, uuid.uuid4().hex),
        event_time=now_ms(),
        alias=alias,
        role=role,
        kind=kind,
        version=version,
        parent=current.version if current is not None else None,
        reason=reason,
        author=getpass.getuser(),
    )
    _publish(kafka, event)
    return event


def _publish(kafka: KafkaSettings, event: PromptUpdate) -> None:
    producer = EventProducer(kafka, make_codec(), "fulgurite-cli")
    try:
        producer.publish_sync(PROMPT_UPDATES, event.alias, event)
    finally:
        producer.close()
