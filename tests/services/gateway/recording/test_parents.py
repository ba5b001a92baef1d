"""Which calls the next one may extend: acknowledged ones of the same attempt, recent, within a
bound of bytes.
"""

from __future__ import annotations

import json

import msgspec
import pytest

from fulgurite.enums import CallOutcome, Identity
from fulgurite.events import LlmCall
from fulgurite.tokens import prompt_hash
from services.common.kafka.delivery import Delivery
from services.gateway.recording import parents as module
from services.gateway.recording.parents import Parents
from tests.synthetic import make_call


def turn(
    number: int, index: int = 0, *, attempt: int = 0, outcome: CallOutcome = CallOutcome.success
) -> LlmCall:
    """A call whose prompt and body grow with its number."""
    messages = [{"role": "user", "content": f"{n} " * 200} for n in range(number + 1)]
    call = make_call(
        0, index, number, attempt=attempt, prompt=range(1_000 * (number + 1)), outcome=outcome
    )
    return msgspec.structs.replace(
        call,
        request=json.dumps({"messages": messages}),
        prompt_hash=prompt_hash(call.prompt_token_ids or b""),
    )


def test_the_next_turn_is_a_delta_of_the_one_before() -> None:
    parents = Parents(1 << 20)
    assert parents.shorten(turn(0)) == (turn(0), 0)
    parents.remember(turn(0), Delivery(3, 14), 0)
    delta, depth = parents.shorten(turn(1))
    assert delta.parent is not None
    assert (delta.parent.call_id, delta.parent.partition, delta.parent.offset, depth) == (
        turn(0).call_id,
        3,
        14,
        1,
    )


def test_other_attempts_and_rollouts_are_no_parents() -> None:
    parents = Parents(1 << 20)
    parents.remember(turn(0), Delivery(0, 0), 0)
    assert parents.shorten(turn(1, index=1))[0].parent is None
    assert parents.shorten(turn(1, attempt=1))[0].parent is None


def test_failed_calls_and_rollouts_of_one_call_are_not_remembered() -> None:
    parents = Parents(1 << 20)
    parents.remember(turn(0, outcome=CallOutcome.upstream_error), Delivery(0, 0), 0)
    parents.remember(msgspec.structs.replace(turn(0), identity=Identity.none), Delivery(0, 0), 0)
    assert parents.shorten(turn(1))[0].parent is None


def test_of_one_attempt_the_latest_are_kept() -> None:
    parents = Parents(1 << 20)
    for number in range(6):
        parents.remember(turn(number), Delivery(0, number), 0)
    # An agent that goes back to its second turn finds it no more, but what later turns share with
    # it.
    delta, _ = parents.shorten(turn(1))
    assert delta.parent is not None
    assert delta.parent.offset == 5


def test_memory_is_bounded_and_the_attempt_used_last_stays() -> None:
    size = len(turn(0).request or "") + len(turn(0).prompt_token_ids or b"") + 8
    parents = Parents(2 * size)
    for index in range(3):
        parents.remember(turn(0, index), Delivery(0, index), 0)
    assert [parents.shorten(turn(1, index))[0].parent is not None for index in range(3)] == [
        False,
        True,
        True,
    ]


def test_a_link_that_is_a_day_old_is_no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = Parents(1 << 20)
    parents.remember(turn(0), Delivery(0, 0), 0)
    monkeypatch.setattr(module, "_FRESH_S", 0)
    assert parents.shorten(turn(1))[0].parent is None
