"""A reader reads from any thread and process, and changes nothing."""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from services.console.index.errors import BadQuery, IndexLocked, NoIndex
from services.console.index.query_server import QueryServer
from services.console.index.reader import LIMIT, IndexReader
from services.console.index.remote import socket_path
from services.console.index.writer import IndexWriter
from tests.services.console.index.recorded_log import open_writer, record_everything

OTHER_WRITER = """
import sys
from pathlib import Path
from services.console.index.query_server import QueryServer
from tests.services.console.index.recorded_log import open_writer, record_everything

path = Path(sys.argv[1])
writer = open_writer(path)
writer.write(record_everything().records)
server = QueryServer(path, 20) if sys.argv[2] == "answers" else None
print("ready", flush=True)
sys.stdin.read()
if server:
    server.close()
writer.close()
"""

ZONES = """
import sys
from pathlib import Path
from services.console.index.reader import IndexReader
from tests.services.console.index.recorded_log import open_writer

reader = IndexReader(Path(sys.argv[1]))
query = "SELECT current_setting('TimeZone') AS zone, to_timestamp(0)::TIMESTAMP AS zero"
open_writer(reader.path).close()
print(*reader.rows(query)[0].values())
writer = open_writer(reader.path)
print(*reader.rows(query)[0].values())
print(*writer.execute(query)[0])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.duckdb"


@pytest.fixture
def writer(path: Path) -> Iterator[IndexWriter]:
    """An index that this process has open."""
    made = open_writer(path)
    made.write(record_everything().records)
    yield made
    made.close()


def other_process(path: Path, how: str) -> subprocess.Popen[str]:
    """A process that has the index open."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_WRITER, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("sign", ["?", "$1"])
def test_parameters_are_values(sign: str, writer: IndexWriter, path: Path) -> None:
    reader = IndexReader(path)
    found = reader.rows(f"SELECT DISTINCT run_id FROM rollouts WHERE run_id = {sign}", ["run-1"])
    assert found == [{"run_id": "run-1"}]
    assert reader.rows(f"SELECT 1 FROM rollouts WHERE run_id = {sign}", ["' OR 1 = 1 --"]) == []


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("", "one statement"),
        ("SELECT nothing FROM calls", "nothing"),
        ("DELETE FROM calls", "DELETE is not allowed"),
        ("CREATE TABLE mine (a INTEGER)", "CREATE is not allowed"),
        ("COPY calls TO '/tmp/calls.csv'", "COPY is not allowed"),
        ("ATTACH '/tmp/other.duckdb'", "ATTACH is not allowed"),
        ("SET memory_limit = '1TB'", "SET is not allowed"),
        ("EXPLAIN ANALYZE DELETE FROM calls", "read-only"),
        ("SELECT * FROM read_text('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM '/etc/passwd.csv'", "passwd"),
        ("SELECT error('it is wrong')", "it is wrong"),
        ("SELECT ?", "parameter"),
    ],
)
def test_what_is_no_query_or_more_than_one_is_refused(
    sql: str, why: str, writer: IndexWriter, path: Path
) -> None:
    before = writer.execute("SELECT count(*) FROM calls")
    with pytest.raises(BadQuery, match=why):
        IndexReader(path).rows(sql)
    assert writer.execute("SELECT count(*) FROM calls") == before


def test_a_long_query_is_stopped(writer: IndexWriter, path: Path) -> None:
    with pytest.raises(BadQuery, match=r"longer than 0.05 s"):
        IndexReader(path, timeout_s=0.05).rows(
            "SELECT count(*) FROM range(1e9::BIGINT) a, range(9)"
        )
    assert IndexReader(path).rows("SELECT 1 AS one") == [{"one": 1}]


def test_rows_beyond_the_limit_are_left_out(writer: IndexWriter, path: Path) -> None:
    found = IndexReader(path).ask("SELECT call_id FROM calls", limit=3)
    assert (len(found.rows), found.is_cut) == (3, True)
    assert not IndexReader(path).ask("SELECT 1", limit=1).is_cut


def test_rows_that_would_be_cut_are_an_error(writer: IndexWriter, path: Path) -> None:
    reader = IndexReader(path)
    assert len(reader.rows(f"SELECT * FROM range({LIMIT})")) == LIMIT
    with pytest.raises(BadQuery, match=r"more than 100,000 rows.*FROM range"):
        reader.rows(f"SELECT * FROM range({LIMIT + 1})")


