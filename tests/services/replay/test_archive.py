"""An archive is read like the log: in the order of offsets, each record once, whatever a killed run
has left behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.calls.claim_checks import extract_pieces, leave, payload_of
from fulgurite.errors import BadClaim, BrokenDelta
from fulgurite.events import ParentRef
from fulgurite.topics import LLM_CALLS, TRAJECTORIES
from services.common.blobs.blob_store import open_store, redeemed
from services.common.kafka.settings import KafkaSettings
from services.replay import archive as archive_module
from services.replay.archive import ArchiveSource, archive, open_source
from services.replay.archived_claims import ArchivedClaims
from services.replay.columns import RECORDS
from services.replay.errors import BadArchive, BadArgument
from services.replay.parquet import ParquetFolder, read_rows
from services.replay.pruning import names_in
from services.replay.records import Raw
from tests.synthetic import make_call

DAY_MS = 24 * 3600 * 1000


def written(folder: Path, offsets: range) -> None:
    """What one run leaves: a record an hour."""
    files = ParquetFolder(folder, RECORDS)
    for offset in offsets:
        at = offset * DAY_MS // 24
        row = {
            "offset": offset,
            "timestamp": at,
            "key": b"k",
            "value": b"v%d" % offset,
            "event_id": str(offset),
            "event_type": "LlmCall",
        }
        files.write(f"topic=llm.calls/day=1970-01-{1 + at // DAY_MS:02d}/partition-003", [row])
    files.close()


@pytest.fixture
def archived(tmp_path: Path) -> ArchiveSource:
    written(tmp_path, range(40))
    # A run that was killed before it said how far it had come is repeated.
    written(tmp_path, range(30, 60))
    (tmp_path / "archive.json").write_text('{"llm.calls": {"3": 60}}')
    return ArchiveSource(tmp_path)


def test_records_come_in_order_and_once(archived: ArchiveSource) -> None:
    found = list(archived.read((LLM_CALLS, TRAJECTORIES), 3))
    assert [raw.offset for raw in found] == list(range(60))
    assert (found[7].value, found[7].topic, found[7].partition, found[7].event_id) == (
        b"v7",
        "llm.calls",
        3,
        "7",
    )
    assert list(archived.read((LLM_CALLS,), 4)) == []
    assert archived.ends == {("llm.calls", 3): 60}


def test_days_before_a_start_are_not_read(archived: ArchiveSource) -> None:
    assert [raw.offset for raw in archived.read((LLM_CALLS,), 3, since_ms=2 * DAY_MS)] == list(
        range(48, 60)
    )
    assert archived.count((LLM_CALLS,), since_ms=2 * DAY_MS) < archived.count((LLM_CALLS,)) == 70


def test_however_many_days_a_log_has_few_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record an hour, every second one late by a day, as if clocks differed."""
    most = 0

    class Log:
        gaps = ()

        def read(self, topics: object, partition: int) -> Iterator[Raw]:
            nonlocal most
            for offset in range(48 * 24 if partition < 2 else 0):
                at = offset * DAY_MS // 24 + offset % 2 * DAY_MS
                yield Raw(LLM_CALLS.name, partition, offset, at, b"k", b"v%d" % offset, "e", "t")
                most = max(most, len(list(tmp_path.rglob(".*.parquet"))))

        def end(self, place: object) -> int:
            return 48 * 24

    def make_log(*_: object, **__: object) -> Log:
        return Log()

    def ignore(*_: object) -> None: ...

    monkeypatch.setattr(archive_module, "LogSource", make_log)
    report = archive(KafkaSettings(), Codec(), tmp_path, (LLM_CALLS,), ignore)
    assert report.records == {LLM_CALLS.name: 2 * 48 * 24}
    assert most <= 4
    found = list(ArchiveSource(tmp_path).read((LLM_CALLS,), 1))
    assert [raw.value for raw in found] == [b"v%d" % offset for offset in range(48 * 24)]
    assert len(list(tmp_path.rglob("partition-001.*.parquet"))) == 49, "one a day"


