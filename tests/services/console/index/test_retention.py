"""The index keeps no more than its settings say."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec

from services.console.index.reader import IndexReader
from services.console.index.retention import (
    bytes_of_payloads,
    compact,
    delete_before,
    delete_beyond,
    used_bytes,
)
from tests.services.console.index.recorded_log import (
    NOW_MS,
    RecordedLog,
    open_writer,
    record_everything,
)
from tests.synthetic import group_id, make_call, make_group, make_reward, make_status

BY_GROUP = ("calls", "statuses", "groups", "rewards", "rollouts")


def test_groups_that_ended_before_a_time_go_with_all_that_is_theirs(tmp_path: Path) -> None:
    log = RecordedLog()
    log.append(*make_group(1, at=1_000), *make_group(2, at=1_000_000))
    # A group that goes on stays, though it began long ago.
    log.append(
        make_call(3, 0, at=1_000), make_status(3, 0, at=1_000), make_call(3, 1, at=1_000_000)
    )
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    assert delete_before(writer, 500_000) == 1
    assert delete_before(writer, 500_000) == 0
    writer.close()
    reader = IndexReader(tmp_path / "index.duckdb")
    for table in BY_GROUP:
        found = {row["group_id"] for row in reader.rows(f"SELECT group_id FROM {table}")}
        assert group_id(1) not in found
        assert group_id(2) in found
    assert len(reader.rows("SELECT * FROM rollouts WHERE group_id = ?", [group_id(3)])) == 2
    assert reader.rows(
        "SELECT count(*) AS n FROM payloads WHERE written_at < epoch_ms(500000)"
    ) == [{"n": 0}]


def test_what_comes_for_a_group_that_is_gone_goes_in_its_turn(tmp_path: Path) -> None:
    log = RecordedLog()
    log.append(*make_group(1, at=1_000))
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    assert delete_before(writer, 10_000_000) == 1
    log.append(make_reward(1, 0, at=20_000_000))
    writer.write(log.records)
    assert writer.execute("SELECT count(*) FROM rollouts") == [(0,)]
    delete_before(writer, 15_000_000)
    assert writer.execute("SELECT count(*) FROM rewards") == [(1,)]
    delete_before(writer, 30_000_000)
    assert writer.execute("SELECT count(*) FROM rewards") == [(0,)]
    writer.close()


def test_versions_routes_and_prompts_stay(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(record_everything().records)
    delete_before(writer, NOW_MS + 1)
    left = {
        table: writer.execute(f"SELECT count(*) FROM {table}")[0][0]
        for table in ("rollouts", "calls", "outcomes", "dead_letters", "dead_actions", "payloads",
                      "updates", "routes", "prompts", "applied")
    }  # fmt: skip
    writer.close()
    assert left == {
        "rollouts": 0, "calls": 0, "outcomes": 0, "dead_letters": 0, "dead_actions": 0,
        "payloads": 0, "updates": 5, "routes": 1, "prompts": 1, "applied": 1,
    }  # fmt: skip


def test_texts_go_before_groups_when_the_index_is_too_large(tmp_path: Path) -> None:
    chance, log = random.Random(22), RecordedLog()
    for number in range(120):
        call = make_call(number, at=1_000 + number)
        noise = chance.randbytes(120_000).hex()
        log.append(msgspec.structs.replace(call, request=noise))
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    writer.execute("CHECKPOINT")
    full = used_bytes(writer)
    assert delete_beyond(writer, 2 * full) == full
    assert delete_beyond(writer, full) < full / 2
    left = writer.execute("SELECT min(last_offset) > 0, count(*) > 0 FROM payloads")
    assert left == [(True, True)]
    assert writer.execute("SELECT count(*) FROM calls") == [(120,)]
    writer.write(log.records)
    delete_beyond(writer, 1)
    assert writer.execute("SELECT count(*) FROM payloads") == [(0,)]
    assert writer.execute("SELECT count(*) FROM calls") == [(0,)]
    writer.close()


def test_texts_that_compress_well_are_cut_to_the_same_size(tmp_path: Path) -> None:
    chance, log = random.Random(22), RecordedLog()
    noise = chance.randbytes(40_000).hex()
    for number in range(400):
        # DuckDB compresses what neighbouring blocks share.
        text = noise + chance.randbytes(4_000).hex()
        log.append(msgspec.structs.replace(make_call(number, at=1_000 + number), request=text))
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    writer.execute("CHECKPOINT")
    full = used_bytes(writer)
    ((lengths,),) = writer.execute("SELECT sum(octet_length(data)) FROM payloads")
    stored = bytes_of_payloads(writer)
    assert 0 < stored < lengths / 2
    assert delete_beyond(writer, full) <= full // 3
    ((left,),) = writer.execute("SELECT count(*) FROM payloads")
    assert left > 0
    assert writer.execute("SELECT count(*) FROM calls") == [(400,)]
    writer.close()


def test_a_copy_of_the_tables_has_the_same_rows(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "index.duckdb")
    log = record_everything()
    writer.write(log.records[:60])
    compact(writer)
    writer.write(log.records)
    copied = writer.execute("SELECT * FROM rollouts ORDER BY rollout_id")
    writer.close()
    writer = open_writer(tmp_path / "other.duckdb")
    writer.write(log.records)
    assert writer.execute("SELECT * FROM rollouts ORDER BY rollout_id") == copied
    writer.close()
