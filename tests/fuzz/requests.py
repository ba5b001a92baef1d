"""Requests of every kind, sound and broken, to every route: no 5xx of ours, and each call with a
known key is exactly one event.

`python -m tests.fuzz.requests [--inputs 100000] [--seed 0]` makes them from a seed, prints what was
answered, and ends with 1 and the request at the first that was not answered as it should be.
`tests/services/gateway/test_any_request.py` runs a few of them in the suite.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import cramjam

from services.gateway.http.openapi import MODEL_APIS
from services.gateway.identity.claims import Claims
from services.gateway.identity.keys import AGENT_SCOPES, KeyRing
from tests.fuzz.gateway import ADMIN, PLAIN, SIGNING, Answer, InProcess, in_process

EXAMPLES: dict[str, dict[str, Any]] = {
    path: operations["post"]["requestBody"]["content"]["application/json"]["example"]
    for path, operations in MODEL_APIS.items()
    if "post" in operations
}
INSERTED = (
    b"\\ud83c",
    b"\\udf0d",
    b"\xff",
    b"\xed\xa0\xbc",
    b"\x00",
    b"NaN",
    b"1e400",
    b"9" * 5000,
)
SQUEEZED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "zstd": lambda data: bytes(cramjam.zstd.compress(data)),
}
VALUES = (
    " ",
    "é" * 3,
    "x" * 5000,
    "0" * 5000 + "5",
    "9" * 30,
    "-1",
    "text/plain",
    "00-aa-bb-01",
    "1",
    "ÿ",
    "ro_x",
    "",
)
REST = (
    "/v1/rollouts",
    "/v1/rollouts/{rollout}/attempts",
    "/v1/rollouts/{rollout}/status",
    "/v1/rewards",
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1.0, 0.5, 1e300, 2**31, 2**31 - 1, 2**63, 2**64, -(2**70), "", "0", "1", "1.5", "nan", "inf", "true",
    "policy", "x" * 300, "\u0000", "🌍", "é", [], {}, [[]], [None], [1, "a"], {"a": None}, {"type": "text", "text": "hi"},
    [["x"] * 20] * 20,
)  # fmt: skip
FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "n", "max_tokens", "max_completion_tokens", "max_output_tokens", "seed", "logprobs",
    "top_logprobs", "stream", "stream_options", "tools", "tool_choice", "response_format", "logit_bias", "stop", "metadata", "user",
    "min_tokens", "use_beam_search", "return_token_ids", "echo", "previous_response_id", "conversation", "store", "background", "thread",
    "container", "context_management", "structured_outputs", "presence_penalty", "messages", "input", "prompt", "model", "system", "text",
    "kv_transfer_params", "safety_identifier", "output_config", "best_of", "suffix", "task", "mode", "deadline_s", "reward_weights",
    "expected_rewards", "credit_rule", "max_attempts", "agent", "attempt", "kind", "failure", "message", "exit_code", "will_retry", "value",
    "name", "final", "choice", "rollout_id", "completion_id", "deadline",
)  # fmt: skip


class Keys(NamedTuple):
    """A declared rollout, and who may do what."""

    rollout: str
    by_kind: dict[str, str]
    """Of whose calls it is known whose they are."""
    unknown: tuple[str, ...]


class Request(NamedTuple):
    """One input."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    pieces: int
    known: bool
    """Whether it is a call of somebody whose key is known."""


async def declared(gateway: InProcess) -> Keys:
    """A group to ask about."""
    answer = await gateway.ask(
        "POST",
        "/v1/rollouts",
        [("authorization", f"Bearer {ADMIN}")],
        b'{"n": 1, "max_attempts": 5}',
    )
    [rollout] = answer.json()["rollouts"]
    expired = Claims(
        rollout["rollout_id"],
        0,
        answer.json()["group_id"],
        "",
        answer.json()["mode"],
        AGENT_SCOPES,
        1,
    )
    kinds = {
        "plain": PLAIN,
        "admin": ADMIN,
        "agent": rollout["api_key"],
        "reward": rollout["reward_key"],
    }
    kinds["expired"] = KeyRing.parse(SIGNING).mint(expired)
    return Keys(
        rollout["rollout_id"], kinds, ("", "nobody", "fg-k1.x.y", rollout["api_key"][:-1], "é")
    )


