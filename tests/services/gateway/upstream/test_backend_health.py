"""A backend that cannot be reached is left alone for a while, then tried by one call at a time."""

from __future__ import annotations

from services.gateway.upstream.backend_health import FIRST_PAUSE_S, LONGEST_PAUSE_S, BackendHealth
from services.gateway.upstream.route import Route

A, B = (Route("policy", name, f"http://{name}", "vllm", "policy", "policy", None) for name in "ab")


def order(health: BackendHealth, now: float) -> str:
    return "".join(way.backend for way in health.order((A, B), now))


def test_a_failed_backend_comes_last_until_its_pause_is_over() -> None:
    health = BackendHealth()
    assert order(health, 0) == "ab"
    health.failed("a", 0)
    assert order(health, 0.5) == "ba"
    assert order(health, FIRST_PAUSE_S) == "ab"


def test_one_call_tries_it_and_the_others_wait_for_what_becomes_of_it() -> None:
    health = BackendHealth()
    health.failed("a", 0)
    assert [order(health, 1.0), order(health, 1.0), order(health, 1.5)] == ["ab", "ba", "ba"]
    health.answered("a")
    assert [order(health, 1.6), order(health, 1.6)] == ["ab", "ab"]


def test_pauses_grow_with_each_trial_and_not_with_each_call() -> None:
    health = BackendHealth()
    for _ in range(20):
        health.failed("a", 0)
    now = FIRST_PAUSE_S
    assert order(health, now) == "ab"
    health.failed("a", now)
    assert order(health, now + FIRST_PAUSE_S) == "ba"
    now += 2 * FIRST_PAUSE_S
    for _ in range(10):
        assert order(health, now) == "ab"
        health.failed("a", now)
        now += LONGEST_PAUSE_S
    assert order(health, now) == "ab"


def test_a_trial_that_nobody_hears_of_again_is_repeated() -> None:
    health = BackendHealth()
    health.failed("a", 0)
    assert order(health, 1.0) == "ab"
    assert order(health, 2.0) == "ab"


def test_a_second_choice_is_not_tried_in_vain() -> None:
    health = BackendHealth()
    health.failed("b", 0)
    assert [order(health, 2.0), order(health, 2.0)] == ["ab", "ab"]
    health.failed("a", 2.0)
    assert order(health, 2.1) == "ba"


def test_when_all_are_down_all_are_tried() -> None:
    health = BackendHealth()
    health.failed("a", 0)
    health.failed("b", 0)
    assert order(health, 0.1) == "ab"
