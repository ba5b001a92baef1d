"""Lets new versions of an alias's policy serve only after they passed: held-out tasks, then a small
share of the live traffic.

What to write is decided by `fulgurite.selection`, from the alias's last route and the log. So this
loop keeps nothing that a restart would miss.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec

from fulgurite.events import PolicyRoute
from fulgurite.learning.evaluation import shortcoming
from fulgurite.selection.authors import GATE, evaluation_for
from fulgurite.selection.canary import Finding, GuardRails, watch
from fulgurite.selection.live_episodes import LiveEpisode, LiveEpisodes
from fulgurite.selection.trials import (
    Change,
    Shares,
    Trial,
    begin_trial,
    end_trial,
    next_candidate,
    overtaking,
    pin,
    read_shares,
)
from fulgurite.selection.variants import name_variant
from fulgurite.topics import AGENT_REWARDS, EPISODES, POLICY_ROUTES
from fulgurite.versions import base_version
from services.cli.held_out import Earned, pairs, reason_of
from services.cli.loading import take_back
from services.cli.route_effect import RouteEffect
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.log_follower import LogFollower
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import publish_route
from services.common.policies.route_targets import BadTarget, Published, read_published
from services.common.runtime.clock import now_ms

_CLOCK_SKEW_MS = 60_000
"""How far the clocks of the machines that write records may differ."""
_LOAD_WAIT_S = 60.0

Measure = Callable[[str], Earned]
"""Runs the held-out tasks with a version."""


class LiveGate(msgspec.Struct, frozen=True, kw_only=True):
    """Which alias is gated, and by what."""

    alias: str
    policy: str
    rails: GuardRails
    margin: float
    """On held-out tasks."""
    min_tasks: int
    poll_s: float


class Trials:
    """The gate of one alias."""

    def __init__(
        self,
        kafka: KafkaSettings,
        gate: LiveGate,
        measure: Measure | None,
        report: Callable[[str], None],
    ) -> None:
        """`measure`: None without held-out tasks. `report`: gets each new thing to say, once."""
        self._kafka = kafka
        self._gate = gate
        self._measure = measure
        self._report = report
        self._said = ""
        self._earned: dict[str, Earned] = {}
        self._refused: set[str] = set()
        """Versions that did not pass the held-out tasks. A restart measures them again."""
        self._traffic: _Traffic | None = None

    def run(self, stopped: threading.Event) -> None:
        """Go on until stopped. Raises BadTarget if another service writes the alias's shares,
        LogUnavailable, and what `measure` raises.
        """
        self._take_back()
        try:
            while not stopped.is_set():
                if not self.step():
                    stopped.wait(self._gate.poll_s)
        finally:
            self._forget_traffic()

    def _take_back(self) -> None:
        """Put back the routes of evaluations that this gate was killed in."""
        for killed in take_back(self._kafka, evaluation_for(self._gate.alias)):
            self._say(f"{killed} was killed, and its route is taken back")

    def step(self) -> bool:
        """Write what the log asks for; returns whether anything was written. Raises as `run`."""
        route, offset = self._last_route()
        shares, published = read_shares(route), read_published(self._kafka)
        if shares.other_author is not None:
            raise BadTarget(
                f"the shares of {self._gate.alias!r} are written by {shares.other_author}, and an "
                "alias has one author of its shares: stop that one and set a route with "
                "`fulgurite routes set`, or gate another alias"
            )
        change = self._decide(shares, published)
        if change is not None:
            self._write(change, route, offset, published)
        return change is not None

    def _decide(self, shares: Shares, published: Published) -> Change | None:
        alias, policy = self._gate.alias, self._gate.policy
        if shares.trial is not None:
            return end_trial(alias, shares, self._watch(shares.trial))
        self._forget_traffic()
        fold = published.folds.get(policy)
        newest = fold.version() if fold is not None else base_version(policy)
        if shares.is_open:
            return pin(alias, shares, newest)
        update = fold.updates.get(newest) if fold is not None else None
        candidate = next_candidate(shares, newest, update.event_time if update else None)
        if shares.stable is None or candidate is None or str(newest) in self._refused:
            serving = name_variant(shares.stable) if shares.stable is not None else alias
            self._say(shares.held or f"{serving} serves; waiting for a newer version")
            return None
        published.check(candidate, {policy})
        stable = shares.stable.version or shares.stable.upstream or shares.stable.policy
        why = self._examine(stable, str(newest))
        if why is None:
            return None
        return begin_trial(alias, shares, candidate, self._gate.rails, why)

    def _examine(self, stable: str, candidate: str) -> str | None:
        """Why a candidate gets a share, after the held-out tasks; None if it gets none."""
        if self._measure is None:
            return f"{candidate} is tried against {stable}: there are no held-out tasks"
        for version in (stable, candidate):
            if version not in self._earned:
                self._say(f"{version} answers the held-out tasks")
                self._earned[version] = self._measure(version)
        (pair,) = pairs((self._earned[stable], self._earned[candidate]))
        why_not = shortcoming(pair.difference, self._gate.margin, self._gate.min_tasks)
        if why_not is None and pair.difference is not None:
            return f"{candidate} is tried: {reason_of(pair.difference, stable)}"
        self._refused.add(candidate)
        self._say(f"{candidate} gets no share: on held-out tasks against {stable}, {why_not}")
        return None

    def _watch(self, trial: Trial) -> Finding:
        if self._traffic is None or self._traffic.since_ms != trial.began_at:
            self._forget_traffic()
            self._traffic = _Traffic(self._kafka, self._gate.alias, trial.began_at)
        found = self._traffic.read()
        stable, candidate = name_variant(trial.stable), name_variant(trial.candidate)
        finding = watch(
            found.get(stable, ()),
            found.get(candidate, ()),
            self._gate.rails,
            trial.began_at,
            max((one.ended_at for episodes in found.values() for one in episodes), default=0),
        )
        self._say(f"{candidate} against {stable}: {finding.reason}")
        return finding

    def _write(
        self, change: Change, replaced: PolicyRoute | None, offset: int, published: Published
    ) -> None:
        event = PolicyRoute(
            event_id=change.event_id,
            event_time=now_ms(),
            alias=self._gate.alias,
            targets=change.targets,
            reason=change.reason,
            author=GATE,
            previous=change.previous,
        )
        self._forget_traffic()
        with RouteEffect(self._kafka, published) as effect:
            written = publish_route(self._kafka, event)
            between = [route for at, route in self._routes() if offset < at < written]
            other = overtaking(between, replaced, event)
            if other is not None:
                publish_route(self._kafka, other)
                self._say(f"a route by {other.author} came first, and stays: {other.reason}")
                return
            self._say(change.reason)
            effect.wait(change.targets, _LOAD_WAIT_S)

    def _last_route(self) -> tuple[PolicyRoute | None, int]:
        """The alias's last route, and its offset."""
        last, offset = None, -1
        for at, route in self._routes():
            last, offset = route, at
        return last, offset

    def _routes(self) -> list[tuple[int, PolicyRoute]]:
        return [
            (record.offset, record.event)
            for record in read_all(self._kafka, POLICY_ROUTES, make_codec())
            if isinstance(record.event, PolicyRoute) and record.event.alias == self._gate.alias
        ]

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._report(text)

    def _forget_traffic(self) -> None:
        if self._traffic is not None:
            self._traffic.close()
            self._traffic = None


class _Traffic:
    """The live episodes of an alias since a time."""

    def __init__(self, kafka: KafkaSettings, alias: str, since_ms: int) -> None:
        self.since_ms = since_ms
        self._episodes = LiveEpisodes(alias, since_ms)
        self._events = LogFollower(
            kafka, make_codec(), (EPISODES, AGENT_REWARDS), since_ms=since_ms - _CLOCK_SKEW_MS
        )

    def read(self) -> Mapping[str, Sequence[LiveEpisode]]:
        """The episodes of each variant, with what came since the last call."""
        for _, record in self._events.catch_up():
            if record.event is not None:
                self._episodes.apply(record.event)
        return self._episodes.by_variant()

    def close(self) -> None:
        self._events.close()