def test_a_reader_opens_the_files_that_are_next(
    archived: ArchiveSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, range(60, 600))
    now = most = 0

    def counted(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            yield from read_rows(path, columns)
        finally:
            now -= 1

    monkeypatch.setattr(archive_module, "read_rows", counted)
    offsets = [raw.offset for raw in archived.read((LLM_CALLS,), 3)]
    assert offsets == list(range(600))
    assert most <= 4


def test_a_part_may_have_several_files(tmp_path: Path) -> None:
    files = ParquetFolder(tmp_path, RECORDS, most_open=1)
    row = {"timestamp": 0, "key": b"", "value": b"", "event_id": "", "event_type": ""}
    for offset in range(4):
        files.write("ab"[offset % 2], [{"offset": offset, **row}])
    files.close()
    offsets = [
        sorted(
            row["offset"]
            for path in tmp_path.glob(f"{part}.*")
            for row in read_rows(path, ["offset"])
        )
        for part in "ab"
    ]
    assert offsets == [[0, 2], [1, 3]]


def test_a_parent_that_was_not_archived_is_gone(archived: ArchiveSource) -> None:
    call = make_call()
    ref = ParentRef(call_id="parent", partition=3, offset=1, shared_tokens=0, shared_messages=0)
    assert archived.complete_call(call, {}) is call
    with pytest.raises(BrokenDelta, match="not in the archive"):
        archived.complete_call(msgspec.structs.replace(call, parent=ref), {})


def test_claims_are_copied_and_found_there_when_the_first_are_gone(tmp_path: Path) -> None:
    call = make_call(messages=[{"role": "user", "content": "x" * 10_000}])
    store = open_store("", tmp_path / "data")
    logged = leave(call, store.put(payload_of(call)))
    codec, claims = Codec(), ArchivedClaims(tmp_path)
    assert claims.at_hand(logged) == logged
    assert claims.copy(codec.encode(logged), codec) == (1, [])
    assert claims.copy(codec.encode(logged), codec) == (0, []), "it is there"
    assert claims.copy(codec.encode(call), codec) == claims.copy(b"no record", codec) == (0, [])
    for left in store.found():
        store.remove(left)
    (tmp_path / "archive.json").write_text("{}")
    assert redeemed(ArchiveSource(tmp_path).complete_call(logged, {})) == call
    with pytest.raises(BadClaim):
        redeemed(logged)
    copied, [lost] = ArchivedClaims(tmp_path / "another").copy(codec.encode(logged), codec)
    assert copied == 0
    assert "No such file" in lost


def test_pieces_are_copied_too_and_kept_while_the_log_names_them(tmp_path: Path) -> None:
    call = make_call(
        messages=[
            {"role": "user", "content": "x" * 10_000},
            {"role": "user", "content": "y" * 10_000},
        ]
    )
    store = open_store("", tmp_path / "data")
    light, payloads = extract_pieces(call, 1_000)
    logged = msgspec.structs.replace(light, pieces=tuple(map(store.put, payloads.values())))
    codec = Codec()
    assert names_in(codec.encode(logged)) == {left.name for left in store.found()}, (
        "what prunes the store knows them"
    )
    assert ArchivedClaims(tmp_path).copy(codec.encode(logged), codec) == (2, [])
    for left in store.found():
        store.remove(left)
    (tmp_path / "archive.json").write_text("{}")
    assert redeemed(ArchiveSource(tmp_path).complete_call(logged, {})) == call
    with pytest.raises(BadClaim):
        redeemed(logged)


def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=r"archive\.json"):
        ArchiveSource(tmp_path)
    with pytest.raises(BadArgument, match="--archive"):
        open_source(KafkaSettings(), Codec(), None, archive_only=True)
    (tmp_path / "archive.json").write_text("no JSON")
    with pytest.raises(BadArchive):
        ArchiveSource(tmp_path)
