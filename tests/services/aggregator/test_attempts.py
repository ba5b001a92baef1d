"""What an attempt holds of its calls: each once, and all of them complete when they are asked for."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import msgspec
import pytest

from fulgurite.calls.deltas import link_of, shorten
from fulgurite.enums import Mode
from fulgurite.episodes.episode_deltas import unpack
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import LlmCall
from fulgurite.tokens import pack_ids, prompt_hash
from services.aggregator.attempts import Attempt
from services.common.streaming.worker import AckOrder
from tests.synthetic import make_call, make_declared, make_status


def conversation(turns: int) -> list[LlmCall]:
    """Calls that extend one another, of a kilobyte each."""
    chance = random.Random(0)
    messages = [{"role": "user", "content": chance.randbytes(500).hex()} for _ in range(turns)]
    prompts = [[chance.randrange(1_000) for _ in range(200 * (turn + 1))] for turn in range(turns)]
    for before, after in pairwise(prompts):
        after[: len(before)] = before
    calls = [
        make_call(turn=turn, at=1_000 + turn, prompt=prompt) for turn, prompt in enumerate(prompts)
    ]
    return [
        msgspec.structs.replace(
            call,
            request=json.dumps({"messages": messages[: turn + 1]}),
            prompt_hash=prompt_hash(pack_ids(prompts[turn])),
        )
        for turn, call in enumerate(calls)
    ]


def deltas(calls: list[LlmCall]) -> list[LlmCall]:
    """As a gateway logs them."""
    links = [link_of(call, 0, offset) for offset, call in enumerate(calls)]
    return [shorten(call, links[max(0, turn - 1) : turn])[0] for turn, call in enumerate(calls)]


def take(attempt: Attempt, *pairs: tuple[Input, LlmCall | None]) -> None:
    for event, delta in pairs:
        attempt.take(event, AckOrder().add(lambda: None), delta)


CALLS = conversation(30)
LOGGED = deltas(CALLS)
DONE = make_status(at=5_000)


def held_complete(attempt: Attempt) -> list[Input]:
    return [attempt.complete_call(event_id) or event for event_id, event in attempt.inputs.items()]


def size(attempt: Attempt) -> int:
    return sum(
        len(event.request or "") + len(event.prompt_token_ids or b"")
        for event in attempt.inputs.values()
        if isinstance(event, LlmCall)
    )


def test_a_long_conversation_is_held_once_and_given_complete() -> None:
    attempt = Attempt((DONE.rollout_id or "", 0), DONE.group_id, Mode.train)
    take(attempt, *zip(CALLS, LOGGED, strict=True), (DONE, None))
    last = len(CALLS[-1].request or "") + len(CALLS[-1].prompt_token_ids or b"")
    assert size(attempt) < 1.5 * last
    assert held_complete(attempt) == [*CALLS, DONE]
    assert [attempt.complete_call(call.call_id) for call in CALLS] == CALLS
    assert attempt.complete_call("another") is None


@pytest.mark.parametrize("complete", [0, 1, 12, 30])
def test_a_revision_is_written_as_the_calls_are_held(complete: int) -> None:
    attempt = Attempt((DONE.rollout_id or "", 0), DONE.group_id, Mode.train)
    take(attempt, *zip(CALLS, CALLS[:complete] + LOGGED[complete:], strict=True), (DONE, None))
    episode = attempt.revision(None)
    assert episode is not None
    assert sum(call.parent is None for call in episode.calls) == 1
    assert msgspec.structs.replace(episode, calls=unpack(episode.calls)) == stitch([*CALLS, DONE])
    attempt.written(episode)
    assert attempt.revision(None) is None
    assert attempt.revision(make_declared(0, 1, at=1, deadline=9_000)) is not None


@pytest.mark.parametrize("lost", [0, 7])
def test_a_delta_without_its_parent_at_hand_is_held_complete(lost: int) -> None:
    attempt = Attempt((DONE.rollout_id or "", 0), DONE.group_id, Mode.train)
    pairs = list(zip(CALLS, LOGGED, strict=True))
    take(attempt, *pairs[:lost], *pairs[lost + 1 :])
    kept = [call for call in CALLS if call is not CALLS[lost]]
    assert held_complete(attempt) == kept
    assert attempt.complete_call(CALLS[lost].call_id) is None
    take(attempt, pairs[lost])
    assert held_complete(attempt) == [*kept, CALLS[lost]]


def test_what_comes_again_changes_nothing() -> None:
    attempt = Attempt((DONE.rollout_id or "", 0), DONE.group_id, Mode.train)
    take(attempt, *zip(CALLS, LOGGED, strict=True))
    before = dict(attempt.inputs)
    take(attempt, *zip(CALLS, LOGGED, strict=True))
    assert attempt.inputs == before
    assert held_complete(attempt) == CALLS
