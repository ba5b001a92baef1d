"""`fulgurite sql`: what it prints, and what it says where it cannot answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.replay.columns import RECORDS
from services.replay.parquet import ParquetFolder
from tests.contract.test_docs import ROOT
from tests.contract.test_docs_commands import shown_commands
from tests.services.console.index.recorded_log import RecordedLog, open_writer, record_everything

LOG = record_everything()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "index.duckdb"
    writer = open_writer(path)
    writer.write(LOG.records)
    writer.close()
    monkeypatch.setenv("FULGURITE_CONSOLE_INDEX", str(path))
    return path


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["sql", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_a_table_json_and_csv_say_the_same(index: Path) -> None:
    query = "SELECT run_id, groups, rollouts, rewards FROM runs, (SELECT MAP {'a': 1.5::DOUBLE} AS rewards) ORDER BY run_id"
    expected = [("run-1", 3, 6), ("run-2", 1, 2)]
    rows = json.loads(run(query, "--json"))
    assert [(row["run_id"], row["groups"], row["rollouts"]) for row in rows] == expected
    assert rows[0]["rewards"] == {"a": 1.5}
    header, *lines = csv.reader(run(query, "--csv").splitlines())
    assert header == ["run_id", "groups", "rollouts", "rewards"]
    assert [(line[0], int(line[1]), int(line[2])) for line in lines] == expected
    shown = run(query)
    assert all(str(value) in shown for row in expected for value in row)


def test_without_a_query_the_tables_are_listed(index: Path) -> None:
    assert {"calls", "rollouts", "run_versions", "action_outcomes"} <= {
        row["table_name"] for row in json.loads(run("--json"))
    }


def test_rows_beyond_the_limit_are_named(index: Path) -> None:
    done = CliRunner().invoke(app, ["sql", "SELECT 1 FROM calls", "--limit", "2", "--json"])
    assert json.loads(done.stdout) == [{"1": 1}, {"1": 1}]
    assert "only the first 2 rows" in done.stderr


def test_the_queries_of_the_how_to_run(index: Path) -> None:
    shown = [
        words[2] for words in shown_commands(ROOT / "docs" / "how-to" / "query.md")
        if words[1:2] == ["sql"] and "--archive" not in words and len(words) > 2
    ]  # fmt: skip
    answers = [json.loads(run(query, "--json")) for query in shown]
    assert len(answers) >= 3
    assert all(answers[:2])


def test_texts_do_not_reach_the_terminal_as_commands(index: Path) -> None:
    assert "\x1b" not in run("SELECT chr(27) || '[31mred' AS text")


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["SELEC 1"], 1, "syntax error"),
        (["DROP TABLE calls"], 1, "DROP is not allowed"),
        (["SELECT 1", "--json", "--csv"], 1, "exclude each other"),
        (["SELECT 1", "--index", "nowhere.duckdb"], 2, "start the console"),
        (["SELECT 1", "--archive", "nowhere"], 1, "is not an archive"),
    ],
)
def test_errors_say_what_is_wrong(
    arguments: list[str], code: int, why: str, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(index.parent)
    assert why in " ".join(run(*arguments, code=code).split())


def test_without_duckdb_it_says_what_to_install(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    assert "pip install '/path/to/fulgurite[console]'" in " ".join(run("SELECT 1", code=2).split())


def archive(folder: Path, log: RecordedLog, since: int, until: int) -> None:
    """As `fulgurite archive` writes these records."""
    files = ParquetFolder(folder, RECORDS)
    ends: dict[str, dict[str, int]] = {}
    for record in log.records[:until]:
        partitions = ends.setdefault(record.topic, {})
        partitions[str(record.partition)] = record.offset + 1
    for record in log.records[since:until]:
        part = f"topic={record.topic}/day=2026-11-30/partition-{record.partition:03d}"
        row = {
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": b"",
            "value": record.value,
            "event_id": "",
            "event_type": "",
        }
        files.write(part, [row])
    files.close()
    (folder / "archive.json").write_text(json.dumps(ends))


def test_an_archive_has_the_same_tables(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    half = len(LOG.records) // 2
    archive(folder, LOG, 0, half)
    query = "SELECT * FROM rollouts ORDER BY rollout_id"
    some = json.loads(run("--archive", str(folder), query, "--json"))
    # The archive grew; so does its index.
    archive(folder, LOG, half, len(LOG.records))
    rows = json.loads(run("--archive", str(folder), query, "--json"))
    assert len(some) <= len(rows)
    assert rows == json.loads(run(query, "--json"))
    assert rows == json.loads(run("--archive", str(folder), query, "--json"))


def test_an_index_of_an_archive_with_other_tables_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    archive(folder, LOG, 0, len(LOG.records))
    query = "SELECT count(*) AS n FROM calls"
    before = run("--archive", str(folder), query, "--json")
    writer = open_writer(folder / "index.duckdb")
    writer.execute("UPDATE about SET layout = 0")
    writer.execute("DELETE FROM calls")
    writer.close()
    assert run("--archive", str(folder), query, "--json") == before