def test_threads_read_while_one_writes(writer: IndexWriter, path: Path) -> None:
    reader, counts = IndexReader(path), list[int]()
    records = record_everything().records

    def read() -> None:
        for _ in range(20):
            counts.append(reader.rows("SELECT count(*) AS n FROM calls")[0]["n"])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        writer.write(records)
    for thread in threads:
        thread.join()
    assert len(set(counts)) == 1
    assert len(counts) == 60


def test_without_a_file_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoIndex, match="start the console"):
        IndexReader(tmp_path / "none.duckdb").rows("SELECT 1")


def test_a_damaged_file_is_named(path: Path) -> None:
    path.write_text("no database, but long enough to be read as one" * 1_000)
    with pytest.raises(NoIndex, match=r"index\.duckdb cannot be read"):
        IndexReader(path).rows("SELECT 1")


def test_times_are_utc_in_every_time_zone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: DuckDB asks for the machine's time zone once.
    monkeypatch.setenv("TZ", "America/New_York")
    done = subprocess.run(
        [sys.executable, "-c", ZONES, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["UTC 1970-01-01 00:00:00"] * 3


def test_another_process_is_asked(path: Path) -> None:
    other = other_process(path, "answers")
    reader = IndexReader(path)
    types = reader.rows(
        "SELECT began_at, DATE '2026-11-30' AS day, 1.25 AS amount, rewards, versions, NULL AS none "
        "FROM rollouts WHERE reward = $1 ORDER BY rollout_id LIMIT 1",
        [1.0],
    )[0]
    assert isinstance(types["began_at"], datetime.datetime)
    assert (types["day"], types["amount"]) == (datetime.date(2026, 11, 30), Decimal("1.25"))
    assert (types["rewards"], types["versions"]) == ({"reward": 1.0}, ["policy@1.0", "policy@1.1"])
    assert types["none"] is None
    data = reader.rows("SELECT data FROM payloads LIMIT 1")[0]["data"]
    assert isinstance(data, bytes)
    with pytest.raises(BadQuery, match="syntax error"):
        reader.rows("SELEC")
    with pytest.raises(BadQuery, match="at most"):
        reader.rows(f"SELECT '{'x' * 2_000_000}'")
    with pytest.raises(IndexLocked, match="only one console"):
        open_writer(path)
    assert socket_path(path).stat().st_mode & 0o777 == 0o600
    here = reader.rows("SELECT * FROM rollouts ORDER BY rollout_id")
    other.communicate("")
    # Nobody has it open: the file itself is read.
    assert reader.rows("SELECT * FROM rollouts ORDER BY rollout_id") == here
    assert not socket_path(path).exists()


def test_a_process_that_does_not_answer_is_named(path: Path) -> None:
    other = other_process(path, "is silent")
    with pytest.raises(NoIndex, match="does not answer"):
        IndexReader(path).rows("SELECT 1")
    other.communicate("")


def test_a_socket_that_was_left_behind_is_replaced(writer: IndexWriter, path: Path) -> None:
    socket_path(path).touch()
    QueryServer(path, 1).close()


def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120) / "index.duckdb"
    assert len(str(socket_path(deep))) < 104
    assert socket_path(deep) != socket_path(deep.with_name("other.duckdb"))


@pytest.mark.parametrize("rows", ["1", "range(10_000)"])
def test_an_answer_that_is_too_large_is_not_sent(rows: str, writer: IndexWriter) -> None:
    reader = IndexReader(writer.path, most_bytes=1024**2)
    values = "1" if rows == "1" else f"unnest({rows})"
    small = reader.ask(f"SELECT {values} AS n")
    assert len(small.rows) == (1 if rows == "1" else 10_000)
    size = 2 * 1024**2 if rows == "1" else 1024
    with pytest.raises(BadQuery, match=r"more than 1 MiB in its first [\d,]+ rows: .*\(LIMIT\)"):
        reader.ask(f"SELECT {values}, [MAP {{'a': repeat('x', {size})}}]")
    within = reader.ask(f"SELECT {values}, repeat('x', 100)", limit=3)
    assert len(within.rows) == min(3, len(small.rows))
    assert within.is_cut == (rows != "1")


def test_another_process_gets_no_more_than_the_console_can_hold(path: Path) -> None:
    process = other_process(path, "answers")
    try:
        with pytest.raises(BadQuery, match="more than 64 MiB"):
            IndexReader(path).rows("SELECT repeat('x', 1000) FROM range(90_000)")
    finally:
        process.communicate()
