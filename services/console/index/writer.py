"""Writes the index: rows and the offsets they came from, in one transaction.

So a process that is killed at any time continues where its last transaction ended, and no record is
in the index twice or never. An event that the log has twice is in the index once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fulgurite.avro.codec import Codec
from fulgurite.cost.prices import Prices
from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.policy_epochs import PolicyEpochs
from services.common.kafka.dead_letters import words_of
from services.console.index.batch import Batch, LogRecord
from services.console.index.database import (
    LAYOUT,
    bound,
    connect,
    duckdb,
    is_locked,
    read_definitions,
)
from services.console.index.errors import ForeignIndex, IndexLocked, OutdatedIndex
from services.console.index.insertion import RowInserter
from services.console.index.rows import Row

Position = tuple[str, int]
"""Topic, without the deployment's prefix, and partition."""

Gap = tuple[Position, int, int]
"""Offsets that the log no longer had when they were to be read: the first, and the one behind."""

_KEYS = {
    "calls": "event_id",
    "statuses": "event_id",
    "groups": "group_id",
    "rewards": "event_id",
    "trajectories": "trajectory_id",
    "tombstones": "event_id",
    "ledger": "event_id",
    "updates": "event_id",
    "routes": "event_id",
    "applied": "event_id",
    "prompts": "event_id",
    "prompt_tunings": "event_id",
    "prompt_scores": "event_id",
    "selections": "event_id",
    "dead_letters": "event_id",
}
"""Tables that an event enters once: the first one with a key counts."""


_POSITIONS = """
    SELECT *, CASE WHEN end_offset IS NOT NULL THEN epoch_ms($1::BIGINT) END AS asked_at
    FROM (
        SELECT unnest($2::VARCHAR[]) AS topic, unnest($3::SMALLINT[]) AS partition,
            unnest($4::BIGINT[]) AS next_offset, epoch_ms(unnest($5::BIGINT[])) AS last_record_at,
            unnest($6::BIGINT[]) AS end_offset
    )
"""
"""Positions to write: the time in Unix milliseconds, then a list for each column."""


