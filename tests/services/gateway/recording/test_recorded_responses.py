"""What `previous_response_id` names: from memory, from its place or by a search; and what is said
where it is not there.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome
from fulgurite.events import LlmCall
from fulgurite.ids import CompletionRef, completion_of, public_completion
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.dialects.responses import Responses
from services.gateway.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from services.gateway.http.error_responses import error_headers
from services.gateway.identity.authenticator import Caller
from services.gateway.identity.declared_groups import DeclaredGroups
from services.gateway.identity.keys import KeyRing
from services.gateway.identity.rollout_resolver import Named, RolloutResolver
from services.gateway.identity.store import MemoryStore, RedisStore, Store
from services.gateway.recording import recorded_responses as module
from services.gateway.recording.recorded_responses import RecordedResponses
from services.gateway.request_body import BodyLimits
from services.gateway.telemetry.metrics import Metrics
from services.local_stack.ports import free_port
from tests.synthetic import make_call

RING = KeyRing.parse("k1:0123456789abcdef-one")
OWNER = Caller("owner", admin=False, claims=None)
SAID: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hello"}],
}
RESOLVER = RolloutResolver(RING, DeclaredGroups(MemoryStore()), {})
PLACE = Delivery(3, 14)


class Log:
    """In place of `CallSearch`: a log of calls, or one that cannot be read."""

    def __init__(self, *calls: LlmCall) -> None:
        self.calls = {call.call_id: call for call in calls}
        self.asked: list[Delivery | None] = []
        self.raises: Exception | None = None
        self.gate: threading.Event | None = None
        self.running = self.most = 0
        self.two_run = threading.Event()

    def find(self, ref: CompletionRef, place: Delivery | None) -> LlmCall | None:
        """See CallSearch."""
        self.asked.append(place)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running == 2:
            self.two_run.set()
        if self.gate is not None:
            self.gate.wait(10)
        self.running -= 1
        if self.raises is not None:
            raise self.raises
        return self.calls.get(ref.completion_id)


async def answered(
    caller: Caller = OWNER, *, body: dict[str, Any] | None = None, **fields: Any
) -> LlmCall:
    """A recorded response of a rollout of this caller's."""
    who = await RESOLVER.identify(caller, Named(), "policy", 1_700_000_000_000)
    call_id = completion_of(who.rollout_id, 0, b"01234", RING.signing_secret)
    made = make_call(replies=[{"role": "assistant", "output": [SAID]}])
    names = {
        "call_id": call_id,
        "event_id": call_id,
        "group_id": who.group_id,
        "rollout_id": who.rollout_id,
        "api": "responses",
    }
    request = msgspec.json.encode(
        {"model": "policy", "input": "hi"} if body is None else body
    ).decode()
    return msgspec.structs.replace(
        made, **{**names, "request": request, "response": '{"object":"response"}', **fields}
    )


def public(call: LlmCall) -> str:
    return public_completion(call.call_id, "resp_")


def asking(call: LlmCall) -> ApiRequest:
    """A request that builds on it."""
    body = {"model": "policy", "input": "more", "previous_response_id": public(call)}
    return ApiRequest(body, "policy", stream=False, session=None, continues=public(call))


def responses(
    log: Log, store: Store | None = None, *, problem: str | None = None, limit: int = 1 << 20
) -> RecordedResponses:
    limits = BodyLimits(limit, "FULGURITE_MAX_BODY_BYTES", 100, 60)
    return RecordedResponses(
        RESOLVER,
        store or MemoryStore(),
        log,  # pyright: ignore[reportArgumentType]
        lambda: problem,
        limits,
        Metrics(),  # pyright: ignore[reportArgumentType]
    )


