"""An estimate that a log does not support is refused, with the variant's name."""

from __future__ import annotations

import pytest

from fulgurite.errors import NoSupport
from fulgurite.selection.logged import LoggedEpisode
from fulgurite.selection.support import effective_size, supported


def episodes(variant: str | None, propensity: float | None, count: int) -> list[LoggedEpisode]:
    one = LoggedEpisode(
        group_id="g", variant=variant, propensity=propensity, reward=0, price=None, seconds=0, cell=""
    )  # fmt: skip
    return [one] * count


HALVES = [*episodes("a", 0.5, 50), *episodes("b", 0.5, 50)]


def refusal(log: list[LoggedEpisode], **shares: float) -> str:
    with pytest.raises(NoSupport) as error:
        supported(log, shares)
    return str(error.value)


def test_weights_are_shares_over_propensities() -> None:
    found = supported(HALVES, {"a": 0.25, "b": 0.75})
    assert set(found.weights) == {0.5, 1.5}
    assert found.effective == pytest.approx(100**2 / (50 * 0.25 + 50 * 2.25))
    assert effective_size([2.0] * 7) == 7


def test_a_variant_that_the_log_lacks() -> None:
    message = refusal(HALVES, a=0.5, c=0.5)
    assert "no episode in the log was answered by 'c'" in message
    assert "variants are: a, b" in message
    assert "variants are: none" in refusal(episodes(None, None, 3), a=1.0)


@pytest.mark.parametrize("propensity", [None, 0.0, 1.0])
def test_a_variant_that_was_never_drawn(propensity: float | None) -> None:
    message = refusal([*HALVES, *episodes("c", propensity, 30)], a=0.5, c=0.5)
    assert "none of the 30 episodes of 'c'" in message


def test_episodes_that_say_nothing_are_left_out_and_counted() -> None:
    log = [*HALVES, *episodes("a", 1.0, 7), *episodes("a", None, 3), *episodes(None, None, 2)]
    found = supported(log, {"a": 0.5, "b": 0.5})
    assert (len(found.episodes), found.without_choice, found.without_propensity) == (100, 7, 5)


def test_episodes_that_were_bound_to_get_the_only_variant_of_the_candidate_count() -> None:
    found = supported(episodes("a", 1.0, 30), {"a": 1.0, "b": 0.0})
    assert (len(found.episodes), found.effective) == (30, 30)


def test_a_variant_that_had_no_share_for_a_part_of_the_time() -> None:
    before = [*episodes("a", 0.5, 300), *episodes("c", 0.5, 300)]
    message = refusal([*before, *HALVES * 3], a=0.5, b=0.5)
    assert "episodes of 'b' stand for 33% of the log's 900" in message
    assert "--since" in message


def test_too_few_effective_episodes() -> None:
    message = refusal([*episodes("a", 0.99, 990), *episodes("b", 0.01, 10)], b=1.0)
    assert "effective sample size is 10.0 of 1000" in message
    assert "too few episodes of 'b'" in message
