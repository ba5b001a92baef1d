"""Conversations as calls, and their deltas as a gateway writes them."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec

from fulgurite.calls.deltas import Link, link_of, restore, shorten
from fulgurite.events import LlmCall
from fulgurite.tokens import prompt_hash
from tests.synthetic import make_call

Json = dict[str, Any]
REPLACE = msgspec.structs.replace


def conversation(turns: int, *, spice: int = 0, rewrite_every: int = 0) -> list[LlmCall]:
    """Calls that extend one another, with tools; now and then an agent forgets its past."""
    chance = random.Random(spice)
    tools = [
        {"type": "function", "function": {"name": f"tool_{n}", "description": "ä" * 100}}
        for n in range(5)
    ]
    messages: list[Json] = [{"role": "system", "content": "Be brief. " * 30}]
    prompt = list(range(300))
    calls: list[LlmCall] = []
    for turn in range(turns):
        if rewrite_every and turn % rewrite_every == rewrite_every - 1:
            messages, prompt = messages[:1], prompt[:200]
        messages = [
            *messages,
            {"role": "user", "content": f"question {turn} ☃ " * chance.randint(1, 20)},
        ]
        prompt = [*prompt, *(chance.randrange(50_000) for _ in range(chance.randint(1, 200)))]
        answer = [chance.randrange(50_000) for _ in range(chance.randint(1, 100))]
        said: Json = {"role": "assistant", "content": f"answer {turn}"}
        call = make_call(
            turn=turn, at=1_000 + turn, prompt=prompt, answers=[answer], replies=[said], salt=spice
        )
        body = json.dumps(
            {"messages": messages, "model": "policy", "tools": tools},
            ensure_ascii=bool(turn % 7 == 6),
        )
        calls.append(
            REPLACE(call, request=body, prompt_hash=prompt_hash(call.prompt_token_ids or b""))
        )
        messages = [*messages, said]
        prompt = [*prompt, *answer, 5]
    return calls


def logged(calls: list[LlmCall]) -> list[LlmCall]:
    """As a gateway writes them, one after the other, in partition 3."""
    links: list[Link] = []
    written: list[LlmCall] = []
    for offset, call in enumerate(calls):
        delta, depth = shorten(call, links[-4:])
        written.append(delta)
        links.append(link_of(call, 3, offset, depth))
    return written


def read(written: list[LlmCall]) -> list[LlmCall]:
    """As a reader of that partition restores them."""
    whole: list[LlmCall] = []
    for call in written:
        whole.append(restore(call, whole[call.parent.offset]) if call.parent else call)
    return whole
