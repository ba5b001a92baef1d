"""Places at a backend, and the limits of a key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.errors import Overloaded, RateLimited
from services.gateway.http.error_responses import error_headers
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics
from services.gateway.upstream.admission import Admission, Allowance, Gate, KeyLimits


@asynccontextmanager
async def place(gate: Gate, key: str) -> AsyncGenerator[None]:
    """Hold a place of the gate."""
    await gate.enter(key)
    try:
        yield
    finally:
        gate.leave(key)


class Crowd:
    """Calls that each hold a place until they are let go, and the order in which they got it."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.order: list[str] = []
        self.release = asyncio.Semaphore(0)

    async def call(self, key: str) -> str:
        async with place(self.gate, key):
            self.order.append(key)
            await self.release.acquire()
        return key

    async def start(self, *keys: str) -> list[asyncio.Task[str]]:
        tasks: list[asyncio.Task[str]] = []
        for key in keys:
            tasks.append(asyncio.create_task(self.call(key)))
            await settled()
        return tasks

    async def let_go(self, count: int = 1) -> None:
        for _ in range(count):
            self.release.release()
            await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_greedy_key_does_not_starve_another() -> None:
    crowd = Crowd(Gate("b", 2, 1000, 60))
    tasks = await crowd.start(*["greedy"] * 200, "modest", "modest")
    assert (crowd.gate.in_flight, crowd.gate.waiting) == (2, 200)
    await crowd.let_go(5)
    assert crowd.order == ["greedy", "greedy", "greedy", "modest", "greedy", "modest", "greedy"]
    await crowd.let_go(197)
    await asyncio.gather(*tasks)
    assert (crowd.gate.in_flight, crowd.gate.waiting) == (0, 0)


async def test_a_key_leaves_places_for_others() -> None:
    crowd = Crowd(Gate("b", 4, 1000, 60, key_share=0.9))
    tasks = await crowd.start(*["greedy"] * 6, "modest")
    assert crowd.order == ["greedy", "greedy", "greedy", "modest"], (
        "one place is kept free, and the newcomer does not queue for it"
    )
    assert (crowd.gate.in_flight, crowd.gate.waiting) == (4, 3)
    await crowd.let_go(4)
    await crowd.let_go(3)
    await asyncio.gather(*tasks)
    assert (crowd.gate.in_flight, crowd.gate.waiting, len(crowd.order)) == (0, 0, 7)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(("begin", "end", "give up"))), max_size=60
    ),
    st.integers(1, 5),
    st.sampled_from((0.1, 0.5, 0.9, 1.0)),
)
@settings(max_examples=60, deadline=None)
def test_shares_are_kept_and_no_place_is_lost(
    steps: list[tuple[str, str]], places: int, share: float
) -> None:
    asyncio.run(_play(steps, places, share))


async def _play(steps: list[tuple[str, str]], places: int, share: float) -> None:
    gate, most = Gate("b", places, 1000, 60, share), max(1, int(places * share))
    ends: dict[asyncio.Task[None], asyncio.Event] = {}
    keys: dict[asyncio.Task[None], str] = {}
    inside: list[str] = []

    async def call(key: str, end: asyncio.Event) -> None:
        async with place(gate, key):
            inside.append(key)
            try:
                await end.wait()
            finally:
                inside.remove(key)

    for key, step in steps:
        mine = [task for task in ends if keys[task] == key and not task.done()]
        if step == "begin":
            end = asyncio.Event()
            task = asyncio.create_task(call(key, end))
            ends[task], keys[task] = end, key
        elif mine and step == "end":
            ends[mine[0]].set()
        elif mine:
            mine[-1].cancel()
        await settled()
        alive = [keys[task] for task in ends if not task.done() and not ends[task].is_set()]
        held = {other: inside.count(other) for other in "abc"}
        assert max(held.values()) <= most
        assert gate.in_flight == len(inside) <= places
        idle = [other for other in "abc" if held[other] < min(most, alive.count(other))]
        assert len(inside) == places or not idle, (
            "a place is free, and a key waits that may have it"
        )
    for end in ends.values():
        end.set()
    await asyncio.gather(*ends, return_exceptions=True)
    assert (gate.in_flight, gate.waiting) == (0, 0)


async def test_who_leaves_while_waiting_leaves_the_queue() -> None:
    crowd = Crowd(Gate("b", 1, 10, 60))
    first, second, third = await crowd.start("a", "b", "c")
    second.cancel()
    await settled()
    assert crowd.gate.waiting == 1
    await crowd.let_go(2)
    await asyncio.gather(first, third)
    assert crowd.order == ["a", "c"]
    assert crowd.gate.in_flight == 0


