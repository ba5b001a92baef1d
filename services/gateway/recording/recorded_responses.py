"""State for OpenAI's responses, kept by the log alone: the response that `previous_response_id`
names is read there, and put in front of the input.

The upstream gets the complete conversation and no state. So any gateway can continue any recorded
response, also after a restart, for as long as `llm.calls` is kept. Requests that build on the same
response are branches. A follow-up is recorded as it was served, with its complete input, so that
its own followers need no other record. A response's id says who owns it (`identity`); to any other
owner it does not exist.

The latest responses are cached here, up to a limit in bytes. The places of others in the log are in
the store that gateways share. Both caches are optional.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall
from fulgurite.ids import CompletionRef
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.runtime import logs
from services.common.runtime.off_loop import off_loop
from services.gateway.dialects.capture import Json, encode
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.dialects.response_items import items_of
from services.gateway.dialects.responses import following, referring
from services.gateway.errors import BodyTooLarge, NotFound, Unavailable
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.rollout_resolver import RolloutResolver
from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience
from services.gateway.recording.call_search import CallSearch
from services.gateway.recording.item_index import ItemIndex
from services.gateway.recording.log_search import SearchTooLong
from services.gateway.request_body import BodyLimits, check_limits
from services.gateway.telemetry.metrics import Metrics

log = logs.get(__name__)

PLACES_IN_MEMORY = 100_000
"""Places that a gateway without Redis remembers: some 30 MB."""
_PLACE_TTL_S = 24 * 3600
_MEMORY_BYTES = 64 * 1024**2
_SEARCHES = 4
"""Searches at once, and one for each key: a key that names unknown ids delays only itself."""
_TIMEOUT_S = 30.0
_API = "responses"


class Response(msgspec.Struct, frozen=True):
    """A recorded response."""

    body: Json
    """Body of its request, with the complete input."""
    head: Json
    """The reply without its output."""
    output: list[Any]
    rollout_id: str
    size: int
    """Size of the record in characters."""


class Recorded(msgspec.Struct, frozen=True):
    """A recorded response in JSON, as the log has it."""

    body: str
    head: str
    message: str

    def size(self) -> int:
        """Size in characters."""
        return len(self.body) + len(self.head) + len(self.message)

    def output(self) -> list[Any]:
        """The answer's items; empty if they cannot be parsed."""
        try:
            return msgspec.json.decode(self.message, type=_Message).output
        except (ValueError, RecursionError):
            return []

    def read(self, rollout_id: str) -> Response | None:
        """The response; None if it cannot be parsed."""
        try:
            output = msgspec.json.decode(self.message, type=_Message).output
            return Response(
                msgspec.json.decode(self.body, type=Json),
                msgspec.json.decode(self.head, type=Json),
                output,
                rollout_id,
                self.size(),
            )
        except (ValueError, RecursionError):
            return None


class _Message(msgspec.Struct):
    output: list[Any]


