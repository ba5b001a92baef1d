"""What is written today is what was written when the golden files were made, to the byte, and what
was written then is read today.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import restore
from fulgurite.events import (
    EVENT_TYPES,
    Episode,
    Event,
    GroupClosed,
    LlmCall,
    PolicyUpdate,
    Tombstone,
    Trajectory,
)
from fulgurite.topics import TOPICS, TRAJECTORIES
from services.gateway.recording.spool_file import Segment
from services.learner.checkpoint import CheckpointStore
from services.replay.closings import Changes, Row
from services.replay.groups import read_groups
from services.replay.replay import run
from services.rewarder.closing_settings import ClosingSettings
from tests.contract.golden_bytes import GOLDEN, GOLDEN_FILES, checkpoint, event_of
from tests.contract.recorded_log import Recorded, load, record, said_in
from tests.services.replay.memory_log import MemoryLog

CODEC = Codec()


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


EVENTS = golden("events.json")


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_every_format_is_written_as_it_was(name: str) -> None:
    assert GOLDEN_FILES[name]() == golden(name)


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_is_read_and_written_as_it_was(name: str) -> None:
    case = EVENTS[name]
    data = base64.b64decode(case["bytes"])
    event = CODEC.decode(data)
    assert event == event_of(case)
    assert CODEC.encode(event) == data


@pytest.mark.parametrize("name", golden("older.json"))
def test_events_of_earlier_releases_are_read(name: str) -> None:
    case = golden("older.json")[name]
    assert CODEC.decode(base64.b64decode(case["bytes"])) == event_of(case)


def test_every_event_type_has_golden_bytes() -> None:
    assert {case["type"] for case in EVENTS.values()} == {
        event_type.__name__ for event_type in EVENT_TYPES
    }


def test_a_delta_that_was_written_is_restored() -> None:
    episode = CODEC.decode(base64.b64decode(EVENTS["Episode: a conversation"]["bytes"]))
    delta = CODEC.decode(base64.b64decode(golden("payloads.json")["delta"]))
    assert isinstance(episode, Episode)
    assert isinstance(delta, LlmCall)
    first, second = episode.calls
    assert delta.parent is not None
    assert restore(delta, first) == second


def test_a_checkpoint_that_was_written_is_read(tmp_path: Path) -> None:
    for name, text in golden("files.json")["learner"].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("FOLDER", str(tmp_path)))
    found = CheckpointStore(tmp_path, "policy").latest()
    assert found is not None
    state, trainer = found
    assert state.files == {"model.bin": 7}
    assert {**_fields(state), "files": {}} == _fields(checkpoint())
    assert trainer is not None
    assert (trainer / "model.bin").read_bytes() == b"tensors"


def test_a_spool_that_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "1.spool"
    path.write_bytes(base64.b64decode(golden("files.json")["gateway"]["1.spool"]))
    segment, found = Segment.recover(path)
    assert (len(found), found[1], segment.keep) == (2, b"a second payload", False)


def test_the_processors_write_again_what_was_recorded() -> None:
    """But for what came after the recording: `GroupClosed`, and the offsets that it moves; the turns
    of actions; the aliases of rows.
    """
    log = load()
    assert written(record(said_in(log))) == written(log)


@pytest.mark.parametrize("again", [False, True], ids=["as it was recorded", "as it would be today"])
def test_a_replay_of_the_recorded_log_writes_its_rows_again(again: bool) -> None:
    """It has no `GroupClosed`; what the processors would write today of the same has."""
    log, source = load(), MemoryLog()
    log = record(said_in(log)) if again else log
    assert any(one.event_type == GroupClosed.__name__ for one in log) == again
    topics = {topic.name: topic for topic in TOPICS}
    for one in log:
        source.append_bytes(
            topics[one.topic],
            one.key.encode(),
            one.value,
            one.event_id,
            one.timestamp,
            one.event_type,
        )
    sink = _Values()
    report = run(
        read_groups(source, CODEC),
        sink,
        source=source,
        codec=CODEC,
        changes=Changes(),
        settings=ClosingSettings(),
    )
    assert (report.unmet, report.left_out) == ([], [])
    assert _timeless(sink.by_group) == _timeless(
        _by_group((one.key, one.value) for one in log if one.topic == TRAJECTORIES.name)
    )


class _Values:
    """A sink in memory: the bytes of each group's rows."""

    def __init__(self) -> None:
        self.by_group: dict[str, list[bytes]] = {}

    def put(self, partition: int, rows: Sequence[Row]) -> None:
        for key, values in _by_group((row.group_id, CODEC.encode(row)) for row in rows).items():
            self.by_group.setdefault(key, []).extend(values)

    def close(self) -> None:
        """Nothing to finish."""


def as_before(event: Event) -> Event:
    """Without what logs of earlier releases do not have: turns, and aliases."""
    if isinstance(event, Tombstone):
        return msgspec.structs.replace(event, alias=None)
    if not isinstance(event, Trajectory):
        return event
    actions = tuple(msgspec.structs.replace(one, turn=None) for one in event.actions)
    return msgspec.structs.replace(event, alias=None, actions=actions)


def _timeless(rows: dict[str, list[bytes]]) -> dict[str, list[Event]]:
    """The events of each group without what logs of earlier releases do not have."""
    events = {key: [CODEC.decode(value) for value in values] for key, values in rows.items()}
    return {key: [as_before(one) for one in found] for key, found in events.items()}


def _by_group(values: Iterable[tuple[str, bytes]]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for key, value in values:
        found.setdefault(key, []).append(value)
    return found


def written(log: Sequence[Recorded]) -> dict[str, list[tuple[str, str, str, bytes]]]:
    """What each topic holds, in its order, in the schemas of today."""
    topics: dict[str, list[tuple[str, str, str, bytes]]] = {}
    for one in log:
        event = CODEC.decode(one.value)
        if isinstance(event, PolicyUpdate):
            event = msgspec.structs.replace(event, positions=())
        if not isinstance(event, GroupClosed):
            topics.setdefault(one.topic, []).append(
                (one.key, one.event_type, one.event_id, CODEC.encode(as_before(event)))
            )
    return topics


def _fields(state: Any) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__struct_fields__}
