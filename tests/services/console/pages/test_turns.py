"""Texts of calls, wherever they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlparse

import msgspec
import pytest

from fulgurite.calls.claim_checks import leave, payload_of
from fulgurite.enums import PromptKind
from fulgurite.events import PromptUpdate
from services.common.blobs.blob_store import ClaimStore, Folder
from services.console.index.reader import IndexReader
from services.console.pages.address import Address
from services.console.pages.reading import Asked, LiveIndex
from services.console.pages.turns import read_turns
from tests.services.console.index.recorded_log import CODEC, NOW_MS, RecordedLog, open_writer
from tests.synthetic import make_call


@pytest.mark.parametrize("kind", [PromptKind.set, PromptKind.candidate])
def test_a_call_shows_the_prompt_that_it_was_served_with(kind: PromptKind, tmp_path: Path) -> None:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
    ]
    log = RecordedLog()
    log.append(
        make_prompt(kind, "Be quick."),
        # The number is taken, so this one is never served.
        make_prompt(PromptKind.set, "Be late.", at=2),
        make_prompt(PromptKind.rollback, None, at=3),
        msgspec.structs.replace(make_call(1, messages=messages), prompt_version="prompt@1"),
    )
    reader, asked = open_pages(log, tmp_path)
    (turn,) = read_turns(asked, reader.rows("SELECT * FROM calls"))
    assert "Be kind." in (turn.sent or "")
    assert "Be quick." in (turn.served or "")


def make_prompt(kind: PromptKind, system: str | None, at: int = 1) -> PromptUpdate:
    return PromptUpdate(
        event_id=f"prompt {at}",
        event_time=at,
        alias="policy",
        kind=kind,
        version="prompt@1",
        system=system,
        reason="a reason",
        author="a person",
    )


def open_pages(log: RecordedLog, folder: Path) -> tuple[IndexReader, Asked]:
    """An index of the log, and what a page is asked there."""
    writer = open_writer(folder / "index.duckdb")
    writer.write(log.records)
    writer.close()
    reader = IndexReader(folder / "index.duckdb")
    return reader, Asked(LiveIndex(reader), Address.read("/timeline", ()), NOW_MS, CODEC)


def test_texts_that_are_stored_outside_the_log_are_fetched_or_missed_by_name(
    tmp_path: Path,
) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "a long story"}]
    call = make_call(1, messages=messages, at=1_000)
    claim = ClaimStore(Folder(tmp_path / "claims")).put(payload_of(call))
    log = RecordedLog()
    log.append(leave(call, claim))
    reader, asked = open_pages(log, tmp_path)
    rows = reader.rows("SELECT * FROM calls")
    (turn,) = read_turns(asked, rows)
    assert (turn.said, turn.missing) == ((("user", "a long story"),), None)
    assert json.loads(call.request or "")["messages"] == messages
    Path(unquote(urlparse(claim.uri).path)).unlink()
    (turn,) = read_turns(asked, rows)
    assert turn.said == ()
    assert "stored outside the log" in (turn.missing or "")
    assert claim.sha256 in (turn.missing or "")
