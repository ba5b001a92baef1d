"""Bounds the index in time and size.

DuckDB frees the space of deleted rows only once all 122,880 rows of their row group are gone. So
tables are copied without them, daily and when the index is too large. Later rows use freed blocks;
the file itself does not shrink. A copy needs room: once two thirds of the largest size are used,
the index is cut to a third.
"""

from __future__ import annotations

from services.console.index.writer import IndexWriter

_BY_GROUP = (
    "calls",
    "statuses",
    "groups",
    "episodes",
    "rewards",
    "closings",
    "trajectories",
    "actions",
    "tombstones",
    "outcomes",
    "ledger",
    "rollouts",
    "funnel",
)
_BY_TIME = {
    "payloads": "written_at",
    "unreadable": "written_at",
    "dead_letters": "event_time",
    "ledger": "event_time",
    "outcomes": "event_time",
    "gaps": "found_at",
}
_LATE = {
    "statuses": "event_time",
    "rewards": "event_time",
    "closings": "closed_at",
    "trajectories": "event_time",
    "tombstones": "event_time",
}
"""What may come for a group that is gone, or began before the index: it makes no rollout, by whose
end it would go.
"""
_COPY = "copied"
_SHARE = 10
"""Without texts left to delete, this part of the groups goes at once, the oldest."""


def delete_before(writer: IndexWriter, horizon_ms: int) -> int:
    """Delete groups that ended before a time, and records of then; returns the number of groups."""
    expired = [
        group
        for (group,) in writer.execute(
            "SELECT group_id FROM rollouts GROUP BY group_id "
            "HAVING max(coalesce(ended_at, began_at)) < epoch_ms(?::BIGINT)",
            [horizon_ms],
        )
    ]
    with writer.transaction():
        _delete_groups(writer, expired)
        for table, column in _BY_TIME.items():
            writer.execute(
                f"DELETE FROM {table} WHERE {column} < epoch_ms(?::BIGINT)", [horizon_ms]
            )
        for table, column in _LATE.items():
            writer.execute(
                f"DELETE FROM {table} WHERE {column} < epoch_ms(?::BIGINT) "
                "AND group_id NOT IN (SELECT group_id FROM rollouts)",
                [horizon_ms],
            )
        writer.execute(
            "DELETE FROM actions WHERE trajectory_id NOT IN "
            "(SELECT trajectory_id FROM trajectories)"
        )
        writer.execute(
            "DELETE FROM dead_actions WHERE event_id NOT IN (SELECT event_id FROM dead_letters)"
        )
    return len(expired)


def delete_beyond(writer: IndexWriter, most_bytes: int) -> int:
    """Cut an index that is too large: the oldest texts first, or without them the oldest groups.

    Returns the bytes in use.
    """
    used = used_bytes(writer)
    if used <= most_bytes * 2 // 3:
        return used
    goal = most_bytes // 3
    writer.execute("CHECKPOINT")
    while used > goal and (_delete_payloads(writer, used - goal) or _delete_oldest(writer)):
        compact(writer)
        used = used_bytes(writer)
    return used


def compact(writer: IndexWriter) -> None:
    """Copy the tables without their deleted rows, and free the space of these."""
    for table in dict.fromkeys((*_BY_GROUP, *_BY_TIME)):
        ((definition,),) = writer.execute(
            "SELECT sql FROM duckdb_tables() WHERE table_name = ?", [table]
        )
        with writer.transaction():
            writer.execute(f"CREATE TABLE {_COPY} {definition[definition.index('(') :]}")
            writer.execute(f"INSERT INTO {_COPY} SELECT * FROM {table}")
            writer.execute(f"DROP TABLE {table}")
            writer.execute(f"ALTER TABLE {_COPY} RENAME TO {table}")
        writer.execute("CHECKPOINT")


def used_bytes(writer: IndexWriter) -> int:
    """Bytes of the file's blocks that hold data."""
    ((size, blocks),) = writer.execute("SELECT block_size, used_blocks FROM pragma_database_size()")
    return int(size * blocks)


def bytes_of_payloads(writer: IndexWriter) -> int:
    """Bytes of the file's blocks that hold texts and tokens in full. DuckDB compresses them again,
    so this is less than their length. What no checkpoint has written yet does not count.
    """
    ((blocks, size),) = writer.execute(
        "SELECT count(DISTINCT block), any_value(block_size) FROM pragma_database_size(), "
        "(SELECT unnest(list_append(additional_block_ids, block_id)) AS block "
        "FROM pragma_storage_info('payloads') WHERE persistent) WHERE block >= 0"
    )
    return int(blocks * (size or 0))


def _delete_payloads(writer: IndexWriter, excess: int) -> bool:
    """Delete the oldest records whose blocks make up the excess; returns whether there were."""
    found = writer.execute(
        "SELECT max(written_at) FROM (SELECT written_at, sum(octet_length(data)) OVER "
        "(ORDER BY written_at ROWS UNBOUNDED PRECEDING) - octet_length(data) AS before, "
        "sum(octet_length(data)) OVER () AS total FROM payloads) "
        "WHERE before < total::DOUBLE * ? / greatest(?, 1)",
        [excess, bytes_of_payloads(writer)],
    )
    last = found[0][0]
    if last is None:
        return False
    writer.execute("DELETE FROM payloads WHERE written_at <= ?", [last])
    return True


def _delete_oldest(writer: IndexWriter) -> bool:
    """Delete the oldest part of the groups; returns whether there were any."""
    oldest = [
        group
        for (group,) in writer.execute(
            "SELECT group_id FROM rollouts GROUP BY group_id "
            "ORDER BY max(coalesce(ended_at, began_at)) LIMIT "
            f"(SELECT greatest(1, count(DISTINCT group_id) // {_SHARE}) FROM rollouts)"
        )
    ]
    with writer.transaction():
        _delete_groups(writer, oldest)
    return bool(oldest)


def _delete_groups(writer: IndexWriter, groups: list[str]) -> None:
    if not groups:
        return
    for table in _BY_GROUP:
        writer.execute(
            f"DELETE FROM {table} AS old USING (SELECT unnest(?::VARCHAR[]) AS group_id) AS gone "
            "WHERE old.group_id = gone.group_id",
            [groups],
        )