class IndexWriter:
    """The only writer of an index. Not thread-safe; readers in other threads are free to read."""

    def __init__(
        self,
        path: Path,
        codec: Codec,
        prefix: str,
        now_ms: Callable[[], int],
        *,
        memory: str = "1GB",
        threads: int = 2,
        characters: int = 1_000,
        keeps_payloads: bool = True,
    ) -> None:
        """Open the file, or make it. Raises ForeignIndex, IndexLocked, OutdatedIndex.

        `prefix`: of the deployment's topics. `characters`: most of each text in a row.
        """
        self.path = path
        self._codec = codec
        self._prefix = prefix
        self._now_ms = now_ms
        self._characters = characters
        self._keeps_payloads = keeps_payloads
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = _open(path, memory, threads)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        db = duckdb()
        self._unusable = (
            db.DataError,
            db.InvalidInputException,
            ValueError,
            ArithmeticError,
            RecursionError,
        )
        """What a record raises whose values do not fit."""
        self._inserter = RowInserter(self._db)
        self._epochs = self._read_epochs()

    def close(self) -> None:
        """Close the file. The last transaction stays."""
        self._db.close()

    def positions(self) -> dict[Position, int]:
        """The next offset of each partition that was read."""
        found = self._db.execute("SELECT topic, partition, next_offset FROM positions").fetchall()
        return {(topic, partition): offset for topic, partition, offset in found}

    def topic_ids(self) -> dict[str, str]:
        """Kafka's ids of the topics that were read."""
        found = self._db.execute("SELECT DISTINCT topic, topic_id FROM positions").fetchall()
        return {topic: name for topic, name in found if name is not None}

    def write(
        self,
        records: Sequence[LogRecord],
        ends: Mapping[Position, int] | None = None,
        gaps: Sequence[Gap] = (),
    ) -> None:
        """Write records of the log, in order, the known ends of partitions, and gaps before them.

        Records below the positions are in the index already, and are left out.
        """
        # A record with a value that no column takes must not stop the others: halve until it is
        # alone, and name it.
        try:
            self._write(records, ends or {}, gaps)
        except self._unusable as error:
            if len(records) > 1:
                half = len(records) // 2
                self.write(records[:half], None, gaps)
                self.write(records[half:], ends)
            elif records and records[0].event is not None:
                nameless = replace(records[0], event=None, error=words_of(error))
                self._write([nameless], ends or {}, gaps)
            else:
                raise

    def begin(self, starts: Mapping[Position, int], topic_ids: Mapping[str, str]) -> None:
        """Note where partitions are read from that were never read before, and Kafka's ids of the
        topics.
        """
        with self.transaction():
            self._write_positions({place: (start, None) for place, start in starts.items()}, {})
            for topic, name in topic_ids.items():
                self._db.execute("UPDATE positions SET topic_id = ? WHERE topic = ?", [name, topic])

    def _write(
        self, records: Sequence[LogRecord], ends: Mapping[Position, int], gaps: Sequence[Gap]
    ) -> None:
        known = self.positions()
        batch = Batch(
            self._codec.decode, self._epochs, self._prefix, self._characters, self._keeps_payloads
        )
        try:
            for record in records:
                if record.offset >= known.get((record.topic, record.partition), 0):
                    batch.add(record)
            with self.transaction():
                self._write_rows(batch)
                self._write_gaps(gaps)
                read = {place: (end, None) for place, _, end in gaps} | batch.positions
                self._write_positions(read, ends)
                self._refresh(self._groups_of(batch))
        except BaseException:
            # The fold went on with updates that were not written.
            self._epochs = self._read_epochs()
            raise

    def clear(self) -> None:
        """Delete what was read, so that the log is read from its beginning."""
        tables = self._db.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        with self.transaction():
            for (table,) in tables:
                if table not in ("about", "prices"):
                    self._db.execute(f"DELETE FROM {table}")
        self._epochs = {}

    def write_prices(self, prices: Prices) -> None:
        """Replace the prices of tokens."""
        found = [
            {
                "name": name,
                "currency": prices.currency,
                "input": price.input,
                "cached_input": price.input if price.cached_input is None else price.cached_input,
                "output": price.output,
            }
            for name, price in prices.tokens.items()
        ]
        with self.transaction():
            self._db.execute("DELETE FROM prices")
            self._inserter.insert("prices", found)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own."""
        return self._db.execute(sql, list(parameters)).fetchall()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit what is executed within; undo it if it raises."""
        self._db.execute("BEGIN TRANSACTION")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _prepare(self) -> None:
        """Make the tables of a new file; check those of an old one."""
        tables = self._db.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        if not tables:
            with self.transaction():
                self._db.execute(read_definitions("tables.sql"))
                self._db.execute(read_definitions("views.sql"))
                self._db.execute(
                    "INSERT INTO about VALUES (?, ?, epoch_ms(?::BIGINT))",
                    [LAYOUT, self._prefix, self._now_ms()],
                )
            return
        if ("about",) not in tables:
            raise ForeignIndex(
                f"{self.path} is a DuckDB file, but no index: choose another "
                "FULGURITE_CONSOLE_INDEX, or delete it"
            )
        layout, prefix = self._db.execute("SELECT layout, topic_prefix FROM about").fetchone()
        if layout != LAYOUT:
            raise OutdatedIndex(f"{self.path} has tables of layout {layout}, not {LAYOUT}")
        if prefix != self._prefix:
            raise ForeignIndex(
                f"{self.path} is of the deployment with prefix {prefix!r}, not {self._prefix!r}"
            )

    def _read_epochs(self) -> dict[str, PolicyEpochs]:
        """Fold the claims and updates of the file."""
        epochs: dict[str, PolicyEpochs] = {}
        found = self._db.execute(
            'SELECT event_id, policy, kind, epoch, step, learner_id FROM updates ORDER BY "offset"'
        ).fetchall()
        for event_id, policy, kind, epoch, step, learner_id in found:
            update = PolicyUpdate(
                event_id=event_id,
                event_time=0,
                policy=policy,
                kind=UpdateKind(kind),
                epoch=epoch,
                step=step,
                learner_id=learner_id,
                trained_actions=0,
            )
            epochs.setdefault(policy, PolicyEpochs()).apply(update)
        return epochs

    def _write_rows(self, batch: Batch) -> None:
        for table, key in _KEYS.items():
            batch.rows[table] = self._new(table, key, batch.rows[table])
            self._inserter.insert(table, batch.rows[table])
        self._inserter.insert("unreadable", batch.rows["unreadable"])
        self._inserter.insert("payloads", list(batch.blocks()))
        letters = {row["event_id"] for row in batch.rows["dead_letters"]}
        lost = [row for row in batch.rows["dead_actions"] if row["event_id"] in letters]
        self._inserter.insert("dead_actions", lost)
        trajectories = [row["trajectory_id"] for row in batch.rows["trajectories"]]
        self._inserter.insert(
            "actions", [row for name in trajectories for row in batch.actions[name]]
        )
        self._write_outcomes(batch)
        self._write_episodes(batch.rows["episodes"])
        self._write_closings(batch.rows["closings"])

    def _new(self, table: str, key: str, rows: Sequence[Row]) -> list[Row]:
        """The rows whose key the table does not have, each once."""
        first: dict[Any, Row] = {}
        for row in rows:
            first.setdefault(row[key], row)
        if not first:
            return []
        known = self._db.execute(
            f"SELECT {key} FROM {table} SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS {key}) "
            f"USING ({key})",
            [list(first)],
        ).fetchall()
        for (name,) in known:
            del first[name]
        return list(first.values())

    def _write_outcomes(self, batch: Batch) -> None:
        """A learner's later entry replaces its earlier one; a closing's stands beside others."""
        learned: dict[tuple[str, int], Row] = {}
        others: list[Row] = []
        for entry in batch.rows["ledger"]:
            for row in batch.outcomes.get(entry["event_id"], ()):
                if row["source"] == LEARNER:
                    learned[row["call_id"], row["choice"]] = row
                else:
                    others.append(row)
        if learned:
            self._db.execute(
                "DELETE FROM outcomes USING (SELECT unnest(?::VARCHAR[]) AS call_id, "
                "unnest(?::INTEGER[]) AS choice) AS new WHERE outcomes.source = ? "
                "AND outcomes.call_id = new.call_id AND outcomes.choice = new.choice",
                [[call for call, _ in learned], [choice for _, choice in learned], LEARNER],
            )
        self._inserter.insert("outcomes", [*others, *learned.values()])

    def _write_episodes(self, rows: Sequence[Row]) -> None:
        """The revision with the most inputs counts: revisions contain one another."""
        known = self._existing("episodes", "episode_id", "inputs, revisions", rows)
        newest: dict[str, Row] = {}
        for row in rows:
            name = row["episode_id"]
            inputs, revisions = known.get(name, (-1, 0))
            if row["inputs"] > inputs:
                known[name] = (row["inputs"], revisions + 1)
                newest[name] = row | {"revisions": revisions + 1}
        self._replace("episodes", "episode_id", newest)

    def _write_closings(self, rows: Sequence[Row]) -> None:
        """The last closing in the log counts; the rows of earlier ones go."""
        known = self._existing("closings", "group_id", '"offset", closings', rows)
        newest: dict[str, Row] = {}
        for row in rows:
            _, closings = known.get(row["group_id"], (-1, 0))
            known[row["group_id"]] = (row["offset"], closings + 1)
            newest[row["group_id"]] = row | {"closings": closings + 1}
        self._replace("closings", "group_id", newest)
        if not newest:
            return
        names = ("group_id", "group_revision", "offset")
        closed = [[row[name] for row in newest.values()] for name in names]
        for table in ("trajectories", "actions", "tombstones"):
            self._db.execute(
                f"DELETE FROM {table} AS old USING (SELECT unnest(?::VARCHAR[]) AS group_id, "
                "unnest(?::VARCHAR[]) AS group_revision, unnest(?::BIGINT[]) AS closed_at) AS new "
                "WHERE old.group_id = new.group_id AND old.group_revision <> new.group_revision "
                'AND old."offset" < new.closed_at',
                closed,
            )

    def _existing(
        self, table: str, key: str, columns: str, rows: Sequence[Row]
    ) -> dict[str, tuple[int, int]]:
        if not rows:
            return {}
        found = self._db.execute(
            f"SELECT {key}, {columns} FROM {table} "
            f"SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS {key}) USING ({key})",
            [[row[key] for row in rows]],
        ).fetchall()
        return {name: (one, other) for name, one, other in found}

    def _replace(self, table: str, key: str, rows: Mapping[str, Row]) -> None:
        if rows:
            self._db.execute(
                f"DELETE FROM {table} USING (SELECT unnest(?::VARCHAR[]) AS {key}) AS new "
                f"WHERE {table}.{key} = new.{key}",
                [list(rows)],
            )
            self._inserter.insert(table, list(rows.values()))

    def _write_gaps(self, gaps: Sequence[Gap]) -> None:
        now = self._now_ms()
        self._inserter.insert(
            "gaps",
            [
                {
                    "topic": topic,
                    "partition": partition,
                    "from_offset": start,
                    "to_offset": end,
                    "found_at": now,
                }
                for (topic, partition), start, end in gaps
            ],
        )

    def _write_positions(
        self, read: Mapping[Position, tuple[int, int | None]], ends: Mapping[Position, int]
    ) -> None:
        """Move positions, given with the last record's time, and note the ends that are known."""
        places = sorted(read.keys() | ends.keys())
        columns = (
            [topic for topic, _ in places],
            [partition for _, partition in places],
            [read.get(place, (None, None))[0] for place in places],
            [read.get(place, (None, None))[1] for place in places],
            [ends.get(place) for place in places],
        )
        now = self._now_ms()
        self._db.execute(
            "UPDATE positions AS old SET next_offset = coalesce(new.next_offset, old.next_offset), "
            "last_record_at = coalesce(new.last_record_at, old.last_record_at), "
            "end_offset = greatest(coalesce(new.end_offset, old.end_offset), "
            "coalesce(new.next_offset, old.next_offset)), "
            "asked_at = coalesce(new.asked_at, old.asked_at) "
            f"FROM ({_POSITIONS}) AS new WHERE old.topic = new.topic "
            "AND old.partition = new.partition",
            [now, *columns],
        )
        self._db.execute(
            "INSERT INTO positions BY NAME SELECT topic, partition, "
            "coalesce(next_offset, 0) AS next_offset, "
            "greatest(coalesce(end_offset, 0), coalesce(next_offset, 0)) AS end_offset, "
            f"last_record_at, asked_at FROM ({_POSITIONS}) ANTI JOIN positions "
            "USING (topic, partition)",
            [now, *columns],
        )

    def _refresh(self, groups: Iterable[str]) -> None:
        """Compute rollouts and funnel of changed groups from the other tables."""
        changed = list(groups)
        if not changed:
            return
        self._db.execute("CREATE OR REPLACE TEMP TABLE touched (group_id VARCHAR)")
        self._db.execute("INSERT INTO touched SELECT unnest(?::VARCHAR[])", [changed])
        for table, query in (
            ("rollouts", _with_view("rollouts.sql", "counted_rewards")),
            ("funnel", _with_view("funnel.sql", "action_outcomes")),
        ):
            self._db.execute(
                f"DELETE FROM {table} AS old USING touched WHERE old.group_id = touched.group_id"
            )
            self._db.execute(f"INSERT INTO {table} BY NAME {query}")

    def _groups_of(self, batch: Batch) -> set[str]:
        """Groups whose rollouts or funnel change: also those of dead letters' actions, and those of
        a policy of which it becomes known that it learns elsewhere, whose entries do not count.
        """
        found: list[tuple[str]] = []
        calls = [row["call_id"] for row in batch.rows["dead_actions"]]
        if calls:
            found += self._db.execute(
                "SELECT DISTINCT group_id FROM calls SEMI JOIN "
                "(SELECT unnest(?::VARCHAR[]) AS call_id) USING (call_id)",
                [calls],
            ).fetchall()
        elsewhere = [row["offset"] for row in batch.rows["updates"] if row["elsewhere"]]
        if elsewhere:
            found += self._db.execute(
                "SELECT DISTINCT group_id FROM outcomes WHERE source = ? AND policy IN "
                "(SELECT policy FROM updates WHERE elsewhere GROUP BY policy "
                'HAVING min("offset") >= ?)',
                [LEARNER, min(elsewhere)],
            ).fetchall()
        return batch.groups | {group for (group,) in found}


@cache
def _with_view(name: str, view: str) -> str:
    """The SQL of a file with the text of a view in its place, so that the names of tables in it are
    those of the changed groups' rows.
    """
    found = re.search(rf"CREATE VIEW {view} AS\n(.*?);\n", read_definitions("views.sql"), re.DOTALL)
    if found is None:
        raise ValueError(f"views.sql has no view {view}")
    return read_definitions(name).replace(f"FROM {view}", f"FROM ({found[1]})")


def _open(path: Path, memory: str, threads: int) -> Any:
    db = duckdb()
    try:
        opened = connect(path)
        bound(opened, memory, threads)
        return opened
    except db.Error as error:
        if is_locked(error):
            raise IndexLocked(
                f"{path} is open in another process: only one console can write an index. "
                f"Stop that process, or set FULGURITE_CONSOLE_INDEX. ({error})"
            ) from error
        raise ForeignIndex(
            f"{path} cannot be opened as DuckDB ({error}): delete it, or choose another "
            "FULGURITE_CONSOLE_INDEX"
        ) from error
