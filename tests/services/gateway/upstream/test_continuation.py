"""Recorded tokens and a rendering of the same conversation, put together; and what a call does
while the store does not answer.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.identity import store_patience
from services.gateway.identity.store import MemoryStore
from services.gateway.upstream.continuation import joined
from tests.services.gateway.answering import running

END = 0
turns = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=2, max_size=6)


def flat(said: list[list[int]]) -> list[int]:
    return [token for turn in said for token in (*turn, END)]


@pytest.mark.parametrize(
    ("recorded", "rendered", "expected"),
    [
        # The answer was 7 8 and reads as 78.
        ([1, 2, 0, 7, 8, 0], [1, 2, 0, 78, 0, 5, 0, 6], [1, 2, 0, 7, 8, 0, 5, 0, 6]),
        # A template that drops what was thought.
        ([1, 0, 4, 4, 7, 0], [1, 0, 7, 0, 5, 6], [1, 0, 4, 4, 7, 0, 5, 6]),
        # The rendering has it already.
        ([1, 0, 7, 0], [1, 0, 7, 0, 5], None),
        # Other instructions.
        ([1, 0, 7, 0], [2, 0, 7, 7, 0, 5], None),
        # Fewer turns.
        ([1, 0, 7, 0, 5, 0, 7, 0], [1, 0, 7, 0, 5, 0], None),
        # Nothing follows.
        ([1, 0, 7, 8, 0], [1, 0, 78, 0], None),
    ],
)
def test_what_goes_together(
    recorded: list[int], rendered: list[int], expected: list[int] | None
) -> None:
    assert joined(recorded, rendered) == expected


@given(turns, turns, st.lists(st.integers(1, 9), min_size=1))
def test_the_recorded_tokens_come_first_and_the_new_turns_last(
    past: list[list[int]], new: list[list[int]], answer: list[int]
) -> None:
    """Whatever the rendering makes of the answers, the messages that follow are those of the
    rendering.
    """
    recorded, suffix = flat([*past, answer]), [*flat(new), 3]
    retokenised = [past[0], *([99] for _ in past[1:]), [99]]
    assert joined(recorded, flat(retokenised) + suffix) == recorded + suffix


async def test_no_call_waits_for_long_for_a_store_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def hang(_store: MemoryStore, key: str, *_: object) -> None:
        asked.append(key.partition(":")[0])
        await asyncio.Event().wait()

    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": "stop",
        "token_ids": [7, 2],
    }
    answer = json.dumps({"id": "u", "prompt_token_ids": [1], "choices": [choice]}).encode()
    first: list[Any] = [{"role": "user", "content": "hello"}]
    second = [*first, choice["message"], {"role": "user", "content": "and?"}]
    async with (
        running(tmp_path, continue_tokens="oddv", infer_conversations=False) as gateway,
        asyncio.timeout(20),
    ):
        monkeypatch.setattr(store_patience, "_PATIENCE_S", 0.01)
        monkeypatch.setattr(store_patience, "_REST_S", 0.0)
        monkeypatch.setattr(MemoryStore, "get", hang)
        monkeypatch.setattr(MemoryStore, "put", hang)
        for messages in (first, second):
            found = await gateway.answer(
                "/v1/chat/completions", [answer], model="oddv", messages=messages
            )
            assert found.status == 200
    assert asked == ["tokens"] * 3
