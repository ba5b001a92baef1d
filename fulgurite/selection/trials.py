"""Decides what a gate writes to `policy.routes` of its alias: a function of logged facts.

The state is in the alias's last route, because the topic is compacted. So a gate that is killed at
any time goes on where its last route left it. A gate's route names

- the stable version alone: nothing is tried (`previous`: what was rolled back, or promoted over);
- the stable version and then a new one: the new one is on trial since then.

An alias has one author of its shares. A route by hand ends a trial, and the gate goes on from it
only with versions that are published later. A route by another service stops the gate.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from fulgurite.events import EventStruct, PolicyRoute, RouteTarget
from fulgurite.ids import derive_id
from fulgurite.selection.authors import GATE, is_evaluation
from fulgurite.selection.canary import Finding, GuardRails, Verdict
from fulgurite.selection.variants import name_variant
from fulgurite.versions import MalformedVersion, Version, parse_version


class Trial(EventStruct, frozen=True):
    """A new version that has a share."""

    stable: RouteTarget
    candidate: RouteTarget
    began_at: int
    """Unix milliseconds."""


class Shares(EventStruct, frozen=True, kw_only=True):
    """What an alias's last route says to its gate."""

    base: str
    """Event id of the route that a decision replaces; empty without one."""
    is_open: bool = False
    """Whether the alias has no route and nobody removed one: the newest version serves it."""
    stable: RouteTarget | None = None
    trial: Trial | None = None
    newest_tried: Version | None = None
    """Only newer versions are tried."""
    since_ms: int = 0
    """Only versions that were published later are tried."""
    other_author: str | None = None
    """The selector that writes the shares."""
    held: str | None = None
    """Why nothing can be tried until there is another route."""


class Change(EventStruct, frozen=True, kw_only=True):
    """A route to write."""

    event_id: str
    """The same for the same decision, so that a gate that repeats one changes nothing."""
    targets: tuple[RouteTarget, ...]
    previous: tuple[RouteTarget, ...]
    """What `fulgurite policy rollback` returns to."""
    reason: str


def read_shares(route: PolicyRoute | None) -> Shares:
    """Read the state from an alias's last route; None: it never had one."""
    if route is None:
        return Shares(base="", is_open=True)
    served = [target for target in route.targets if target.weight > 0]
    if route.author == GATE and len(served) in (1, 2):
        return _read_own(route, served)
    if is_evaluation(route.author):
        held = (
            "a version is evaluated behind this alias; the gate waits. If no evaluation runs any "
            "more, set a single version with `fulgurite routes set`"
        )
        return Shares(base=route.event_id, is_open=not served, held=held if served else None)
    if route.selection is not None:
        return Shares(base=route.event_id, other_author=route.author)
    by_hand = Shares(base=route.event_id, since_ms=route.event_time)
    what = None
    if len(served) != 1:
        what = f"{len(served)} versions" if served else "no version, so the newest serves it"
    elif served[0].version is None and served[0].upstream is None:
        what = "the newest version, whichever it is"
    if what is not None:
        advice = "to go on, set a single version with `fulgurite routes set`"
        return replace(by_hand, held=f"the route by {route.author} names {what}: {advice}")
    return replace(by_hand, stable=replace(served[0], weight=1.0))


def overtaking(
    between: Sequence[PolicyRoute], replaced: PolicyRoute | None, written: PolicyRoute
) -> PolicyRoute | None:
    """The route that somebody set while a gate decided, and that must stay; None if there is none.

    `between`: the alias's routes in the log between `replaced`, for which the gate decided, and
    `written`, its own. An evaluation that has put `replaced` back changed nothing.
    """
    last = between[-1] if between else None
    known = [one.event_id for one in (replaced, written) if one is not None]
    return None if last is None or last.event_id in known else last


def pin(alias: str, shares: Shares, newest: Version) -> Change:
    """Keep the version that serves an alias without a route, so that newer ones are tried first."""
    target = RouteTarget(policy=newest.policy, version=str(newest), weight=1.0)
    reason = f"{newest} serves until a newer version passes the gate"
    return _change(alias, shares, "pin", (target,), (), reason)


def next_candidate(shares: Shares, newest: Version, published_at: int | None) -> RouteTarget | None:
    """The version to try next; None if there is none.

    `newest`: the newest version of the alias's policy; `published_at`: when it was, in Unix
    milliseconds; None: the base model, which is no candidate.
    """
    stable = shares.stable
    if stable is None or shares.trial is not None or published_at is None:
        return None
    if published_at <= shares.since_ms or name_variant(stable) == str(newest):
        return None
    tried = shares.newest_tried
    if tried is not None and tried.policy == newest.policy and newest <= tried:
        return None
    # What is asked of the stable version by the route is asked of the new one.
    return RouteTarget(
        policy=newest.policy,
        version=str(newest),
        weight=1.0,
        prompt=stable.prompt,
        parameters=stable.parameters,
    )


def begin_trial(
    alias: str, shares: Shares, candidate: RouteTarget, rails: GuardRails, why: str
) -> Change:
    """Give a candidate its share. `why`: what it earned on held-out tasks, for people."""
    assert shares.stable is not None, "a candidate is tried against a stable version"
    stable = shares.stable
    targets = (replace(stable, weight=1.0 - rails.share), replace(candidate, weight=rails.share))
    return _change(alias, shares, "try", targets, (stable,), why)


def end_trial(alias: str, shares: Shares, finding: Finding) -> Change | None:
    """Promote the version on trial, or roll it back; None while nothing is decided."""
    trial = shares.trial
    assert trial is not None, "there is a trial to end"
    stable, candidate = replace(trial.stable, weight=1.0), replace(trial.candidate, weight=1.0)
    names = f"{name_variant(candidate)} against {name_variant(stable)}: {finding.reason}"
    if finding.verdict is Verdict.promote:
        return _change(alias, shares, "promote", (candidate,), (stable,), f"promoted {names}")
    if finding.verdict is Verdict.roll_back:
        return _change(alias, shares, "roll back", (stable,), (candidate,), f"rolled back {names}")
    return None


def _read_own(route: PolicyRoute, served: Sequence[RouteTarget]) -> Shares:
    named = map(_version_of, (*served, *route.previous))
    found = Shares(
        base=route.event_id,
        newest_tried=max((version for version in named if version is not None), default=None),
        stable=served[0],
    )
    if len(served) == 1:
        return found
    return replace(found, trial=Trial(served[0], served[1], route.event_time))


def _version_of(target: RouteTarget) -> Version | None:
    try:
        return parse_version(target.version or "")
    except MalformedVersion:
        return None


def _change(
    alias: str,
    shares: Shares,
    what: str,
    targets: tuple[RouteTarget, ...],
    previous: tuple[RouteTarget, ...],
    reason: str,
) -> Change:
    event_id = derive_id("gate", alias, shares.base, what, *map(name_variant, targets))
    return Change(event_id=event_id, targets=targets, previous=previous, reason=reason)
