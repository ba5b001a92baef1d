"""A price file is checked, and amounts that depend on the unknown have bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.cost.prices import Money, Price, parse_prices, price_of, price_seconds, price_tokens
from fulgurite.cost.tokens import CallTokens
from fulgurite.errors import BadPrices

FILE = """
currency = "EUR"

[tokens.policy]
input = 1
cached_input = 0.5
output = 4.0

[tokens."gpt 5"]
input = 2.0
output = 8.0

[learner_per_hour]
policy = 3.6
"""


def test_a_price_file_is_read() -> None:
    prices = parse_prices(FILE)
    assert (prices.currency, prices.learner_per_hour) == ("EUR", {"policy": 3.6})
    assert price_of(prices, "policy", "gpt 5") == Price(input=1, cached_input=0.5, output=4)
    assert price_of(prices, "writer", "gpt 5") == Price(input=2, output=8)
    assert price_of(prices, "writer", "local") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("currency = ", "Invalid value"),
        ("", "`currency`"),
        ("currency = 'EUR'\nprices = 1", "prices"),
        ("currency = 'EUR'\n[tokens.policy]\ninput = 1", "`output`"),
        ("currency = 'EUR'\n[tokens.policy]\ninput = -1\noutput = 1", ">= 0"),
        ("currency = 'EUR'\n[tokens.policy]\ninput = 'a'\noutput = 1", "tokens"),
        ("currency = 'EUR'\n[tokens.policy]\ninput = 1\noutput = inf", "tokens.policy.output = inf"),
        ("currency = 'EUR'\n[learner_per_hour]\npolicy = inf", "learner_per_hour.policy = inf"),
    ],
)  # fmt: skip
def test_a_broken_price_file_is_refused_by_the_key(text: str, words: str) -> None:
    with pytest.raises(BadPrices, match=words):
        parse_prices(text)


COUNTS = st.integers(0, 10_000_000)


@given(COUNTS, st.data(), COUNTS)
def test_what_is_cached_lies_between_the_bounds_of_what_may_be(
    prompt: int, data: st.DataObject, sampled: int
) -> None:
    price = Price(input=1.0, cached_input=0.1, output=4.0)
    cached = data.draw(st.integers(0, prompt))
    known = price_tokens(CallTokens(prompt=prompt, cached=cached, sampled=sampled), price)
    bounds = price_tokens(CallTokens(prompt=prompt, cached=None, sampled=sampled), price)
    assert known.low == known.high
    assert bounds.low - 1e-9 <= known.low <= bounds.high + 1e-9


def test_without_a_price_of_cached_tokens_they_cost_what_others_cost() -> None:
    price = Price(input=1.0, output=4.0)
    unknown = CallTokens(prompt=1_000_000, cached=None, sampled=500_000)
    assert price_tokens(unknown, price) == Money(3.0, 3.0)
    nothing = CallTokens(prompt=None, cached=None, sampled=None)
    assert price_tokens(nothing, price) == Money(0.0, 0.0)


def test_amounts_add_up() -> None:
    assert Money(1, 2) + price_seconds(1_800, 3.0) == Money(2.5, 3.5)
