"""A gateway without its store serves calls all the same."""

from __future__ import annotations

from fulgurite.avro.codec import Codec
from fulgurite.enums import Identity, Mode
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.errors import Unavailable
from services.gateway.identity.rollout_resolver import Identified
from services.gateway.identity.store import MemoryStore
from services.gateway.upstream.prompts import Prompts
from tests.fulgurite.prompts.prompt_updates import version
from tests.services.gateway.answering import NOWHERE

SESSION = Identified("gr_" + "z" * 26, "ro_x", 0, Mode.live, "", Identity.header)
CHAT = ApiRequest(
    {"messages": [{"role": "user", "content": "hi"}]}, "policy", stream=False, session=None
)


class AbsentStore(MemoryStore):
    """Never answers."""

    async def put_new(self, key: str, value: bytes, ttl_s: int) -> bytes | None:
        raise Unavailable("away")


async def test_without_the_store_a_session_has_the_version_now_in_force() -> None:
    made = Prompts(NOWHERE, Codec(), AbsentStore())
    made.history.apply(version(1, at=0, system="New."))
    made.history.apply(version(2, at=10_000, system="Newer."))
    for now_ms, expected in ((9_000, "prompt@1"), (20_000, "prompt@2")):
        request, named = await made.apply(CHAT, "chat.completions", SESSION, now_ms)
        assert named == expected
        assert request.items == request.body["messages"]
