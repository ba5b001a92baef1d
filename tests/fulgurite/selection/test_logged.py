"""What is left of an episode for an estimate, and what it earned."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.cost.prices import parse_prices
from fulgurite.enums import CallOutcome
from fulgurite.episodes.stitching import stitch
from fulgurite.errors import BadPrices
from fulgurite.events import Episode, LlmCall
from fulgurite.selection.logged import LoggedEpisode, Weights, earned, logged_episode
from tests.synthetic import make_call, make_declared, make_status

PRICES = parse_prices(
    """
currency = "EUR"
[tokens.policy]
input = 1.0
cached_input = 0.5
output = 2.0
"""
)


def call(turn: int = 0, **changes: Any) -> LlmCall:
    made = make_call(turn=turn, at=1_000 + turn)
    usual = {
        "variant": "policy",
        "propensity": 0.8,
        "prompt_tokens": 1_000_000,
        "completion_tokens": 500_000,
        "started_at": 0,
        "finished_at": 1_500,
    }
    return msgspec.structs.replace(made, **(usual | changes))


def episode(*calls: LlmCall) -> Episode:
    found = stitch([make_declared(0, 1), *calls, make_status(0, 0)])
    assert found is not None
    return found


def logged(*calls: LlmCall) -> LoggedEpisode:
    found = logged_episode(episode(*calls), calls[0].alias, 0.5, PRICES)
    assert found is not None
    return found


def test_calls_of_the_alias_are_priced_and_timed() -> None:
    one = logged(call(0), call(1), call(2, alias="another", variant="another"))
    assert (one.variant, one.propensity, one.reward) == ("policy", 0.8, 0.5)
    assert one.seconds == 3.0
    assert one.price == pytest.approx(2 * (1.0 + 1.0)), "nothing counts as cached"


def test_an_episode_of_several_variants_has_none() -> None:
    one = logged(call(0), call(1, variant="upstream:gpt"))
    assert (one.variant, one.propensity) == (None, None)


def test_a_variant_that_was_given_twice_has_no_propensity() -> None:
    one = logged(call(0), call(1, propensity=0.4))
    assert (one.variant, one.propensity) == ("policy", None)


def test_an_episode_without_an_answered_call_of_the_alias_is_none() -> None:
    assert logged_episode(episode(call(0)), "another", 1.0, None) is None
    refused = episode(call(0, backend="", variant=None, propensity=None))
    assert logged_episode(refused, call(0).alias, 1.0, None) is None


@pytest.mark.parametrize(
    "changes",
    [{"alias": "x", "backend": "y"}, {"prompt_tokens": None, "prompt_token_ids": None}],
)
def test_what_has_no_price_says_so_only_where_prices_count(changes: dict[str, Any]) -> None:
    one = logged(call(0, **changes))
    assert one.price is None
    assert earned(one, Weights(latency=0.1)) == pytest.approx(0.5 - 0.15)
    with pytest.raises(BadPrices, match="'policy' has no price"):
        earned(one, Weights(price=0.1))


def test_a_failed_call_without_usage_costs_nothing() -> None:
    unbilled = {"prompt_tokens": None, "prompt_token_ids": None, "completion_tokens": None}
    failed = call(1, outcome=CallOutcome.upstream_error, choices=(), **unbilled)
    assert logged(call(0), failed).price == pytest.approx(2.0)


def test_without_prices_there_is_none() -> None:
    one = logged_episode(episode(call(0)), call(0).alias, 1.0, None)
    assert one is not None
    assert one.price is None


def test_earnings_are_reward_minus_price_and_latency() -> None:
    one = logged(call(0))
    assert earned(one, Weights(price=0.1, latency=0.2)) == pytest.approx(0.5 - 0.2 - 0.3)


def test_context_is_that_of_the_first_request() -> None:
    assert logged(call(0, agent="critic", request="{}")).cell == "critic/short"
    assert logged(call(0, cell="/long"), call(1, cell=None, request="{}")).cell == "/long"
