"""Fuzz the gateway with broken answers of upstreams: `python -m tests.fuzz.answers --inputs 100000
--seed 1`.

Each input is a valid answer with some mutations, of its bytes or of its JSON, in pieces, streamed
or whole, of each API. It must end as one reply with one event that its schema takes: without an
exception or a hang, with an error in the API's shape if and only if the event says so, and without
tokens if a part of it was not understood. Prints each input that does not, and exits 1 if there was
any.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import structlog

from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall
from tests.services.gateway.answering import Answer, Gateway, running
from tests.services.gateway.valid_answers import ASKED, Valid, pieces_of, valid_answer

HANGS_S = 20.0
DEEP = "[" * 3000 + "]" * 3000
_BYTES = [
    b"\xff",
    b"\xe9",
    b"\xed\xa0\xbc",
    b"\x00",
    b"\r",
    b"\n\n",
    b"\\ud83c",
    b'"',
    b"{",
    b"}",
    b"[",
    b": ",
    b"data: ",
    b"event: error\n",
]
_BYTES.extend(
    [
        b": fulgurite-tokens 0 - AQAAAA== AAAAvw==\n\n",
        b": fulgurite-tokens 1 x y z\n\n",
        b": fulgurite-version \xff\n\n",
        DEEP.encode(),
    ]
)
_ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**40,
    2**70,
    10**400,
    float("nan"),
    float("-inf"),
    "",
    "a",
    "\ud83c",
    "\udf0d",
    "0",
]
_ODD.extend(
    [
        [],
        [None],
        {},
        {"a": []},
        [[1]],
        ["a"],
        [2**40],
        [1.5],
        [-5],
        "[DONE]",
        {"message": "\ud83c"},
        DEEP,
    ]
)
_NAMES = [
    "index",
    "token_ids",
    "logprobs",
    "tool_calls",
    "usage",
    "error",
    "finish_reason",
    "stop_reason",
    "delta",
    "message",
    "choices",
]
_NAMES.extend(
    [
        "prompt_token_ids",
        "content",
        "output",
        "output_index",
        "type",
        "id",
        "model",
        "role",
        "fulgurite_tokens",
        "response",
        "status",
    ]
)


def _change_bytes(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    end = min(len(data), at + random.choice([0, 0, 1, 10, 200]))
    return data[:at] + random.choice(_BYTES) + data[end:]


def _cut_out(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + data[min(len(data), at + random.choice([1, 5, 100])) :]


def _repeat(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    end = min(len(data), at + random.choice([1, 10, 300]))
    return data[:end] + data[at:end] + data[end:]


def _change_value(random: Random, data: bytes) -> bytes:
    """One value of one JSON text."""
    start = data.find(b"data: ", random.randint(0, len(data)))
    start, end = (start + 6, data.find(b"\n", start)) if start >= 0 else (0, len(data))
    try:
        value = json.loads(data[start:end])
    except (ValueError, RecursionError):
        return _change_bytes(random, data)
    _change_inside(random, value)
    return data[:start] + json.dumps(value).encode("utf-8", "surrogatepass") + data[end:]


def _change_inside(random: Random, value: Any) -> None:
    while True:
        inner: list[Any] = [one for one in _values(value) if isinstance(one, dict | list) and one]
        if not inner or random.random() < 0.3:
            break
        value = random.choice(inner)
    odd = random.choice(_ODD)
    if isinstance(value, list) and value:
        value[random.randrange(len(cast("list[Any]", value)))] = odd
    elif isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        fields[random.choice([*fields, *_NAMES])] = odd


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


_MUTATIONS: list[Callable[[Random, bytes], bytes]] = [
    _change_value,
    _change_value,
    _change_value,
    _change_bytes,
    _cut_out,
    _repeat,
]
_VERSIONS = [
    {},
    {"x-fulgurite-version": "policy@1.2"},
    {"x-fulgurite-version": "\u00ff", "content-type": "application/json"},
]


class Input(msgspec.Struct):
    """What an upstream sends."""

    valid: Valid
    stream: bool
    pieces: list[bytes]
    headers: dict[str, str]


def make_input(random: Random) -> Input:
    """A mutated answer."""
    valid, stream = valid_answer(random), random.random() < 0.75
    data = valid.stream if stream else valid.whole
    for _ in range(random.choice([1, 1, 2, 4])):
        data = random.choice(_MUTATIONS)(random, data)
    if random.random() < 0.2:
        data = data.replace(b"\n", random.choice([b"\r\n", b"\r"]))
    headers = random.choice(_VERSIONS) if random.random() < 0.1 else {}
    valid.alias = random.choice(["odd", "oddv"])
    return Input(valid, stream, pieces_of(random, data), headers)


def fault_of(answer: Answer, unread: float) -> str | None:
    """What is wrong with what came of an input."""
    if len(answer.calls) != 1:
        return f"{len(answer.calls)} events"
    call = answer.calls[0]
    if call.outcome not in (CallOutcome.success, CallOutcome.upstream_error):
        return f"outcome {call.outcome.value}: {call.error}"
    if unread and _has_tokens(call):
        return "tokens of an answer that was not understood"
    if _ends_with_error(answer) is (call.outcome is CallOutcome.success):
        return f"{call.outcome.value}, but the agent got {answer.body[-300:]!r}"
    return None


def _has_tokens(call: LlmCall) -> bool:
    return call.prompt_token_ids is not None or any(
        choice.token_ids is not None for choice in call.choices
    )


def _ends_with_error(answer: Answer) -> bool:
    if answer.status != 200:
        return bool(json.loads(answer.body)["error"]["message"])
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return False
    last = answer.body.decode("utf-8", "replace").strip("\n").split("\n\n")[-1].split("\n")[-1]
    try:
        said = json.loads(last.removeprefix("data: "))
    except (ValueError, RecursionError):
        return False
    fields = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    return fields.get("type") == "error" or ("type" not in fields and bool(fields.get("error")))


async def try_input(gateway: Gateway, given: Input, ended: collections.Counter[str]) -> str | None:
    """What is wrong with what the gateway makes of it; how it ended is counted."""
    before = gateway.unread()
    try:
        path, request = given.valid.path, {"model": given.valid.alias, "stream": given.stream}
        asked = gateway.answer(path, given.pieces, headers=given.headers, **request, **ASKED[path])
        answer = await asyncio.wait_for(asked, HANGS_S)
    except Exception as error:  # noqa: BLE001 - the gateway raises nothing, whatever it is sent
        return f"{type(error).__name__}: {error}"
    unread = gateway.unread() - before
    ended[answer.calls[0].outcome.value if answer.calls else "without an event"] += 1
    ended["not understood in all parts"] += 1 if unread else 0
    return fault_of(answer, unread)


async def fuzz(inputs: int, seed: int, folder: Path) -> int:
    """How many inputs went wrong."""
    faults, ended = collections.Counter[str](), collections.Counter[str]()
    async with running(folder) as gateway:
        for number in range(inputs):
            given = make_input(Random(f"{seed}/{number}"))
            fault = await try_input(gateway, given, ended)
            if fault is not None:
                faults[fault[:60]] += 1
                if faults[fault[:60]] <= 3:
                    print(
                        f"input {number} of seed {seed}, {given.valid.path}: {fault}\n  "
                        f"{b''.join(given.pieces)!r:.2000}",
                        flush=True,
                    )
            gateway.forget()
            if (number + 1) % 10_000 == 0:
                print(f"{number + 1:,} inputs, {faults.total():,} faults", flush=True)
    print(", ".join(f"{count:,} {how}" for how, count in sorted(ended.items())))
    return faults.total()


def main(arguments: list[str] | None = None) -> int:
    """The process's exit code."""
    parser = argparse.ArgumentParser(
        description="Fuzz the gateway with broken answers of upstreams."
    )
    parser.add_argument(
        "--inputs",
        type=int,
        default=10_000,
        help="mutated answers to try (default 10,000: some 20 s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed makes other inputs (default 1)"
    )
    asked = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder:
        faults = asyncio.run(fuzz(asked.inputs, asked.seed, Path(folder)))
    print(f"{asked.inputs:,} inputs of seed {asked.seed}: {faults:,} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
