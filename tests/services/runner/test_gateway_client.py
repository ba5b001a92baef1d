"""What a runner gets from a gateway that was restarted without Redis."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from fulgurite.enums import Mode
from services.gateway.identity.keys import KeyRing
from services.runner.gateway_client import GatewayClient
from tests.fuzz.gateway import ADMIN, SIGNING, InProcess, in_process
from tests.serving import serving


class Restarting:
    """Passes requests on to a gateway in this process, which may be another one later."""

    gateway: InProcess

    async def answer(self, request: web.Request) -> web.Response:
        """The gateway's answer."""
        sent = list(request.headers.items())
        body = await request.read()
        found = await self.gateway.ask(request.method, request.path, sent, body)
        return web.Response(status=found.status, body=found.body, content_type="application/json")


@pytest.mark.parametrize(
    ("served_by", "prompt_version"), [(None, None), ("writer", None), (None, "none")]
)
async def test_the_next_attempt_is_served_as_the_first(
    tmp_path: Path, served_by: str | None, prompt_version: str | None
) -> None:
    server = Restarting()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(server.answer))
        client = await stack.enter_async_context(GatewayClient(url, ADMIN))
        async with in_process(tmp_path) as server.gateway:
            group = await client.declare(
                task={},
                n=1,
                mode=Mode.val,
                model="policy",
                deadline_s=60,
                run_id="run",
                max_attempts=2,
                rewards=[],
                weights={},
                served_by=served_by,
                prompt_version=prompt_version,
            )
        [grant] = group.rollouts
        async with in_process(tmp_path) as server.gateway:
            again = await client.next_attempt(group, grant, Mode.val)
    first, second = (KeyRing.parse(SIGNING).verify(one.api_key, 0) for one in (grant, again))
    assert (second.attempt, second.mode, second.exp) == (1, Mode.val, first.exp)
    for name in ("alias", "served_by", "prompt_version"):
        assert getattr(second, name) == getattr(first, name)
    assert (second.served_by, second.prompt_version) == (served_by or "", prompt_version or "")
