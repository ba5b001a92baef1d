"""Runs a replay: rebuilds groups from a source, closes them, and writes their rows into a sink.

See docs/how-to/replay.md.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.errors import CodecError
from fulgurite.events import Episode, Tombstone, Trajectory
from fulgurite.topics import EPISODES
from services.replay.closings import Changes, Closing, WrittenEpisode, follow, reclose
from services.replay.groups import Group
from services.replay.leaving_out import UNUSABLE
from services.replay.records import Raw, Source
from services.replay.rescoring import Rescored, Rescorer, rescored
from services.replay.sinks import Sink
from services.rewarder.closing_settings import ClosingSettings

_UNCOLLECTED = 200_000
"""Threshold of the garbage collector in objects: some tens of megabytes of cycles."""


class Report(msgspec.Struct, kw_only=True):
    """The report of a replay."""

    groups: int = 0
    """Number of groups read."""
    closed: int = 0
    """Number of groups that gave rows or tombstones."""
    open: int = 0
    """Number of groups that are neither complete nor due; the live rewarder will close them."""
    rows: int = 0
    tombstones: int = 0
    actions: int = 0
    """Number of actions that carry loss."""
    judged: int = 0
    """Number of rewards computed by functions. (The field's name is part of the JSON report.)"""
    reused: int = 0
    """Number of rewards of the same function that the log already had."""
    failed: int = 0
    """Number of rewards without a value, because the function failed."""
    why: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Number of failures by reason."""
    left_out: list[str] = msgspec.field(default_factory=list[str])
    """Records and groups that cannot be used, for example because of an unknown credit rule."""
    unmet: list[str] = msgspec.field(default_factory=list[str])
    """Groups with records in `trajectories` that could not be computed again."""

    def count(self, group: Group, closing: Closing) -> None:
        """Add a group."""
        self.groups += 1
        self.open += closing.open
        self.closed += bool(closing.rows)
        self.rows += sum(isinstance(row, Trajectory) for row in closing.rows)
        self.tombstones += sum(isinstance(row, Tombstone) for row in closing.rows)
        self.actions += sum(
            action.loss
            for row in closing.rows
            if isinstance(row, Trajectory)
            for action in row.actions
        )
        self.left_out.extend(group.unreadable)
        if closing.unmet:
            self.unmet.append(group.group_id)


class Histories:
    """Finds all written revisions of a group's episodes; a partition is read when needed."""

    def __init__(self, source: Source, codec: Codec) -> None:
        self._source = source
        self._codec = codec
        self._partition = -1
        self._known: dict[str, list[Raw]] = {}

    def of(self, group: Group) -> Sequence[WrittenEpisode]:
        """The written revisions of the group's episodes, in log order."""
        if self._partition != group.partition:
            self._partition, self._known = group.partition, {}
            for raw in self._source.read((EPISODES,), group.partition):
                self._known.setdefault(raw.key.decode("utf-8", "replace"), []).append(raw)
        found = (self._decoded(raw) for raw in self._known.get(group.group_id, ()))
        return [written for written in found if written is not None]

    def _decoded(self, raw: Raw) -> WrittenEpisode | None:
        try:
            event = self._codec.decode(raw.value)
        except CodecError:
            return None
        return (
            WrittenEpisode(episode=event, timestamp=raw.timestamp)
            if isinstance(event, Episode)
            else None
        )


def run(
    groups: Iterable[Group],
    sink: Sink,
    *,
    source: Source,
    codec: Codec,
    changes: Changes,
    settings: ClosingSettings,
    rescorer: Rescorer | None = None,
) -> Report:
    """Close every group and write its rows to the sink, which stays open.

    Raises LogUnavailable, OSError, ReplayError.
    """
    report = Report()
    histories = Histories(source, codec)

    def close(group: Group, scored: Rescored | None) -> Closing:
        if scored is not None:
            return reclose(
                group, scored.episodes, scored.rewards, changes, settings, group.read_until
            )
        if changes.none:
            return follow(group, settings, group.read_until, lambda: histories.of(group))
        return reclose(group, group.episodes(), group.rewards, changes, settings, group.read_until)

    pairs = (
        ((group, None) for group in groups)
        if rescorer is None
        else ((one.group, one) for one in rescored(groups, rescorer))
    )
    with _seldom_collected():
        for group, scored in pairs:
            try:
                closing = close(group, scored)
            except UNUSABLE as error:
                report.left_out.append(f"group {group.group_id}: {type(error).__name__}: {error}")
                continue
            report.count(group, closing)
            sink.put(group.partition, closing.rows)
    if rescorer is not None:
        report.judged, report.reused, report.failed = (
            rescorer.given,
            rescorer.reused,
            rescorer.failed,
        )
        report.why = dict(rescorer.why)
    return report


@contextmanager
def _seldom_collected() -> Generator[None]:
    """Collect garbage rarely: events have no cycles, and this saves a sixth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(_UNCOLLECTED, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