def counted(recorded: RecordedResponses) -> dict[str, float]:
    """Look-ups by result."""
    [family] = recorded.results.collect()
    return {
        sample.labels["result"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def said(error: GatewayError) -> tuple[int, str | None]:
    return error.status, error.code


async def test_a_response_is_remembered_whether_kafka_has_it_yet_or_not() -> None:
    for delivery in (None, PLACE):
        log, call = Log(), await answered()
        recorded = responses(log)
        await recorded.remember(call, delivery, OWNER.owner)
        whole, raw = await recorded.continued(OWNER, asking(call))
        assert msgspec.json.decode(raw) == whole.body
        assert whole.body == {
            "model": "policy",
            "input": [{"role": "user", "content": "hi"}, SAID, {"role": "user", "content": "more"}],
        }
        assert log.asked == []


async def test_another_gateway_looks_where_it_lies() -> None:
    store, call = MemoryStore(), await answered()
    log = Log(call)
    await responses(log, store).remember(call, PLACE, OWNER.owner)
    other = responses(log, store)
    for _ in range(2):
        assert len((await other.continued(OWNER, asking(call)))[0].body["input"]) == 3
    assert log.asked == [PLACE], "then it remembers it, too"
    assert len((await responses(log).continued(OWNER, asking(call)))[0].body["input"]) == 3
    assert log.asked == [PLACE, None]


def referring(*item_ids: str) -> ApiRequest:
    """A request that refers to items, and names no response."""
    items = [{"type": "item_reference", "id": item_id} for item_id in item_ids]
    body = {"model": "policy", "input": [*items, {"role": "user", "content": "more"}]}
    return Responses().parse(msgspec.json.encode(body))


async def test_items_are_found_by_their_id_at_any_gateway() -> None:
    store, call = MemoryStore(), await answered()
    log = Log(call)
    await responses(log, store).remember(call, PLACE, OWNER.owner)
    complete, raw = await responses(log, store).continued(OWNER, referring("msg_1"))
    assert msgspec.json.decode(raw) == complete.body
    assert complete.body["input"] == complete.items == [SAID, {"role": "user", "content": "more"}]
    assert (complete.references, complete.continues) == ((), None)
    assert log.asked == [PLACE]


@pytest.mark.parametrize(
    ("caller", "body", "item_id"),
    [
        (Caller("other", admin=False, claims=None), None, "msg_1"),
        (OWNER, None, "msg_2"),
        (OWNER, {"model": "policy", "input": "hi", "store": False}, "msg_1"),
    ],
)
async def test_items_of_others_and_unknown_ones_are_not_found(
    caller: Caller, body: dict[str, Any] | None, item_id: str
) -> None:
    call = await answered(body=body)
    recorded = responses(Log(call))
    await recorded.remember(call, PLACE, OWNER.owner)
    with pytest.raises(InvalidRequest, match=f"No item '{item_id}' to refer to") as caught:
        await recorded.continued(caller, referring(item_id))
    assert said(caught.value) == (400, "item_not_found")


async def test_a_store_that_is_gone_finds_no_item() -> None:
    call, store = await answered(), RedisStore(f"redis://127.0.0.1:{free_port()}/0")
    recorded = responses(Log(call), store)
    await recorded.remember(call, PLACE, OWNER.owner)
    with pytest.raises(InvalidRequest, match="No item 'msg_1' to refer to"):
        await recorded.continued(OWNER, referring("msg_1"))


@pytest.mark.parametrize("output", ["null", '[1, {"id": 5}, {"id": "\\ud83c"}]'])
async def test_odd_items_are_not_indexed(output: str) -> None:
    call = await answered()
    [choice] = call.choices
    odd = msgspec.structs.replace(choice, message=f'{{"role":"assistant","output":{output}}}')
    call = msgspec.structs.replace(call, choices=(odd,))
    await responses(Log(call)).remember(call, PLACE, OWNER.owner)


async def test_a_store_that_is_gone_costs_a_search() -> None:
    call = await answered()
    log, store = Log(call), RedisStore(f"redis://127.0.0.1:{free_port()}/0")
    await responses(log, store).remember(call, PLACE, OWNER.owner)
    await responses(log, store).continued(OWNER, asking(call))
    assert log.asked == [None]


@pytest.mark.parametrize(
    "unfit",
    [
        {"outcome": CallOutcome.upstream_error},
        {"outcome": CallOutcome.client_disconnected},
        {"api": "chat.completions"},
        {"request": None},
        {"choices": ()},
        {"body": {"model": "policy", "input": "hi", "store": False}},
        {"body": {"model": "policy", "input": "hi", "previous_response_id": "resp_1"}},
        {"request": '{"model":'},
        {"request": "[]"},
        {"response": "no JSON"},
    ],
)
async def test_what_nobody_can_go_on_from(unfit: dict[str, Any]) -> None:
    call = await answered(**unfit)
    recorded = responses(Log(call))
    await recorded.remember(call, PLACE, OWNER.owner)
    with pytest.raises(NotFound, match="Send the complete conversation in `input`") as caught:
        await recorded.continued(OWNER, asking(call))
    assert said(caught.value) == (404, "previous_response_not_found")


async def test_a_response_of_nobody_or_of_another_is_not_looked_for() -> None:
    call = await answered()
    log = Log(call)
    recorded = responses(log)
    await recorded.remember(call, PLACE, OWNER.owner)
    for caller, named in (
        (Caller("other", admin=False, claims=None), public(call)),
        (OWNER, "resp_123"),
        (OWNER, "x" * 100_000),
    ):
        with pytest.raises(NotFound) as caught:
            await recorded.find(caller, named)
        assert said(caught.value) == (404, "previous_response_not_found")
        assert len(caught.value.message) < 500
    assert log.asked == []
    assert (await recorded.find(Caller("admin", admin=True, claims=None), public(call))).output == [
        SAID
    ]


@pytest.mark.parametrize(
    ("raises", "status", "says"),
    [
        (LogUnavailable("llm.calls: nothing to read"), 503, "try again shortly"),
        (TimeoutError(), 503, "try again shortly"),
        (module.SearchTooLong(), 404, "too many calls were recorded since"),
    ],
)
async def test_a_log_that_cannot_be_read(raises: Exception, status: int, says: str) -> None:
    log = Log()
    log.raises = raises
    with pytest.raises(GatewayError, match=says) as caught:
        await responses(log).continued(OWNER, asking(await answered()))
    assert caught.value.status == status
    assert ("retry-after" in error_headers(caught.value)) == (status == 503)


async def test_while_kafka_is_away_only_what_is_remembered_is_gone_on_from() -> None:
    known, other = await answered(), await answered()
    log = Log(known, other)
    recorded = responses(log, problem="no Kafka broker can be reached")
    await recorded.remember(known, None, OWNER.owner)
    await recorded.continued(OWNER, asking(known))
    with pytest.raises(Unavailable, match="no Kafka broker can be reached") as caught:
        await recorded.continued(OWNER, asking(other))
    assert (said(caught.value), error_headers(caught.value)) == (
        (503, "log_unavailable"),
        {"retry-after": "1"},
    )
    assert log.asked == []
    assert counted(recorded) == {"memory": 1, "unavailable": 1}


async def test_what_is_remembered_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEMORY_BYTES", 1000)
    first, large, last = (
        await answered(),
        await answered(body={"input": "x" * 900}),
        await answered(),
    )
    log = Log(first, large, last)
    recorded = responses(log)
    for call in (first, first, large, last):
        await recorded.remember(call, PLACE, OWNER.owner)
    for call, searches in ((last, 0), (first, 1), (last, 1), (large, 2)):
        await recorded.find(OWNER, public(call))
        assert len(log.asked) == searches
    assert counted(recorded) == {"memory": 2, "log": 2}


MANY: list[Any] = [{"role": "user", "content": "?"}] * 101


@pytest.mark.parametrize(
    ("sent", "says"),
    [("x" * 5000, "over the limit"), (MANY, "more than 100 arrays, objects and commas")],
)
async def test_a_conversation_over_the_limit_of_a_body_is_refused(sent: Any, says: str) -> None:
    call = await answered(body={"model": "policy", "input": sent})
    recorded = responses(Log(call), limit=5000)
    with pytest.raises(
        BodyTooLarge, match=f"Together with the conversation that it builds on: .*{says}"
    ):
        await recorded.continued(OWNER, asking(call))


async def test_a_key_has_one_search_at_a_time() -> None:
    """A key that names what is not there holds up nobody else's."""
    other = Caller("other", admin=False, claims=None)
    calls = [await answered() for _ in range(6)]
    foreign = await answered(other)
    log = Log(*calls)
    log.gate = threading.Event()
    recorded = responses(log)
    searches = [asyncio.create_task(recorded.find(OWNER, public(call))) for call in calls]
    theirs = asyncio.create_task(recorded.find(other, public(foreign)))
    assert await asyncio.to_thread(log.two_run.wait, 10)
    log.gate.set()
    await asyncio.gather(*searches, theirs, return_exceptions=True)
    assert log.most == 2
    recorded.close()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 10), st.integers(0, 2), st.lists(st.text(), max_size=3), st.booleans()
    ),
    max_size=12,
)


