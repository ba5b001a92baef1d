"""Texts of calls, wherever they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlparse

from fulgurite.calls.claim_checks import leave, payload_of
from services.common.blobs.blob_store import ClaimStore, Folder
from services.console.index.reader import IndexReader
from services.console.pages.address import Address
from services.console.pages.reading import Asked, LiveIndex
from services.console.pages.turns import read_turns
from tests.services.console.index.recorded_log import CODEC, NOW_MS, RecordedLog, open_writer
from tests.synthetic import make_call


def test_texts_that_are_stored_outside_the_log_are_fetched_or_missed_by_name(
    tmp_path: Path,
) -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "a long story"}]
    call = make_call(1, messages=messages, at=1_000)
    claim = ClaimStore(Folder(tmp_path / "claims")).put(payload_of(call))
    log = RecordedLog()
    log.append(leave(call, claim))
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    writer.close()
    reader = IndexReader(tmp_path / "index.duckdb")
    asked = Asked(LiveIndex(reader), Address.read("/timeline", ()), NOW_MS, CODEC)
    rows = reader.rows("SELECT * FROM calls")
    (turn,) = read_turns(asked, rows)
    assert (turn.said, turn.missing) == ((("user", "a long story"),), None)
    assert json.loads(call.request or "")["messages"] == messages
    Path(unquote(urlparse(claim.uri).path)).unlink()
    (turn,) = read_turns(asked, rows)
    assert turn.said == ()
    assert "stored outside the log" in (turn.missing or "")
    assert claim.sha256 in (turn.missing or "")
