"""Decides from live episodes whether a new version that has a small share is good enough.

Both versions serve at the same time, and rollouts get them by chance, so a difference of their
means is theirs. Each end user counts once, as the mean of their episodes: a flood from one counts
no more than one vote.

A difference is looked at whenever the new version has twice as many users as at the look before.
Each look takes the episodes up to the one that completed it, and an equal part of the 5% that the
bounds of a figure may be wrong (Bonferroni). So looking often makes no mistake likelier. Votes that
come after a look change it, which this leaves out of account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from statistics import fmean

from fulgurite.events import EventStruct
from fulgurite.learning.intervals import Estimate, estimate_gap
from fulgurite.selection.live_episodes import LiveEpisode

FEWEST = 30
"""Users of each version without which nothing is concluded."""

_ERROR = 0.05
_HOUR_MS = 3_600_000


class GuardRails(EventStruct, frozen=True, kw_only=True):
    """How a new version is tried, and what it must not do."""

    share: float = 0.1
    """Its share of the rollouts."""
    margin: float = 0.05
    """How much less reward it may earn."""
    least: int = 200
    """Users with a reward before it may be promoted; at least `FEWEST`."""
    most: int = 3200
    """Users with a reward after which it is rolled back if it is not shown to be good enough."""
    error_rise: float = 0.05
    """How much the share of failed episodes may rise."""
    truncation_rise: float = 0.05
    """How much the share of truncated episodes may rise."""
    slowdown: float = 0.5
    """How much longer a call may take, as a part of the stable version's time."""
    patience_h: float = 48.0
    """Hours after which it is rolled back if there is no decision."""


class Verdict(StrEnum):
    """What becomes of a new version."""

    undecided = "undecided"
    """It goes on with its share."""
    promote = "promote"
    """It is good enough."""
    roll_back = "roll_back"
    """It is not, or was not shown to be."""


class Finding(EventStruct, frozen=True):
    """A verdict and its figures, for people."""

    verdict: Verdict
    reason: str


def watch(
    stable: Sequence[LiveEpisode],
    candidate: Sequence[LiveEpisode],
    rails: GuardRails,
    began_at: int,
    now: int,
) -> Finding:
    """Judge a candidate by the episodes of both versions, in the order of their ends.

    `began_at`, `now`: Unix milliseconds, of the candidate's first share and of the newest event.
    """
    for name, allowed, value in (
        ("failed episodes", rails.error_rise, _failed),
        ("truncated episodes", rails.truncation_rise, _truncated),
        ("time of a call", rails.slowdown, _seconds),
    ):
        look = _look(stable, candidate, value, FEWEST, rails.most)
        if look is None:
            continue
        # A time is compared as a part of the stable version's.
        unit = fmean(look.stable) if value is _seconds else 1.0
        gap = look.gap(unit or 1.0)
        if gap.low is not None and gap.low > allowed:
            return Finding(
                Verdict.roll_back,
                f"{name} rose by {_bounds(gap)}, by more than {allowed:g}, from "
                f"{fmean(look.stable):.3f} to {fmean(look.candidate):.3f} ({look})",
            )
    finding = _watch_rewards(stable, candidate, rails)
    if finding.verdict is Verdict.undecided and now - began_at > rails.patience_h * _HOUR_MS:
        return Finding(
            Verdict.roll_back, f"no decision within {rails.patience_h:g} h: {finding.reason}"
        )
    return finding


def _watch_rewards(
    stable: Sequence[LiveEpisode], candidate: Sequence[LiveEpisode], rails: GuardRails
) -> Finding:
    look = _look(stable, candidate, _reward, rails.least, rails.most)
    if look is None:
        users = [
            len({one.person for one in episodes if one.reward is not None})
            for episodes in (candidate, stable)
        ]
        return Finding(
            Verdict.undecided,
            f"{users[0]} users of the new version and {users[1]} of the stable one gave a reward; "
            f"{rails.least} and {FEWEST} are needed",
        )
    gap = look.gap(1.0)
    text = (
        f"reward {fmean(look.candidate):.3f} against {fmean(look.stable):.3f}, a difference of "
        f"{_bounds(gap)} ({look})"
    )
    low, high = gap.low or 0.0, gap.high or 0.0
    if low > -rails.margin:
        return Finding(Verdict.promote, f"{text}, not worse by {rails.margin:g}")
    if high < -rails.margin:
        return Finding(Verdict.roll_back, f"{text}, worse by more than {rails.margin:g}")
    if look.is_last:
        return Finding(
            Verdict.roll_back, f"{text}: not shown to be less than {rails.margin:g} worse"
        )
    return Finding(Verdict.undecided, f"{text}: more episodes are needed")


class _Look(EventStruct, frozen=True):
    """The values of both versions' users at one look."""

    stable: tuple[float, ...]
    candidate: tuple[float, ...]
    number: int
    looks: int

    @property
    def is_last(self) -> bool:
        return self.number == self.looks

    def gap(self, unit: float) -> Estimate:
        return estimate_gap(
            [value / unit for value in self.stable],
            [value / unit for value in self.candidate],
            _ERROR / self.looks,
        )

    def __str__(self) -> str:
        return (
            f"{len(self.candidate)} and {len(self.stable)} users, look {self.number} of "
            f"{self.looks}"
        )


def _look(
    stable: Sequence[LiveEpisode],
    candidate: Sequence[LiveEpisode],
    value: Callable[[LiveEpisode], float | None],
    first: int,
    most: int,
) -> _Look | None:
    """The newest look that the episodes reach; None before the first."""
    sizes = [first]
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    valued = [one for one in candidate if value(one) is not None]
    firsts: dict[str, int] = {}
    for one in valued:
        firsts.setdefault(one.person, one.ended_at)
    reached = [size for size in sizes if size <= len(firsts)]
    if not reached:
        return None
    until = sorted(firsts.values())[reached[-1] - 1]
    values = [
        _by_person([one for one in episodes if one.ended_at <= until], value)
        for episodes in (stable, valued)
    ]
    if len(values[0]) < FEWEST:
        return None
    return _Look(values[0], values[1], len(reached), len(sizes))


def _by_person(
    episodes: Sequence[LiveEpisode], value: Callable[[LiveEpisode], float | None]
) -> tuple[float, ...]:
    values: dict[str, list[float]] = {}
    for one in episodes:
        found = value(one)
        if found is not None:
            values.setdefault(one.person, []).append(found)
    return tuple(fmean(found) for found in values.values())


def _bounds(gap: Estimate) -> str:
    return f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


def _reward(one: LiveEpisode) -> float | None:
    return one.reward


def _failed(one: LiveEpisode) -> float:
    return float(one.failed)


def _truncated(one: LiveEpisode) -> float:
    return float(one.truncated)


def _seconds(one: LiveEpisode) -> float:
    return one.seconds
