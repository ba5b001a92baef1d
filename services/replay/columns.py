"""Defines the Arrow schemas: trajectories for analysis and `datasets`, and an archive's records.

Rows can be read back as events; what has no column is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fulgurite.events import Action, Tombstone, Trajectory
from fulgurite.tokens import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from services.replay.errors import BadArchive, NotFound
from services.replay.parquet import arrow, read_rows


def ROWS() -> Any:
    """Schema of trajectories and tombstones; a tombstone has a `reason` and no tokens."""
    pa = arrow()
    action = pa.struct(
        [
            *(
                (name, pa.string())
                for name in ("call_id", "mask", "version", "agent", "finish_reason")
            ),
            *((name, pa.int32()) for name in ("choice", "start", "end")),
            *((name, pa.float64()) for name in ("reward", "credit", "temperature")),
            ("loss", pa.bool_()),
            ("logprobs", pa.list_(pa.float32())),
        ]
    )
    named = pa.struct([("name", pa.string()), ("value", pa.float64())])
    texts = (
        "event_id",
        "kind",
        "group_id",
        "rollout_id",
        "mode",
        "policy",
        "group_revision",
        "episode_revision",
        "alias",
    )
    numbers = ("attempt", "row_index", "rows_in_episode", "group_size", "group_members_scored")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            *((name, pa.int32()) for name in numbers),
            ("event_time", pa.timestamp("ms", tz="UTC")),
            ("group_started_at", pa.timestamp("ms", tz="UTC")),
            ("episode_reward", pa.float64()),
            ("rewards", pa.list_(named)),
            *((name, pa.string()) for name in ("credit_rule", "break_kind", "failure", "reason")),
            ("token_ids", pa.list_(pa.int32())),
            ("actions", pa.list_(action)),
        ]
    )


def RECORDS() -> Any:
    """Schema of an archive's records."""
    pa = arrow()
    return pa.schema(
        [
            ("offset", pa.int64()),
            ("timestamp", pa.int64()),
            ("key", pa.binary()),
            ("value", pa.binary()),
            ("event_id", pa.string()),
            ("event_type", pa.string()),
        ]
    )


def row_of(row: Trajectory | Tombstone) -> dict[str, Any]:
    """Convert a trajectory or a tombstone into columns."""
    common: dict[str, Any] = {
        "event_id": row.event_id,
        "kind": "trajectory" if isinstance(row, Trajectory) else "tombstone",
        "group_id": row.group_id,
        "rollout_id": row.rollout_id,
        "mode": str(row.mode),
        "policy": row.policy,
        "alias": row.alias,
        "group_revision": row.group_revision,
        "attempt": row.attempt,
        "group_size": row.group_size,
        "group_members_scored": row.group_members_scored,
        "event_time": row.event_time,
        "group_started_at": row.group_started_at,
        "episode_reward": row.episode_reward,
        "failure": _text(row.failure),
    }
    if isinstance(row, Tombstone):
        return common | {"reason": str(row.reason), "rewards": [], "token_ids": [], "actions": []}
    return common | {
        "episode_revision": row.episode_revision,
        "row_index": row.row_index,
        "rows_in_episode": row.rows_in_episode,
        "rewards": [{"name": name, "value": value} for name, value in sorted(row.rewards.items())],
        "credit_rule": row.credit_rule,
        "break_kind": _text(row.break_kind),
        "token_ids": unpack_ids(row.token_ids).tolist(),
        "actions": [_action(action) for action in row.actions],
    }


def rows_in(folder: Path) -> Iterator[Trajectory | Tombstone]:
    """Yield the rows of a folder that `fulgurite export parquet` or `fulgurite replay` wrote.

    Raises NotFound if it has none, BadArchive for other files.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise NotFound(
            f"{folder} has no Parquet files; `fulgurite export parquet {folder}` writes them"
        )
    names = ROWS().names
    for file in files:
        for columns in read_rows(file, names):
            yield event_of(columns, file)


def event_of(columns: Mapping[str, Any], file: Path) -> Trajectory | Tombstone:
    """Convert columns back into a trajectory or a tombstone. Raises BadArchive."""
    kind = Trajectory if columns.get("kind") == "trajectory" else Tombstone
    try:
        return msgspec.convert(_fields(columns, kind), kind, builtin_types=(bytes,))
    except (KeyError, msgspec.ValidationError) as error:
        raise BadArchive(
            f"{file} has a row that is no {kind.__name__} ({error}); export it again"
        ) from error


def _fields(columns: Mapping[str, Any], kind: type[Trajectory | Tombstone]) -> dict[str, Any]:
    fields = {name: value for name, value in columns.items() if value is not None}
    for name in ("event_time", "group_started_at"):
        fields[name] = _milliseconds(fields[name])
    if kind is Trajectory:
        fields["trajectory_id"] = fields["event_id"]
        fields["token_ids"] = pack_ids(fields["token_ids"])
        fields["rewards"] = {one["name"]: one["value"] for one in fields["rewards"]}
        fields["actions"] = [_packed(action) for action in fields["actions"]]
    return fields


def _packed(action: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in action.items() if value is not None}
    if "logprobs" in fields:
        fields["logprobs"] = pack_logprobs(fields["logprobs"])
    return {"agent": ""} | fields


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _action(action: Action) -> dict[str, Any]:
    return {
        "call_id": action.call_id,
        "choice": action.choice,
        "start": action.start,
        "end": action.end,
        "reward": action.reward,
        "credit": action.credit,
        "loss": action.loss,
        "mask": _text(action.mask),
        "version": action.version,
        "agent": action.agent,
        "finish_reason": action.finish_reason,
        "temperature": action.temperature,
        "logprobs": None if action.logprobs is None else unpack_logprobs(action.logprobs).tolist(),
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
