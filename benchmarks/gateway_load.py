"""Load: so many connections, each with one request at a time (closed loop), or requests at a rate
whatever becomes of them (open loop).

A process of its own on raw sockets, so that it costs little beside what it measures. Prints one
JSON object: how many were answered and how many were not, chunks, seconds, latencies (ms; in the
open loop from the moment a request was due).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import deque
from functools import partial
from itertools import cycle
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from services.gateway.dialects.packed import IN_BODY, asking

_WORDS = (
    "the quick brown fox jumps over a lazy dog while seven wizards quietly make toxic brew from "
    "jade and onyx "
)

_VARIANTS = 8
"""Other tasks for the same rollout: what is alike, the log stores once, and that would flatter."""


def body(given: argparse.Namespace, variant: int) -> bytes:
    """A chat request; about four characters of text a token."""
    size = given.prompt_tokens * 4
    text = (f"Task {variant}: " + _WORDS * (size // len(_WORDS) + 1))[:size]
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    request: dict[str, Any] = {
        "model": given.model,
        "messages": messages,
        "temperature": 1.0,
        "max_tokens": given.max_tokens,
    }
    if given.stream:
        request["stream"] = True
    if given.ignore_eos:
        request["ignore_eos"] = True
    if given.logprobs or given.packed:
        # Last and without spaces, as the gateway writes them: so our plug-in finds them.
        request |= IN_BODY
    return json.dumps(request, separators=(",", ":")).encode()


class Tally:
    """What came of the requests."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self.chunks = 0
        self.latencies: list[float] = []
        self.firsts: list[float] = []

    def result(self, seconds: float) -> dict[str, Any]:
        """For printing."""
        told: dict[str, Any] = {
            "done": self.done,
            "failed": self.failed,
            "chunks": self.chunks,
            "seconds": seconds,
        }
        for name, values in (("latency_ms", self.latencies), ("first_ms", self.firsts)):
            ordered = sorted(values) or [0.0]
            told[name] = {
                f"p{p:g}": round(
                    1000 * ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))], 3
                )
                for p in (50, 90, 99, 99.9)
            }
        return told


class Connection(asyncio.Protocol):
    """Sends a request, reads the answer to its end, says so."""

    def __init__(self, tally: Tally, requests: list[bytes]) -> None:
        self._tally = tally
        self._requests = cycle(requests)
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._begun = 0.0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """A request on its way has failed."""
        self._transport = None
        if self._done is not None and not self._done.done():
            self._tally.failed += 1
            self._done.set_result(None)

    async def ask(self, due: float) -> None:
        """One request."""
        self._done = asyncio.get_running_loop().create_future()
        self._begun, self._pieces = due, []
        if self._transport is None:
            self._tally.failed += 1
            await asyncio.sleep(0.01)
            return
        self._transport.write(next(self._requests))
        await self._done

    def data_received(self, data: bytes) -> None:
        """Until the answer is whole."""
        if not self._pieces:
            self._tally.firsts.append(time.perf_counter() - self._begun)
        self._pieces.append(data)
        if data.endswith(b"0\r\n\r\n") or len(self._pieces) == 1 or not self._streamed:
            self._look()

    _streamed = False

    def _look(self) -> None:
        answer = b"".join(self._pieces)
        end = answer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = answer[:end].lower()
        at = head.find(b"content-length:")
        self._streamed = at < 0
        whole = (
            answer.endswith(b"0\r\n\r\n")
            if at < 0
            else len(answer) >= end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        )
        if whole:
            self._end(answer)

    def _end(self, answer: bytes) -> None:
        tally = self._tally
        if answer.startswith(b"HTTP/1.1 200") and b'data: {"error"' not in answer:
            tally.done += 1
            tally.chunks += answer.count(b"data: {")
            tally.latencies.append(time.perf_counter() - self._begun)
        else:
            tally.failed += 1
        if self._done is not None:
            self._done.set_result(None)


async def _connect(url: str, tally: Tally, requests: list[bytes], count: int) -> list[Connection]:
    loop, parts = asyncio.get_running_loop(), urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    made: list[Connection] = []
    for number in range(count):
        # Each connection has rollouts of its own, and takes one after the other.
        own = requests[number::count] or requests
        _, connection = await loop.create_connection(partial(Connection, tally, own), host, port)
        made.append(connection)
    return made


async def closed(connections: list[Connection], seconds: float, requests: int) -> None:
    """Each connection asks again as soon as it has its answer."""
    left, end = requests, time.perf_counter() + seconds

    async def worker(connection: Connection) -> None:
        nonlocal left
        while (now := time.perf_counter()) < end and left > 0:
            left -= 1
            await connection.ask(now)

    await asyncio.gather(*(worker(connection) for connection in connections))


async def opened(connections: list[Connection], seconds: float, rate: float) -> None:
    """A request is due every 1/rate seconds; it waits for a free connection if it must, and that
    counts.
    """
    free, running, begun = deque(connections), set[asyncio.Task[None]](), time.perf_counter()

    async def one(due: float) -> None:
        while not free:  # noqa: ASYNC110 - overload: no need to be fair
            await asyncio.sleep(0.001)
        connection = free.popleft()
        await connection.ask(due)
        free.append(connection)

    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


def _request(path: str, key: str, payload: bytes, *, packed: bool) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: "
        "application/json\r\n"
    )
    if packed:
        head += "".join(f"{name}: {value}\r\n" for name, value in asking(instead=True).items())
    return f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload


async def _run(given: argparse.Namespace) -> None:
    tally, payloads = Tally(), [body(given, variant) for variant in range(_VARIANTS)]
    path = urlsplit(str(given.url)).path
    keys = os.environ.get("KEYS", "a-plain-key").split(",")
    requests = [
        _request(path, key, payload, packed=given.packed) for payload in payloads for key in keys
    ]
    connections = await _connect(given.url, tally, requests, given.connections)
    begun = time.perf_counter()
    if given.rate:
        await opened(connections, given.seconds, given.rate)
    else:
        await closed(connections, given.seconds, given.requests)
    print(json.dumps(tally.result(time.perf_counter() - begun)), flush=True)


def main() -> None:
    """Arguments, and the keys in KEYS, → one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--model", default="policy")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--requests", type=int, default=1 << 40)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument(
        "--logprobs", action="store_true", help="ask for what the gateway asks vLLM for"
    )
    parser.add_argument(
        "--packed", action="store_true", help="ask our vLLM plug-in for the same, packed"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="answers of --max-tokens exactly")
    uvloop.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
