"""A call is read in full by its place, though the index has only what was new in its turn."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from fulgurite.calls.deltas import link_of, shorten
from fulgurite.events import LlmCall
from fulgurite.tokens import prompt_hash
from services.console.index.payloads import BLOCK_BYTES, PayloadReader, make_blocks
from services.console.index.reader import IndexReader
from tests.services.console.index.recorded_log import CODEC, RecordedLog, open_writer
from tests.synthetic import make_call

TURNS = 5


def conversation() -> tuple[RecordedLog, list[LlmCall]]:
    """Turns that extend one another, logged as deltas; and the calls in full."""
    log, calls = RecordedLog(), list[LlmCall]()
    messages: list[dict[str, object]] = [{"role": "user", "content": "tell me " * 200}]
    for turn in range(TURNS):
        tokens = list(range(300 + 10 * turn))
        call = make_call(1, 0, turn, messages=messages, prompt=tokens, at=1_000 + turn)
        packed = call.prompt_token_ids or b""
        call = msgspec.structs.replace(call, prompt_hash=prompt_hash(packed))
        place = log.records[-1] if log.records else None
        links = [link_of(calls[-1], place.partition, place.offset, turn)] if place else []
        log.append(shorten(call, links)[0])
        calls.append(call)
        messages = [*messages, {"role": "assistant", "content": f"turn {turn}"}]
    return log, calls


@pytest.mark.parametrize("at_once", [True, False])
def test_calls_are_restored(at_once: bool, tmp_path: Path) -> None:
    log, calls = conversation()
    writer = open_writer(tmp_path / "index.duckdb")
    for batch in [log.records] if at_once else [[record] for record in log.records]:
        writer.write(batch)
    writer.close()
    reader = IndexReader(tmp_path / "index.duckdb")
    deltas = [record.event for record in log.records if isinstance(record.event, LlmCall)]
    assert [delta.parent is None for delta in deltas] == [True] + [False] * (TURNS - 1)
    for record, call in zip(log.records, calls, strict=True):
        found = PayloadReader(reader, CODEC).call(record.partition, record.offset)
        assert found == call
    # What a table says of a delta is what it says of the call.
    rows = reader.rows('SELECT prompt_tokens, question FROM calls ORDER BY "offset"')
    assert [row["prompt_tokens"] for row in rows] == [300 + 10 * turn for turn in range(TURNS)]
    assert [row["question"] is None for row in rows] == [False] + [True] * (TURNS - 1)


def test_a_call_whose_parent_is_gone_is_not_restored(tmp_path: Path) -> None:
    log, _ = conversation()
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records[1:])
    writer.close()
    reader = PayloadReader(IndexReader(tmp_path / "index.duckdb"), CODEC)
    last = log.records[-1]
    assert reader.call(last.partition, last.offset) is None
    assert reader.call(last.partition, 999) is None


def test_keys_in_errors_are_removed(tmp_path: Path) -> None:
    log = RecordedLog()
    log.append(msgspec.structs.replace(make_call(), error="sk-0123456789abcdef0123 refused"))
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    writer.close()
    reader = PayloadReader(IndexReader(tmp_path / "index.duckdb"), CODEC)
    call = reader.call(log.records[0].partition, 0)
    assert call is not None
    assert call.error == "[hidden] refused"
    assert json.loads(call.request or "") == {"messages": []}


def test_blocks_are_bounded_and_in_order() -> None:
    entries = [(offset, offset, bytes(2 * BLOCK_BYTES // 5)) for offset in range(7)]
    blocks = list(make_blocks("llm.calls", 0, entries))
    assert [(block["first_offset"], block["last_offset"]) for block in blocks] == [
        (0, 2),
        (3, 5),
        (6, 6),
    ]