def any_request(rng: Random, keys: Keys) -> Request:
    """One that makes sense, more or less."""
    called = rng.random() < 0.75
    template = rng.choice(sorted(EXAMPLES)) if called else rng.choice(REST)
    path = template.replace(
        "{rollout}", rng.choice((keys.rollout, "ro_x", "é\n", "%00", "x" * 300))
    )
    if called and rng.random() < 0.3:
        name, role = (
            rng.choice((keys.rollout, "ro_x", "ro_", "s", " ", "é", "x" * 300, "\n", "..")),
            rng.choice(("a", "x" * 300, "é")),
        )
        path = (
            rng.choice((f"/rollouts/{name}", f"/agents/{role}", f"/rollouts/{name}/agents/{role}"))
            + path
        )
    kind = rng.choice(sorted(keys.by_kind))
    known = rng.random() < 0.9
    key = keys.by_kind[kind] if known else rng.choice(keys.unknown)
    headers = [("authorization", f"Bearer {key}")] if rng.random() < 0.9 else [("x-api-key", key)]
    example = EXAMPLES[template] if called else _rest_example(rng, template, keys)
    body = _body(rng, example)
    if rng.random() < 0.15:
        body, encoding = _encoded(rng, body)
        headers.append(("content-encoding", encoding))
    if rng.random() < 0.3:
        headers += [_header(rng, keys) for _ in range(rng.randint(1, 3))]
    return Request("POST", path, headers, body, rng.choice((1, 1, 1, 2, 5)), known and called)


def _rest_example(rng: Random, template: str, keys: Keys) -> dict[str, Any]:
    if template.endswith("/status"):
        return {"kind": rng.choice(("started", "heartbeat", "failed", "finished")), "message": "x"}
    if template.endswith("/rewards"):
        return {"rollout_id": keys.rollout, "name": "exact", "value": 1, "metadata": {"a": [1.5]}}
    return (
        {"attempt": 1}
        if template.endswith("/attempts")
        else {"n": 1, "task": {"a": 1}, "mode": "val"}
    )


def _body(rng: Random, example: dict[str, Any]) -> bytes:
    """Sound, with odd values, or broken in its bytes."""
    value = json.loads(json.dumps(example))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        _change(rng, value)
    raw = json.dumps(
        value, ensure_ascii=rng.random() < 0.5, separators=rng.choice(((",", ":"), (", ", ": ")))
    ).encode()
    return raw if rng.random() < 0.6 else _broken(rng, raw)


def _change(rng: Random, value: dict[str, Any]) -> None:
    if rng.random() < 0.6:
        value[rng.choice(FIELDS)] = deepcopy(rng.choice(ODD))
        return
    holder: Any = value
    while places := _places(holder):
        place = rng.choice(places)
        if not isinstance(holder[place], dict | list) or rng.random() < 0.3:
            holder[place] = deepcopy(rng.choice(ODD))
            return
        holder = holder[place]


def _places(holder: Any) -> list[Any]:
    """Keys of an object, indices of an array."""
    return (
        list(cast("dict[str, Any]", holder))
        if isinstance(holder, dict)
        else list(range(len(cast("list[Any]", holder))))
    )


