"""Reduces an episode to what an estimate of another router needs: variant, propensity, earnings."""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.cost.prices import Prices, price_of, price_tokens
from fulgurite.cost.tokens import tokens_of
from fulgurite.enums import CallOutcome
from fulgurite.errors import BadPrices
from fulgurite.events import Episode, EventStruct, LlmCall
from fulgurite.selection.answered import answered_calls, variant_of
from fulgurite.selection.context import cell_of


class LoggedEpisode(EventStruct, frozen=True, kw_only=True):
    """One rewarded episode of an alias."""

    group_id: str
    variant: str | None
    """None: the log does not say it, or its calls were answered by several."""
    propensity: float | None
    """Share with which it was given the variant."""
    reward: float
    price: float | None
    """Of the alias's calls, in the price file's currency; None without a price."""
    seconds: float
    """That the alias's calls took, added up."""
    cell: str
    """What is known before the first answer (`fulgurite.selection.context`)."""


class Weights(EventStruct, frozen=True, kw_only=True):
    """What a unit of money and a second cost, in units of reward."""

    price: float = 0.0
    latency: float = 0.0


def logged_episode(
    episode: Episode, alias: str, reward: float, prices: Prices | None
) -> LoggedEpisode | None:
    """Reduce an episode; None if it has no answered call of the alias."""
    calls = answered_calls(episode, alias)
    if not calls:
        return None
    variant = variant_of(calls)
    propensities = {call.propensity for call in calls}
    is_given = variant is not None and len(propensities) == 1
    propensity = propensities.pop() if is_given else None
    return LoggedEpisode(
        group_id=episode.group_id,
        variant=variant,
        propensity=propensity,
        reward=reward,
        price=None if prices is None else _price(calls, prices),
        seconds=sum(call.finished_at - call.started_at for call in calls) / 1000,
        cell=cell_of(calls[0]),
    )


def earned(episode: LoggedEpisode, weights: Weights) -> float:
    """Reward minus weighted price and latency. Raises BadPrices where a price is missing."""
    price = episode.price
    if weights.price and price is None:
        raise BadPrices(
            f"an episode of {episode.variant or 'an unknown variant'!r} has no price: name its "
            "backend in the price file, or its calls have no usage"
        )
    return episode.reward - weights.price * (price or 0.0) - weights.latency * episode.seconds


def _price(calls: Sequence[LlmCall], prices: Prices) -> float | None:
    """The higher bound where it is unknown how much of a prompt was cached.

    A failed call without usage costs nothing.
    """
    total = 0.0
    for call in calls:
        price, tokens = price_of(prices, call.alias, call.backend), tokens_of(call)
        is_unknown = call.outcome is CallOutcome.success and None in (tokens.prompt, tokens.sampled)
        if price is None or is_unknown:
            return None
        total += price_tokens(tokens, price).high
    return total
