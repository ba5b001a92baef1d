"""Evaluates versions as they are published, for `fulgurite eval --every`, and says which are not
worse than the one that is promoted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import msgspec

from fulgurite.events import PolicyRoute
from fulgurite.learning.evaluation import shortcoming
from fulgurite.versions import Version, base_version, parse_version
from services.cli.held_out import Earned, Pair, pairs
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import last_routes
from services.common.policies.route_targets import read_published

_POLL_S = 5.0


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """What is evaluated when, and what is good enough."""

    policy: str
    alias: str
    """Alias whose route names the version to beat."""
    every: int
    """New versions between two evaluations."""
    margin: float
    min_tasks: int


class Round(msgspec.Struct, frozen=True):
    """One evaluation of a new version."""

    earned: tuple[Earned, Earned]
    """The version to beat, and the new one."""
    pair: Pair
    why_not: str | None
    """Why the new one is not to be promoted."""


def rounds(
    kafka: KafkaSettings,
    promotion: Promotion,
    measure: Callable[[str], Earned],
    stopped: threading.Event,
) -> Iterator[Round]:
    """Yield an evaluation whenever `every` new versions were published, until stopped.

    Whoever takes it promotes the version, or not, before the next one. Versions are measured once.
    Raises LogUnavailable, and what `measure` raises.
    """
    measured: dict[str, Earned] = {}
    seen = 0
    while not stopped.is_set():
        fold = read_published(kafka).folds.get(promotion.policy)
        if fold is None or len(fold.updates) - seen < promotion.every:
            stopped.wait(_POLL_S)
            continue
        seen = len(fold.updates)
        candidate, baseline = fold.version(), promoted(last_routes(kafka), promotion)
        if candidate != baseline:
            yield evaluated(promotion, baseline, candidate, measured, measure)


def evaluated(
    promotion: Promotion,
    baseline: Version,
    candidate: Version,
    measured: dict[str, Earned],
    measure: Callable[[str], Earned],
) -> Round:
    """Measure two versions, unless they are in `measured`, and compare them."""
    for version in map(str, (baseline, candidate)):
        if version not in measured:
            measured[version] = measure(version)
    earned = measured[str(baseline)], measured[str(candidate)]
    (pair,) = pairs(earned)
    return Round(earned, pair, shortcoming(pair.difference, promotion.margin, promotion.min_tasks))


def promoted(routes: Mapping[str, PolicyRoute], promotion: Promotion) -> Version:
    """The version with the greatest share of the alias; the base model where none is named."""
    route = routes.get(promotion.alias)
    named = [
        (target.weight, target.version)
        for target in (route.targets if route is not None else ())
        if target.policy == promotion.policy and target.version is not None and target.weight > 0
    ]
    return parse_version(max(named)[1]) if named else base_version(promotion.policy)