def _broken(rng: Random, raw: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    depth = rng.choice((5, 127, 128, 129, 500, 1000, 5000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nested = opened * depth + b"1" + closed * depth
    return rng.choice(
        (
            lambda: raw[:at],
            lambda: (
                raw[:at] + bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 4))) + raw[at:]
            ),
            lambda: bytes(rng.randint(0, 255) for _ in range(rng.randint(0, 40))),
            lambda: (
                raw[:at]
                + rng.choice(
                    (
                        b"\\ud83c",
                        b"\\udf0d",
                        b"\xff",
                        b"\xed\xa0\xbc",
                        b"\x00",
                        b"NaN",
                        b"1e400",
                        b"9" * 5000,
                    )
                )
                + raw[at:]
            ),
            lambda: raw.replace(
                b"hi", rng.choice((b"\\ud83c", b"\xff", b"\\udf0d\\ud83c", b"\\u0000"))
            ),
            lambda: b"\xef\xbb\xbf" + raw,
            lambda: raw.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-le"))),
            lambda: raw.replace(b'"messages"', b'"messages":' + nested + b',"x"', 1).replace(
                b'"task"', b'"task":' + nested + b',"x"', 1
            ),
            lambda: nested,
            lambda: b"[" + b"[]," * rng.choice((10, 999, 1001, 3000)) + b"0]",
            lambda: raw + b" " * rng.choice((1, 16_000, 70_000)),
            lambda: b"",
        )
    )()


def _encoded(rng: Random, body: bytes) -> tuple[bytes, str]:
    encoding = rng.choice(("gzip", "deflate", "zstd", "identity", "br", "gzip, gzip", "é", "GZIP"))
    if rng.random() < 0.1:
        body = bytes(1_000_000)
    data: bytes = SQUEEZED[encoding](body) if encoding in SQUEEZED and rng.random() < 0.8 else body
    return (data if rng.random() < 0.8 else data[: rng.randint(0, len(data))]), encoding


def _header(rng: Random, keys: Keys) -> tuple[str, str]:
    name = rng.choice(
        (
            "x-fulgurite-rollout", "x-fulgurite-agent", "x-fulgurite-subject", "traceparent", "idempotency-key", "content-type",
            "content-length", "x-stainless-retry-count", "accept-encoding", "expect", "x-fulgurite-keep-alive", "authorization",
        )
    )  # fmt: skip
    if name == "authorization":
        name = "x-authorization"
    value = rng.choice((keys.rollout, *VALUES))
    return name, value


def wrong_with(request: Request, answer: Answer, events: int, named: bool) -> str | None:
    """What is not as it should be."""
    if answer.status >= 500:
        return "a 5xx of ours"
    if events != int(request.known):
        return f"{events} events of this call"
    if request.known and not named:
        return "the reply does not name the event's rollout"
    if answer.status >= 400:
        error = answer.json()["error"]
        if not error["message"] or len(error["message"]) > 6000:
            return "an error without words, or with too many"
        if answer.headers["content-type"] != "application/json":
            return "an error that is no JSON"
    return None


async def check(gateway: InProcess, request: Request) -> Answer:
    """Ask, and raise AssertionError if the answer or the log is not as it should be."""
    gateway.log.log.clear()
    answer = await gateway.ask(*request[:5])
    calls = gateway.calls()
    named = bool(calls) and answer.headers.get("x-fulgurite-rollout-id") == calls[-1].rollout_id
    wrong = wrong_with(request, answer, len(calls), named)
    assert wrong is None, f"{wrong}: {answer.status} {answer.body[:500]!r} for {request}"
    return answer


async def run(inputs: int, seed: int) -> Counter[int]:
    """Answers by status."""
    counted: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        async with in_process(Path(folder)) as gateway:
            keys = await declared(gateway)
            for number in range(inputs):
                counted[
                    (
                        await check(
                            gateway, any_request(Random(seed * 1_000_000_007 + number), keys)
                        )
                    ).status
                ] += 1
    return counted


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begun = time.monotonic()
    try:
        counted = asyncio.run(run(asked.inputs, asked.seed))
    except AssertionError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(counted.items()))
    sys.stdout.write(
        f"{counted.total()} requests in {time.monotonic() - begun:.0f} s, seed {asked.seed}. "
        f"By status: {statuses}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
