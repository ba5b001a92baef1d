"""Rows that were written as Parquet are read back as the events that they were."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fulgurite.enums import FilterReason
from fulgurite.episodes.stitching import stitch
from fulgurite.events import Tombstone, Trajectory
from fulgurite.failures import FailureKind
from fulgurite.groups.closing import close_group
from services.replay.columns import ROWS, row_of, rows_in
from services.replay.errors import BadArchive, NotFound
from services.replay.parquet import ParquetFolder
from tests.synthetic import make_call, make_declared, make_reward, make_status


def rows() -> list[Trajectory | Tombstone]:
    """Two rows and a tombstone; the first row has an action without log-probabilities and one that
    is masked.
    """
    declared = make_declared(1, 3)
    episodes = [
        stitch([declared, make_call(1, index, answers=[[7, 9], [8]]), make_status(1, index)])
        for index in range(3)
    ]
    outputs = close_group(
        declared.group_id,
        declared.declaration,
        [episode for episode in episodes if episode],
        [make_reward(1, 0, 1.0), make_reward(1, 1, 0.25)],
    )
    made = [one for one in outputs if isinstance(one, Trajectory | Tombstone)]
    first = made[0]
    assert isinstance(first, Trajectory)
    bare = msgspec.structs.replace(first.actions[0], logprobs=None, mask=FilterReason.truncated)
    made[0] = msgspec.structs.replace(
        first, actions=(bare, *first.actions[1:]), failure=FailureKind.truncated
    )
    return made


def without_turns(row: Trajectory | Tombstone) -> Trajectory | Tombstone:
    """They have no column."""
    if isinstance(row, Tombstone):
        return row
    actions = tuple(msgspec.structs.replace(action, turn=None) for action in row.actions)
    return msgspec.structs.replace(row, actions=actions)


def written(folder: Path, found: list[Trajectory | Tombstone]) -> Path:
    target = ParquetFolder(folder, ROWS)
    target.write("rows", [row_of(row) for row in found])
    target.close()
    return folder


def test_rows_and_tombstones_are_read_back(tmp_path: Path) -> None:
    made = rows()
    assert any(isinstance(row, Tombstone) for row in made)
    assert list(rows_in(written(tmp_path, made))) == [without_turns(row) for row in made]


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="has no Parquet files; `fulgurite export parquet"):
        list(rows_in(tmp_path))
    other = row_of(rows()[0]) | {"mode": "another"}
    target = ParquetFolder(tmp_path, ROWS)
    target.write("rows", [other])
    target.close()
    with pytest.raises(BadArchive, match="a row that is no Trajectory"):
        list(rows_in(tmp_path))
