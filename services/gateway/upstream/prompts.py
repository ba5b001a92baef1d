"""Prompt versions: follows `prompt.updates` and applies the version in force to calls.

A rollout keeps the version that was in force when it began. Most ids say when that was. For a
session that an agent named, the time of its first call is kept in the store. A declared rollout may
name its version, which its key then carries. Only calls of aliases that ever had a version cost
anything.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.ids import minted_at
from fulgurite.prompts.editing import served_body
from fulgurite.prompts.history import AS_SENT, EFFECT_DELAY_MS, PromptHistory
from fulgurite.topics import PROMPT_UPDATES
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.errors import Overloaded
from services.gateway.identity.rollout_resolver import Identified
from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience
from services.gateway.upstream.followed_topics import FollowedTopics

log = logs.get(__name__)

SESSIONS_IN_MEMORY = 100_000
"""Sessions that a gateway without Redis remembers: some 20 MB."""
_KEPT_S = 7 * 24 * 3600
"""Seconds for which a rollout keeps its version. Some ids of named sessions look like times of any
century: those that are older than this are not taken for one.
"""
_LOOK_AGAIN_S = 0.05


class Prompts:
    """Applies prompt versions. While Kafka is away the versions only get older."""

    def __init__(self, kafka: KafkaSettings, codec: Codec, store: Store) -> None:
        self.history = PromptHistory()
        self._store = store
        self._patience = StorePatience(
            lambda: None,
            lambda: log.warning(
                "a session may change its prompt version: the store (REDIS_URL) does not answer"
            ),
        )
        self._followed = FollowedTopics(
            kafka,
            codec,
            (PROMPT_UPDATES,),
            self.history.apply,
            "calls are served without prompt versions until prompt.updates can be read",
        )
        self.start, self.close = self._followed.start, self._followed.close

    @property
    def caught_up(self) -> bool:
        """Whether every version that the log had at the start is known."""
        return self._followed.caught_up

    async def knows(self, alias: str, version: str) -> bool:
        """Whether the alias has this version, or it is `none`; waits a little for a new one."""
        deadline = time.monotonic() + EFFECT_DELAY_MS / 1000
        while version != AS_SENT and self.history.find(alias, version) is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(_LOOK_AGAIN_S)
        return True

    async def apply(
        self, request: ApiRequest, api: str, who: Identified, now_ms: int, named: str | None = None
    ) -> tuple[ApiRequest, str | None]:
        """The request as it is served, and the version; the same request and None without one that
        fits it.

        `named`: the version that the rollout's key names. Raises Overloaded if it is not read yet.
        """
        if named is not None and not await self.knows(request.alias, named):
            raise Overloaded(
                f"This gateway has not read {named} of {request.alias} from the log yet. Nothing "
                "was generated; try again shortly.",
                EFFECT_DELAY_MS / 1000,
            )
        if not self.history.has(request.alias):
            return request, None
        began_at = await self._began_at(who, now_ms)
        prompt = self.history.in_force(request.alias, who.agent, began_at, named)
        body = None if prompt is None else served_body(request.body, api, prompt)
        if prompt is None or body is None:
            return request, None
        # The tokens of a continued chat are found, and dictated ones rendered, by what is served.
        items = request.items
        if api == "chat.completions":
            items = cast("list[Any]", body["messages"])
        return msgspec.structs.replace(request, body=body, items=items), prompt.version

    async def _began_at(self, who: Identified, now_ms: int) -> int:
        minted = minted_at(who.group_id)
        if minted is not None and 0 <= now_ms - minted < _KEPT_S * 1000:
            return minted
        known = await self._patience.ask(
            lambda: self._store.put_new(f"began:{who.rollout_id}", str(now_ms).encode(), _KEPT_S)
        )
        return now_ms if known is None else int(known)
