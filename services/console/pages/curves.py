"""Rewards by version: the curve of a run, with the intervals that the command line prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fulgurite.learning.intervals import Estimate, GroupedValues, estimate_of
from fulgurite.versions import MalformedVersion, Version, parse_version
from services.console.pages.blocks import Series
from services.console.pages.reading import Row

_FIELDS = GroupedValues.__struct_fields__


def version_of(text: str | None) -> Version | None:
    """A version that is written as `policy@epoch.step`."""
    try:
        return None if text is None else parse_version(text)
    except MalformedVersion:
        return None


def label(version: Version) -> str:
    """How a chart of one policy names a version."""
    return f"{version.epoch}.{version.step}"


def estimates(rows: Iterable[Row]) -> dict[Version, Estimate]:
    """Mean and interval of each version, in order. A row has a `version` and what `GroupedValues`
    has of its rewards.
    """
    found = {
        version: estimate_of(GroupedValues(**{name: row[name] for name in _FIELDS}))
        for row in rows
        if (version := version_of(row["version"])) is not None
    }
    return dict(sorted(found.items()))


def curve(
    name: str,
    values: Mapping[Version, Estimate],
    *,
    dashed: bool = False,
    colour: int | None = None,
    counted: bool = False,
) -> Series:
    """A line with its interval. `counted` puts versions by their number, so that the curves of
    runs with other versions can lie over one another.
    """
    places: dict[Version, float | str] = {
        version: float(number) if counted else label(version)
        for number, version in enumerate(values)
    }
    return Series(
        name,
        tuple((places[version], value.mean) for version, value in values.items()),
        band=tuple(
            (places[version], value.low, value.high)
            for version, value in values.items()
            if value.low is not None and value.high is not None
        ),
        dashed=dashed,
        colour=colour,
        addresses=tuple(f"/step?version={version}" for version in values),
    )