async def test_a_place_given_to_someone_who_leaves_at_that_moment_is_given_on() -> None:
    crowd = Crowd(Gate("b", 1, 10, 60))
    first, second, third = await crowd.start("a", "b", "c")
    crowd.release.release()
    await first
    second.cancel()
    await settled()
    assert crowd.order == ["a", "c"] or crowd.order == ["a", "b", "c"]
    await crowd.let_go(2)
    await asyncio.gather(second, third, return_exceptions=True)
    assert (crowd.gate.in_flight, crowd.gate.waiting) == (0, 0)


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    crowd = Crowd(Gate("b", 1, 1, 60))
    tasks = await crowd.start("a", "a")
    with pytest.raises(Overloaded) as caught:
        await crowd.call("a")
    headers = error_headers(caught.value)
    assert 1 <= int(headers["retry-after"]) <= 2
    assert 500 <= int(headers["retry-after-ms"]) <= 1500
    await crowd.let_go(2)
    await asyncio.gather(*tasks)


async def test_the_greediest_gives_way_to_a_newcomer() -> None:
    crowd = Crowd(Gate("b", 1, 2, 60))
    tasks = await crowd.start("a", "a", "a", "b")
    with pytest.raises(Overloaded):
        await tasks[2]
    await crowd.let_go(3)
    assert crowd.order == ["a", "a", "b"]


async def test_waiting_has_an_end() -> None:
    crowd = Crowd(Gate("b", 1, 10, 0.01))
    [first] = await crowd.start("a")
    with pytest.raises(Overloaded, match="within"):
        await crowd.call("b")
    await crowd.let_go()
    await first
    assert (crowd.gate.in_flight, crowd.gate.waiting) == (0, 0)


def test_a_key_has_so_many_calls_at_once() -> None:
    limits = KeyLimits(2, 0)
    with limits.hold("a"), limits.hold("a"):
        with pytest.raises(RateLimited), limits.hold("a"):
            pass
        with limits.hold("b"):
            pass
    with limits.hold("a"):
        pass


def test_a_key_begins_so_many_calls_a_minute() -> None:
    now = [0.0]
    limits = KeyLimits(0, 60, lambda: now[0])
    for _ in range(60):
        with limits.hold("a"):
            pass
    with pytest.raises(RateLimited) as caught, limits.hold("a"):
        pass
    assert caught.value.wait_s == pytest.approx(1)
    assert caught.value.status == 429
    now[0] += caught.value.wait_s
    with limits.hold("a"), limits.hold("b"):
        pass


def test_a_key_sends_so_many_bytes_of_large_requests_an_hour() -> None:
    now = [0.0]
    allowance = Allowance(1_000, 3600, "enough", lambda: now[0])
    allowance.spend("a", 600)
    with pytest.raises(RateLimited, match="enough") as caught:
        allowance.spend("a", 600)
    assert caught.value.wait_s == pytest.approx(720)
    allowance.spend("b", 5_000)
    with pytest.raises(RateLimited):
        allowance.spend("b", 1)
    now[0] += caught.value.wait_s
    allowance.spend("a", 600)


def test_small_requests_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_KEY_LARGE_BYTES_PER_HOUR", "100000")
    monkeypatch.setenv("FULGURITE_CLAIM_CHECK_BYTES", "20000")
    admission = Admission(GatewaySettings(), Metrics())  # pyright: ignore[reportCallIssue]
    for _ in range(20):
        admission.size("k", 20_000)
    admission.size("k", 90_000)
    with pytest.raises(RateLimited, match="FULGURITE_KEY_LARGE_BYTES_PER_HOUR"):
        admission.size("k", 20_001)


async def test_every_backend_has_its_own_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_KEY_CONCURRENCY", "1")
    metrics = Metrics()
    admission = Admission(GatewaySettings(), metrics)  # pyright: ignore[reportCallIssue]
    assert admission.gate("a") is admission.gate("a") is not admission.gate("b")
    with admission.key("k"), pytest.raises(RateLimited), admission.key("k"):
        pass
    async with place(admission.gate("a"), "k"):
        assert b'fulgurite_gateway_backend_calls{backend="a"} 1.0' in metrics.render()
    assert b'fulgurite_gateway_backend_calls{backend="a"} 0.0' in metrics.render()