@given(STEPS)
def test_each_of_a_tree_of_responses_is_given_with_all_that_leads_to_it(
    steps: list[tuple[int, int, list[str], bool]],
) -> None:
    """At whichever gateway: one that remembers it, one that knows where it lies, one that has to
    search.
    """
    asyncio.run(_grow(steps))


async def _grow(steps: list[tuple[int, int, list[str], bool]]) -> None:
    log, store = Log(), MemoryStore()
    gateways = [responses(log, store), responses(log, store), responses(log)]
    grown: list[tuple[LlmCall, list[Any]]] = []
    for number, (parent, gateway, texts, as_text) in enumerate(steps):
        said_before = grown[parent % len(grown)] if grown else None
        items: list[Any] = [{"role": "user", "content": text} for text in texts]
        body: dict[str, Any] = {
            "model": "policy",
            "input": texts[0] if as_text and len(texts) == 1 else items,
        }
        if said_before is not None:
            body["previous_response_id"] = public(said_before[0])
        request, raw = (
            Responses().parse(msgspec.json.encode(body)),
            msgspec.json.encode(body).decode(),
        )
        if request.continues is not None:
            request, raw = await gateways[gateway].continued(OWNER, request)
        whole = [*([] if said_before is None else said_before[1]), *items]
        served = request.body["input"]
        assert whole == (
            [{"role": "user", "content": served}] if isinstance(served, str) else served
        )
        answer = {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": f"answer {number}"}],
        }
        [choice] = make_call(replies=[{"role": "assistant", "output": [answer]}]).choices
        call = await answered(request=raw, choices=(choice,))
        log.calls[call.call_id] = call
        await gateways[gateway].remember(call, PLACE, OWNER.owner)
        grown.append((call, [*whole, answer]))
    for one in gateways:
        one.close()
