"""Reads a price file, and prices tokens and seconds by it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from typing import Annotated

import msgspec

from fulgurite.cost.tokens import CallTokens
from fulgurite.errors import BadPrices
from fulgurite.events import EventStruct

_Amount = Annotated[float, msgspec.Meta(ge=0)]
_MILLION = 1e6
_HOUR_S = 3600.0


class Money(EventStruct, frozen=True):
    """An amount between two bounds, which are equal where it is known."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Money) -> Money:
        """Add both bounds."""
        return Money(self.low + other.low, self.high + other.high)


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices per million tokens."""

    input: _Amount
    """Of prompt tokens."""
    cached_input: _Amount | None = None
    """Of prompt tokens from a prefix cache; without it, the same as `input`."""
    output: _Amount
    """Of generated tokens."""


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of a price file."""

    currency: str
    tokens: dict[str, Price] = {}
    """By alias or backend; an alias goes before a backend."""
    learner_per_hour: dict[str, _Amount] = {}
    """Price of the machine on which a policy's learner runs, by policy."""


def parse_prices(text: str) -> Prices:
    """Parse a price file, which is TOML. Raises BadPrices."""
    try:
        prices = msgspec.convert(tomllib.loads(text), Prices)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise BadPrices(str(error)) from error
    amounts = {
        **{f"tokens.{name}.input": price.input for name, price in prices.tokens.items()},
        **{f"tokens.{name}.cached_input": p.cached_input for name, p in prices.tokens.items()},
        **{f"tokens.{name}.output": price.output for name, price in prices.tokens.items()},
        **{f"learner_per_hour.{name}": amount for name, amount in prices.learner_per_hour.items()},
    }
    for name, amount in amounts.items():
        if amount is not None and not math.isfinite(amount):
            raise BadPrices(f"{name} = {amount}: a price is a finite number")
    return prices


def price_tokens(tokens: CallTokens, price: Price) -> Money:
    """Price the tokens that are known. If the cached ones are not, the bounds are all and none."""
    prompt, cached_price = tokens.prompt or 0, price.cached_input
    if cached_price is None:
        cached_price = price.input
    if tokens.cached is None:
        bounds = sorted((prompt * price.input, prompt * cached_price))
    else:
        bounds = [(prompt - tokens.cached) * price.input + tokens.cached * cached_price] * 2
    output = (tokens.sampled or 0) * price.output
    return Money(*((bound + output) / _MILLION for bound in bounds))


def price_seconds(seconds: float, per_hour: float) -> Money:
    """Price the time of a machine."""
    amount = seconds / _HOUR_S * per_hour
    return Money(amount, amount)


def price_of(prices: Prices, alias: str, backend: str) -> Price | None:
    """The price of calls for an alias that a backend answered; None if the file has none."""
    table: Mapping[str, Price] = prices.tokens
    return table.get(alias) or table.get(backend)
