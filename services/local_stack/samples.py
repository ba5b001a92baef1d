"""Takes the best rollouts of a run from the log, to be read: is the tool really used, or is the
reward earned in another way?
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fulgurite.enums import Mode
from fulgurite.untrusted_json import Json
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.replay.groups import Group, read_groups
from services.replay.listing import Wanted, listed
from services.replay.log_source import LogSource
from services.replay.timeline import shortened, timeline
from services.rewarder.closing_settings import ClosingSettings

_LONGEST_LINE = 300


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout, to be read."""

    rollout_id: str
    task: str
    reward: float
    lines: tuple[str, ...]
    """What was said, in order, with the speaker before a colon."""


def best_samples(kafka: KafkaSettings, run_id: str, count: int) -> tuple[Sample, ...]:
    """The rollouts of an evaluation with the highest rewards; of equal ones, those with the most
    calls. Raises LogUnavailable.
    """
    codec = make_codec()
    wanted = Wanted(mode=Mode.val, run_id=run_id)
    groups = {
        group.group_id: group
        for group in read_groups(LogSource(kafka, codec), codec)
        if group.declaration is not None and group.declaration.run_id == run_id
    }
    rows = [row for group in groups.values() for row in listed(group, wanted)]
    scored = [row for row in rows if row["reward"] is not None]
    scored.sort(key=lambda row: (-row["reward"], -row["calls"], row["rollout_id"]))
    return tuple(_sample(groups[row["group_id"]], row) for row in scored[:count])


def _sample(group: Group, row: Json) -> Sample:
    events = timeline(group, row["rollout_id"], ClosingSettings())["events"]
    calls = [event for event in events if event["what"] == "call"]
    return Sample(
        rollout_id=row["rollout_id"],
        task=shortened(row["task"] or "", _LONGEST_LINE),
        reward=row["reward"],
        lines=tuple(line for call in calls for line in _lines(call)),
    )


def _lines(call: Json) -> Iterator[str]:
    """What a call added to the conversation."""
    speaker = call["agent"] or "assistant"
    for message in call["messages"]:
        if message["role"] != "assistant":
            yield from _said(message["role"], message)
    for choice in call["choices"]:
        yield from _said(speaker, choice["message"])


def _said(speaker: str, message: Json) -> Iterator[str]:
    if message["content"]:
        yield f"{speaker}: {shortened(message['content'], _LONGEST_LINE)}"
    for called in message["tool_calls"]:
        yield f"{speaker}: {called['name']}({shortened(called['arguments'], _LONGEST_LINE)})"
