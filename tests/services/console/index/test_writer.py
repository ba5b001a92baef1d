"""What the index says is what the log says, however its records come."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.cost.prices import parse_prices
from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import GroupClosed, LedgerEntry, Trajectory
from fulgurite.ids import action_id
from services.console.index.database import connect, delete_index
from services.console.index.errors import ForeignIndex, OutdatedIndex
from services.console.index.reader import IndexReader
from services.console.index.writer import IndexWriter
from services.replay.listing import Wanted, listed
from tests.services.console.index.recorded_log import (
    CODEC,
    NOW_MS,
    PREFIX,
    RecordedLog,
    make_update,
    open_writer,
    record_everything,
)
from tests.synthetic import group_id, make_call, make_reward, rollout_id

LOG = record_everything()
TABLES = (
    "calls", "statuses", "groups", "episodes", "rewards", "closings", "trajectories", "actions",
    "tombstones", "rollouts", "funnel", "outcomes", "ledger", "updates", "routes", "applied", "prompts",
    "dead_letters", "dead_actions", "unreadable",
)  # fmt: skip


def contents(path: Path) -> dict[str, list[str]]:
    """Every row of every table but the payloads, whose blocks depend on the batches."""
    reader = IndexReader(path)
    return {
        table: sorted(repr(row) for row in reader.rows(f"SELECT * FROM {table}"))
        for table in TABLES
    }


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> IndexReader:
    """The log, written at once."""
    path = tmp_path_factory.mktemp("index") / "index.duckdb"
    writer = open_writer(path)
    writer.write(LOG.records)
    writer.close()
    return IndexReader(path)


def test_every_table_has_rows(index: IndexReader) -> None:
    counts = {
        table: index.rows(f"SELECT count(*) AS rows FROM {table}")[0]["rows"] for table in TABLES
    }
    assert all(counts.values()), counts


def test_a_log_that_began_anew_replaces_the_old_one_while_a_page_reads(tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    writer = open_writer(path)
    writer.write(LOG.records)
    before = contents(path)
    page = connect(path)
    page.execute("SELECT * FROM calls").fetchone()
    writer.clear()
    assert writer.positions() == {}
    assert IndexReader(path).rows("SELECT * FROM calls") == []
    writer.write(LOG.records)
    assert contents(path) == before
    page.close()
    writer.close()


def test_every_view_can_be_read(index: IndexReader) -> None:
    views = index.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")
    found = {row["view_name"]: index.rows(f"SELECT * FROM {row['view_name']}") for row in views}
    assert {view for view, rows in found.items() if not rows} <= {"costs"}


def test_the_funnel_has_the_terms_of_the_ledger(index: IndexReader) -> None:
    books = LOG.balance()
    assert books.remainder == 0
    rows = index.rows(
        "SELECT term, reason, count(*) AS actions FROM action_outcomes "
        "WHERE term <> 'recorded' GROUP BY ALL"
    )
    found = {
        f"{row['term']}({row['reason']})" if row["reason"] else row["term"]: row["actions"]
        for row in rows
    }
    assert found == books.terms
    assert {"amended", "dead_lettered", "open(waits_for_learner)", "open(no_episode)"} <= set(found)
    untrained = index.rows(
        "SELECT reason, count(*) AS actions FROM action_outcomes WHERE term = 'recorded' "
        "GROUP BY reason"
    )
    assert {row["reason"]: row["actions"] for row in untrained} == books.untrained


def test_the_table_of_the_funnel_counts_the_actions(index: IndexReader) -> None:
    columns = "rollout_id, mode, agent, alias, policy, version, term, reason"
    assert index.rows(
        f"SELECT {columns}, sum(actions)::BIGINT AS n FROM funnel GROUP BY ALL ORDER BY ALL"
    ) == index.rows(
        f"SELECT {columns}, count(*) AS n FROM action_outcomes GROUP BY ALL ORDER BY ALL"
    )
    assert {row["run_id"] for row in index.rows("SELECT run_id FROM funnel")} == {
        "run-1",
        "run-2",
        None,
    }


def test_rollouts_are_those_of_the_command_line(index: IndexReader) -> None:
    listing = {row["rollout_id"]: row for group in LOG.groups() for row in listed(group, Wanted())}
    found = {row["rollout_id"]: row for row in index.rows("SELECT * FROM rollouts")}
    assert found.keys() == listing.keys()
    names = {
        "group_id": "group_id", "run_id": "run_id", "mode": "mode", "outcome": "outcome",
        "failure": "failure", "calls": "calls", "tokens": "completion_tokens",
        "versions": "versions", "reward": "reward", "reason": "reward_reason", "task": "task",
        "answer": "answer",
    }  # fmt: skip
    for name, row in listing.items():
        assert {key: row[key] for key in names} == {
            key: found[name][column] for key, column in names.items()
        }
    assert {row["reward_reason"] for row in found.values()} == {
        None,
        "no_reward",
        "reward_failed",
    }


@pytest.mark.parametrize("size", [11, 40])
def test_batches_change_nothing(size: int, index: IndexReader, tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    for start in range(0, len(LOG.records), 2 * size):
        # A process that is started again between two transactions goes on.
        writer = open_writer(path)
        for at in range(start, min(start + 2 * size, len(LOG.records)), size):
            writer.write(LOG.records[at : at + size])
        writer.close()
    assert contents(path) == contents(index.path)


def test_the_order_of_topics_changes_nothing(index: IndexReader, tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    chance = random.Random(22)
    places = {(record.topic, record.partition) for record in LOG.records}
    lines = {
        place: [record for record in LOG.records if (record.topic, record.partition) == place]
        for place in sorted(places)
    }
    writer = open_writer(path)
    while lines:
        place = chance.choice(list(lines))
        writer.write([lines[place].pop(0) for _ in range(min(3, len(lines[place])))])
        if not lines[place]:
            del lines[place]
    writer.close()
    assert contents(path) == contents(index.path)


def test_entries_of_a_learner_elsewhere_do_not_count_though_its_claim_is_read_late(
    tmp_path: Path,
) -> None:
    log, call = RecordedLog(), make_call(1, 0)
    log.append(
        call,
        LedgerEntry(
            event_id="entry",
            event_time=6_000,
            policy="replayed",
            group_id=group_id(1),
            group_revision="revision",
            term=LedgerTerm.trained,
            actions=(action_id(call.call_id, 0),),
            version="replayed@1.1",
            source="learner",
        ),
    )
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    assert writer.execute("SELECT term FROM funnel") == [("trained",)]
    claim = make_update(1, UpdateKind.claim)
    claims = RecordedLog()
    claims.append(msgspec.structs.replace(claim, policy="replayed", topic="trajectories.again"))
    writer.write(claims.records)
    assert writer.execute("SELECT term FROM funnel") == [("open",)]
    writer.close()


def test_what_is_read_twice_is_there_once(index: IndexReader, tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    writer = open_writer(path)
    writer.write(LOG.records)
    writer.write(LOG.records)
    # The same events, redelivered behind the others, but for closings that no longer count.
    again = RecordedLog()
    again.append(*(record.event for record in LOG.records if record.event is not None))
    current = {event.group_revision for event in last_closings().values()}
    writer.write(
        [
            msgspec.structs.replace(record, offset=record.offset + 1_000)
            for record in again.records
            if getattr(record.event, "group_revision", None) in {None, *current}
        ]
    )
    assert writer.execute("SELECT count(*) FROM closings") == [(len(current),)]
    writer.close()
    found, expected = contents(path), contents(index.path)
    # A closing that is written again is the last of its group, as ever.
    assert {**found, "closings": []} == {**expected, "closings": []}


def last_closings() -> dict[str, GroupClosed]:
    """The last closing of each group."""
    return {
        record.event.group_id: record.event
        for record in LOG.records
        if isinstance(record.event, GroupClosed)
    }


def test_only_the_newest_closing_of_a_group_stays(index: IndexReader) -> None:
    last = last_closings()
    closings = index.rows("SELECT group_id, group_revision, closings FROM closings")
    assert {row["group_id"]: row["group_revision"] for row in closings} == {
        group: closed.group_revision for group, closed in last.items()
    }
    assert {row["group_id"]: row["closings"] for row in closings}[group_id(1)] == 2
    rows = index.rows("SELECT DISTINCT group_id, group_revision FROM trajectories")
    assert all(last[row["group_id"]].group_revision == row["group_revision"] for row in rows)
    actions = Counter(
        record.event.group_revision
        for record in LOG.records
        if isinstance(record.event, Trajectory)
        and record.event.group_revision == last[record.event.group_id].group_revision
        for _ in record.event.actions
    )
    found = index.rows("SELECT group_revision, count(*) AS n FROM actions GROUP BY ALL")
    assert {row["group_revision"]: row["n"] for row in found} == dict(actions)


def test_updates_of_a_superseded_learner_do_not_count(index: IndexReader) -> None:
    versions = index.rows("SELECT version, metrics FROM versions ORDER BY epoch, step")
    assert [row["version"] for row in versions] == ["policy@1.1", "policy@2.2"]
    assert versions[0]["metrics"] == {"loss": 0.5, "grad_norm": None}


def test_what_looks_like_a_key_is_not_in_the_index(index: IndexReader) -> None:
    for table in TABLES:
        assert "sk-0123" not in repr(index.rows(f"SELECT * FROM {table}"))
        assert "Bearer a" not in repr(index.rows(f"SELECT * FROM {table}"))


def test_an_advantage_is_the_credit_less_the_mean_of_the_group(index: IndexReader) -> None:
    found = index.rows(
        "SELECT DISTINCT rollout_id, advantage FROM action_advantages WHERE group_id = ?",
        [group_id(1)],
    )
    assert {row["rollout_id"]: row["advantage"] for row in found} == {
        rollout_id(1, 0): pytest.approx(0.25),
        rollout_id(1, 1): pytest.approx(-0.25),
    }


def test_the_route_in_force_has_shares(index: IndexReader) -> None:
    found = index.rows(
        "SELECT policy, upstream, share, parameters FROM current_routes ORDER BY share DESC"
    )
    assert [tuple(row.values()) for row in found] == [
        ("policy", None, 0.75, {"top_p": 0.9}),
        ("", "gpt", 0.25, {}),
    ]


def test_texts_are_cut(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "index.duckdb", characters=4)
    writer.write(LOG.records)
    writer.close()
    (row,) = IndexReader(tmp_path / "index.duckdb").rows(
        "SELECT max(length(answer)) AS answer, max(question) AS question FROM calls"
    )
    assert row == {"answer": 4, "question": "hel…"}


def test_costs_are_tokens_by_their_price(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(LOG.records)
    writer.write_prices(
        parse_prices('currency = "EUR"\n[tokens.policy]\ninput = 1000000\noutput = 2000000\n')
    )
    writer.close()
    (row,) = IndexReader(tmp_path / "index.duckdb").rows(
        "SELECT sum(money) AS money, sum(prompt_tokens + 2 * completion_tokens) AS expected, "
        "any_value(currency) AS currency FROM costs"
    )
    assert row["money"] == pytest.approx(row["expected"])
    assert row["currency"] == "EUR"


def test_a_gap_is_noted_and_read_over(tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    writer = open_writer(path)
    writer.write([], {("llm.calls", 3): 50}, [(("llm.calls", 3), 7, 40)])
    assert writer.positions() == {("llm.calls", 3): 40}
    writer.close()
    reader = IndexReader(path)
    (gap,) = reader.rows("SELECT topic, partition, from_offset, to_offset FROM gaps")
    assert tuple(gap.values()) == ("llm.calls", 3, 7, 40)
    assert reader.rows("SELECT topic, records FROM lag") == [{"topic": "llm.calls", "records": 10}]


def test_a_record_with_a_value_that_does_not_fit_is_named_and_stops_no_other(
    index: IndexReader, tmp_path: Path
) -> None:
    path = tmp_path / "index.duckdb"
    hostile = RecordedLog()
    hostile.append(msgspec.structs.replace(make_call(1, 0, 7), started_at=2**62))
    (record,) = hostile.records
    record = msgspec.structs.replace(record, offset=500)
    writer = open_writer(path)
    writer.write([*LOG.records, record])
    writer.close()
    reader = IndexReader(path)
    (named,) = reader.rows('SELECT topic, error FROM unreadable WHERE "offset" = 500')
    assert named["topic"] == "llm.calls"
    assert "ConversionException" in named["error"]
    found, expected = contents(path), contents(index.path)
    assert {**found, "unreadable": []} == {**expected, "unreadable": []}


def test_numbers_that_are_not_finite_stop_no_record(tmp_path: Path) -> None:
    log = RecordedLog()
    call = make_call(1, 0)
    log.append(
        msgspec.structs.replace(
            call, sampling=msgspec.structs.replace(call.sampling, temperature=float("inf"))
        ),
        make_reward(1, 0, float("nan")),
    )
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    assert writer.execute("SELECT isnan(temperature) FROM calls") == [(True,)]
    assert writer.execute("SELECT value FROM rewards") == [(None,)]
    assert writer.execute("SELECT count(*) FROM unreadable") == [(0,)]
    writer.close()


@pytest.mark.parametrize("text", ["a\0b", '"\\', "\x1b[31m", "雷🌩"])
def test_texts_are_kept_as_they_are(text: str, tmp_path: Path) -> None:
    log = RecordedLog()
    log.append(msgspec.structs.replace(make_call(1, 0), agent=text, api=text))
    writer = open_writer(tmp_path / "index.duckdb")
    writer.write(log.records)
    assert writer.execute("SELECT agent, api FROM calls") == [(text, text)]
    writer.close()


def test_where_a_partition_is_read_from_is_no_gap(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "index.duckdb")
    writer.begin({("llm.calls", 0): 30}, {"llm.calls": "an-id"})
    assert writer.positions() == {("llm.calls", 0): 30}
    assert writer.topic_ids() == {"llm.calls": "an-id"}
    assert writer.execute("SELECT count(*) FROM gaps") == [(0,)]
    writer.close()


def test_an_index_of_another_deployment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    open_writer(path).close()
    with pytest.raises(ForeignIndex, match=r"'fulgurite.', not 'other.'"):
        IndexWriter(path, Codec(), "other.", lambda: NOW_MS)


def test_a_file_of_another_release_is_outdated(tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    writer = open_writer(path)
    writer.execute("UPDATE about SET layout = 0")
    writer.close()
    with pytest.raises(OutdatedIndex, match="layout 0"):
        IndexWriter(path, CODEC, PREFIX, lambda: NOW_MS)


def test_a_deleted_index_leaves_nothing_that_was_written_ahead(tmp_path: Path) -> None:
    path = tmp_path / "index.duckdb"
    writer = open_writer(path)
    writer.write(LOG.records)
    # What a killed process leaves.
    killed = tmp_path / "killed.duckdb"
    for end in ("", ".wal"):
        killed.with_name(killed.name + end).write_bytes(
            path.with_name(path.name + end).read_bytes()
        )
    writer.close()
    delete_index(killed)
    delete_index(killed)
    assert sorted(tmp_path.iterdir()) == [path]
    writer = open_writer(killed)
    assert writer.positions() == {}
    writer.close()


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as other:
        other.execute("CREATE TABLE mine (a INTEGER)")
    with pytest.raises(ForeignIndex, match="no index"):
        open_writer(path)
    path.write_text("not a database, but long enough to be read as one" * 1_000)
    with pytest.raises(ForeignIndex, match="delete it"):
        open_writer(path)
