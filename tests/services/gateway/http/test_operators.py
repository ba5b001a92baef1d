"""What operators alone are told where there is a key for them, when a gateway is ready, and how
often readiness asks an upstream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.gateway.http import health_routes
from services.gateway.upstream.policies import PolicyTail
from services.gateway.upstream.prompts import Prompts
from tests.fuzz.gateway import ADMIN, PLAIN, Upstream, in_process

TOPICS: dict[str, Any] = {"problem": None, "reached": True, "durability": None}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Upstreams that were asked whether they are there; the topics are."""
    found: list[str] = []

    async def reachable(_upstream: Upstream, route: Any) -> bool:
        found.append(route.backend)
        return True

    def look(_kafka: object) -> dict[str, Any]:
        return TOPICS

    monkeypatch.setattr(Upstream, "reachable", reachable)
    monkeypatch.setattr(health_routes, "_look_at_topics", look)
    return found


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json", "/redoc"])
async def test_pages_for_operators(tmp_path: Path, path: str) -> None:
    async with in_process(tmp_path, operations_key="ops") as gateway:
        for key, status in (("ops", 200), (ADMIN, 200), (PLAIN, 401), ("", 401)):
            answer = await gateway.ask("GET", path, [("authorization", f"Bearer {key}")], b"")
            assert answer.status == status
            assert status == 200 or "FULGURITE_OPERATIONS_KEY" in answer.json()["error"]["message"]
        assert (await gateway.ask("GET", "/healthz", [], b"")).status == 200
    async with in_process(tmp_path) as gateway:
        assert (await gateway.ask("GET", path, [], b"")).status == 200


async def test_readiness_has_a_status_for_all_and_reasons_for_operators(tmp_path: Path) -> None:
    async with in_process(tmp_path, operations_key="ops") as gateway:
        nobody = await gateway.ask("GET", "/readyz", [], b"")
        operator = await gateway.ask("GET", "/readyz", [("authorization", "Bearer ops")], b"")
        other_header = await gateway.ask("GET", "/readyz", [("x-api-key", "ops")], b"")
    assert (nobody.status, nobody.json()) == (200, {"ready": True})
    assert other_header.json() == operator.json()
    assert (operator.status, operator.json()["upstreams"]) == (
        200,
        {"vllm": "reachable", "other": "reachable"},
    )


@pytest.mark.parametrize("part", [PolicyTail, Prompts])
async def test_a_gateway_is_not_ready_before_it_has_read_policies_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type[PolicyTail | Prompts]
) -> None:
    async with in_process(tmp_path) as gateway:
        assert (await gateway.ask("GET", "/readyz", [], b"")).status == 200
        monkeypatch.setattr(part, "caught_up", False)
        assert (await gateway.ask("GET", "/readyz", [], b"")).status == 503


async def test_an_upstream_is_not_asked_each_time_that_readiness_is(
    tmp_path: Path, asked: list[str]
) -> None:
    async with in_process(tmp_path) as gateway:
        for _ in range(20):
            assert (await gateway.ask("GET", "/readyz", [], b"")).status == 200
        assert asked.count("vllm") < 20