class RecordedResponses:
    """Finds recorded responses, and continues them."""

    def __init__(
        self,
        resolver: RolloutResolver,
        store: Store,
        search: CallSearch,
        log_problem: Callable[[], str | None],
        limits: BodyLimits,
        metrics: Metrics,
    ) -> None:
        """`log_problem` returns why the log cannot be read, or None."""
        self._resolver = resolver
        self._store = store
        self._patience = StorePatience(
            lambda: None,
            lambda: log.warning(
                "the places of responses are not remembered: the store (REDIS_URL) does not answer"
            ),
        )
        self._items = ItemIndex(store, self._patience)
        self._search = search
        self._log_problem = log_problem
        self._limits = limits
        self.results = metrics.responses
        self._memory: OrderedDict[str, Recorded] = OrderedDict()
        self._bytes = 0
        self._threads = ThreadPoolExecutor(_SEARCHES, "response-search")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def remember(self, call: LlmCall, delivery: Delivery | None, owner: str) -> None:
        """Remember an answered call. Call it before the agent has the complete answer. Without
        `delivery` the call is not in Kafka yet. `owner` is whose key it is.
        """
        recorded = _recorded(call)
        if recorded is None:
            return
        self._keep(call.call_id, recorded)
        if delivery is not None:
            place = msgspec.json.encode(delivery)
            await self._patience.ask(
                lambda: self._store.put(_key(call.call_id), place, _PLACE_TTL_S)
            )
        await self._items.remember(owner, call.call_id, recorded.output())

    async def continued(self, caller: Caller, request: ApiRequest) -> tuple[ApiRequest, str]:
        """The request with the conversation or the items that it builds on, and its body in JSON.
        Raises NotFound, InvalidRequest, Unavailable.
        """
        complete, size = (
            await self._with_items(caller, request)
            if request.continues is None
            else await self._with_conversation(caller, request, request.continues)
        )
        body = await off_loop(size, lambda: encode(complete.body))
        try:
            await check_limits(body, self._limits)
        except BodyTooLarge as problem:
            raise BodyTooLarge(
                f"Together with the conversation that it builds on: {problem.message}",
                code=problem.code,
            ) from problem
        return complete, body.decode()

    async def _with_conversation(
        self, caller: Caller, request: ApiRequest, named: str
    ) -> tuple[ApiRequest, int]:
        found = await self.find(caller, named)
        if found.body.get("previous_response_id"):
            raise _not_found(named, "its record does not have the complete conversation")
        given = found.body.get("input")
        before = [*(items_of(given) if given is not None else []), *found.output]
        return following(request, before), found.size

    async def _with_items(self, caller: Caller, request: ApiRequest) -> tuple[ApiRequest, int]:
        """Of a response that is gone, no item is found."""
        items: list[Any] = []
        size = 0
        for call_id in await self._items.find(caller.owner, request.references):
            with suppress(NotFound):
                found = await self.find(caller, call_id)
                items += found.output
                size += found.size
        return referring(request, items), size

    async def find(self, caller: Caller, named: str) -> Response:
        """The recorded response of that id. Raises NotFound, Unavailable."""
        try:
            found, where = await self._find(caller, named)
        except NotFound:
            self.results.labels("not_found").inc()
            raise
        except Unavailable:
            self.results.labels("unavailable").inc()
            raise
        self.results.labels(where).inc()
        return found

    async def _find(self, caller: Caller, named: str) -> tuple[Response, str]:
        ref = self._resolver.own_completion(caller, named)
        if ref is None:
            raise _not_found(named, "this key has no such response")
        recorded, where = self._memory.get(ref.completion_id), "memory"
        if recorded is None:
            recorded, where = await self._from_log(caller, ref, named), "log"
            self._keep(ref.completion_id, recorded)
        found = await off_loop(recorded.size(), lambda: recorded.read(ref.rollout.rollout_id))
        if found is None:
            raise _not_found(named, "its record cannot be read")
        if found.body.get("store") is False:
            raise _not_found(named, "it was made with `store: false`")
        return found, where

    def close(self) -> None:
        """Stop: begin no more searches."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _from_log(self, caller: Caller, ref: CompletionRef, named: str) -> Recorded:
        turn = self._turns.setdefault(caller.owner, asyncio.Lock())
        async with turn:
            if (problem := self._log_problem()) is not None:
                raise _unavailable(problem)
            packed = await self._patience.ask(lambda: self._store.get(_key(ref.completion_id)))
            place = None if packed is None else msgspec.json.decode(packed, type=Delivery)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    loop = asyncio.get_running_loop()
                    call = await loop.run_in_executor(self._threads, self._search.find, ref, place)
            except (LogUnavailable, TimeoutError) as error:
                raise _unavailable(str(error) or "it does not answer") from error
            except SearchTooLong:
                raise _not_found(
                    named, "too many calls were recorded since to look through them"
                ) from None
        recorded = None if call is None else _recorded(call)
        if recorded is None:
            raise _not_found(named, "no such answer is in the log (any more)")
        return recorded

    def _keep(self, call_id: str, recorded: Recorded) -> None:
        gone = self._memory.pop(call_id, None)
        self._memory[call_id] = recorded
        self._bytes += recorded.size() - (0 if gone is None else gone.size())
        while self._bytes > _MEMORY_BYTES:
            self._bytes -= self._memory.popitem(last=False)[1].size()


def _recorded(call: LlmCall) -> Recorded | None:
    """The call as a recorded response; None if no request can continue it."""
    if call.api != _API or call.outcome is not CallOutcome.success or not call.choices:
        return None
    message = call.choices[0].message
    return (
        None
        if call.request is None or message is None
        else Recorded(call.request, call.response or "{}", message)
    )


def _not_found(named: str, why: str) -> NotFound:
    return NotFound(
        f"Previous response with id {named[:200]!r} not found: {why}. Send the complete "
        "conversation in `input`.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _unavailable(why: str) -> Unavailable:
    return Unavailable(
        "The response that the request builds on cannot be read: the event log (Kafka) is "
        f"unavailable ({why}). Nothing was generated; try again shortly, or send the complete "
        "conversation in `input`."
    )


def _key(call_id: str) -> str:
    return f"response:{call_id}"
