"""What the middleware adds to vLLM's replies: versions always, tokens on request. The engine is
played by objects of the same shape.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.vllm_plugin.middleware import VersionMiddleware

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json"), (b"content-length", b"12")]


class Processor:
    """The part of vLLM's output processor that is followed."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.asked: list[Any] = []

    def add_request(self, request: Any) -> None:
        self.asked.append(request.sampling_params)
        processor = Explainer(asked=request.sampling_params.logprobs is not None)
        self.request_states[request.request_id] = SimpleNamespace(
            weight_version_starts=[],
            prompt_token_ids=[1, 2],
            detokenizer=SimpleNamespace(output_token_ids=[]),
            logprobs_processor=processor,
        )

    def generate(self, request: str, *ids: int, version: str = "policy@1.7") -> None:
        """A step of the engine."""
        state = self.request_states[request]
        state.weight_version_starts.append((version, 0))
        state.detokenizer.output_token_ids += ids
        if state.logprobs_processor.logprobs is not None:
            state.logprobs_processor._update_sample_logprobs(
                SimpleNamespace(
                    logprob_token_ids=[[token] for token in ids],
                    logprobs=[[-token / 10] for token in ids],
                )
            )


class Explainer:
    """The part of vLLM's `LogprobsProcessor` that is replaced: a dictionary a token."""

    def __init__(self, *, asked: bool) -> None:
        self.logprobs: list[Any] | None = [] if asked else None

    def _update_sample_logprobs(self, lists: Any) -> None:
        assert self.logprobs is not None
        self.logprobs += [
            {token: SimpleNamespace(logprob=logprob)}
            for [token], [logprob] in zip(lists.logprob_token_ids, lists.logprobs, strict=True)
        ]


class Server:
    """vLLM's app: runs a script of (generate, send) against the middleware."""

    def __init__(self, *script: Any, logprobs: int | None = None, requests: int = 1) -> None:
        self.processor = Processor()
        self._script = script
        self._logprobs = logprobs
        self._requests = requests

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        for number in range(self._requests):
            params = SimpleNamespace(logprobs=self._logprobs, logprob_token_ids=None)
            self.processor.add_request(
                SimpleNamespace(request_id=str(number), sampling_params=params)
            )
        for step in self._script:
            if callable(step):
                step(self.processor)
            else:
                await send(step)


def start(headers: list[tuple[bytes, bytes]], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def run(server: Server, *, ask: bool) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body, as the client gets them."""

    async def receive() -> Any:
        raise AssertionError

    sent = await answered(server, b"1" if ask else None, receive)
    assert [message["type"] for message in sent[:1]] == ["http.response.start"]
    return dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


async def answered(server: Server, header: bytes | None, receive: Any) -> list[Any]:
    """The messages that the client gets."""
    engine = SimpleNamespace(output_processor=server.processor)
    app = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
    headers = [(b"x-fulgurite-tokens", header)] if header else []
    return await _sent(
        VersionMiddleware(server),
        {"type": "http", "method": "POST", "app": app, "headers": headers},
        receive,
    )


async def _sent(middleware: VersionMiddleware, scope: Any, receive: Any) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await middleware(scope, receive, send)
    return sent


def told(text: bytes) -> list[tuple[str, list[int], list[int], list[float]]]:
    """The comments with tokens."""
    found: list[tuple[str, list[int], list[int], list[float]]] = []
    for line in text.split(b"\n"):
        if line.startswith(b": fulgurite-tokens "):
            sequence, *packed = line.removeprefix(b": fulgurite-tokens ").split(b" ")
            prompt, ids, logprobs = (
                b"" if part == b"-" else base64.b64decode(part) for part in packed
            )
            found.append(
                (
                    sequence.decode(),
                    unpack_ids(prompt).tolist(),
                    unpack_ids(ids).tolist(),
                    unpack_logprobs(logprobs).tolist(),
                )
            )
    return found


def step(*ids: int, request: str = "0", version: str = "policy@1.7") -> Callable[[Processor], None]:
    def run(processor: Processor) -> None:
        processor.generate(request, *ids, version=version)

    return run


async def test_a_stream_bears_its_tokens_before_its_events() -> None:
    script = [
        start(STREAM),
        body(b"event: created\n\n", more=True),
        step(10),
        step(20),
        body(b"event: a\n\n", more=True),
        body(b"event: b\n\n", more=True),
        step(30, version="policy@1.8"),
        body(b"event: done\n\n"),
    ]
    headers, text = await run(Server(*script), ask=True)
    assert b"x-fulgurite-version" not in headers, "unknown when the first event left"
    assert told(text) == [
        ("0", [1, 2], [10, 20], pytest.approx([-1, -2])),
        ("0", [], [30], pytest.approx([-3])),
    ]
    events = [event for event in text.split(b"\n\n") if not event.startswith(b": fulgurite-tokens")]
    assert events == [
        b"event: created",
        b": fulgurite-version policy@1.7",
        b"event: a",
        b"event: b",
        b": fulgurite-version policy@1.8",
        b"event: done",
        b"",
    ]


async def test_comments_never_part_an_event() -> None:
    script = [
        start(STREAM),
        body(b"data: {", more=True),
        step(10),
        body(b"}\n\n", more=True),
        body(b"data: {}\n\n"),
    ]
    _, text = await run(Server(*script), ask=True)
    assert text.startswith(b"data: {}\n\n: fulgurite-tokens 0 ")


async def test_a_whole_reply_bears_a_field_and_its_length_fits() -> None:
    server = Server(step(10, 20), start(JSON), body(b'{"id":', more=True), body(b' "x"}'))
    headers, text = await run(server, ask=True)
    reply = json.loads(text)
    assert (reply["id"], int(headers[b"content-length"])) == ("x", len(text))
    [[prompt, ids, logprobs]] = reply["fulgurite_tokens"]
    assert unpack_ids(base64.b64decode(prompt)).tolist() == [1, 2]
    assert unpack_ids(base64.b64decode(ids)).tolist() == [10, 20]
    assert unpack_logprobs(base64.b64decode(logprobs)).tolist() == [-1, -2]
    assert (headers[b"x-fulgurite-version"], headers[b"x-fulgurite-version-last"]) == (
        b"policy@1.7",
        b"policy@1.7",
    )


ASKED = b',"logprobs":true,"return_token_ids":true}'


@pytest.mark.parametrize(
    ("header", "left"), [(b"instead", b'{"model":"m"}'), (b"1", b'{"model":"m"' + ASKED)]
)
async def test_what_is_sent_packed_instead_is_not_asked_for_in_the_body(
    header: bytes, left: bytes
) -> None:
    messages = iter(
        [
            {"body": b'{"model"', "more_body": True},
            {"body": b':"m"' + ASKED[:9], "more_body": True},
            {"body": ASKED[9:]},
        ]
    )
    read: list[Any] = []

    async def receive() -> Any:
        return next(
            ({"type": "http.request", **message} for message in messages),
            {"type": "http.disconnect"},
        )

    class Reader(Server):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            while not read or read[-1]["type"] == "http.request":
                read.append(await receive())
            await super().__call__(scope, receive, send)

    server = Reader(step(10, 20), start(JSON), body(b"{}"))
    sent = await answered(server, header, receive)
    assert b"".join(message["body"] for message in read[:-1]) == left
    assert "fulgurite_tokens" in json.loads(sent[1]["body"])
    assert server.processor.asked[0].logprobs == 0


async def test_a_body_that_does_not_ask_at_its_end_stays_as_it_is() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"logprobs":true}'}

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b'{"logprobs":true}'
        await send({"type": "http.response.start", "status": 204, "headers": []})

    engine = SimpleNamespace(output_processor=Processor())
    scope = {
        "type": "http",
        "method": "POST",
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=engine)),
    }
    assert await _sent(
        VersionMiddleware(app), {**scope, "headers": [(b"x-fulgurite-tokens", b"instead")]}, receive
    )


@pytest.mark.parametrize("reply", [b"[1]", b"no", b""])
async def test_what_is_no_object_stays_as_it_is(reply: bytes) -> None:
    assert (await run(Server(step(10), start(JSON), body(reply)), ask=True))[1] == reply


async def test_an_error_and_an_empty_object() -> None:
    assert (await run(Server(step(10), start(JSON, 400), body(b"{}")), ask=True))[1] == b"{}"
    assert (await run(Server(start(JSON), body(b"{}")), ask=True))[1] == b"{}", (
        "nothing was generated"
    )
    assert json.loads(
        (await run(Server(step(10), start(JSON), body(b"{}")), ask=True))[1]
    ).keys() == {"fulgurite_tokens"}


async def test_several_sequences_are_told_apart() -> None:
    server = Server(
        step(10), step(20, request="1"), start(STREAM), body(b"event: a\n\n"), requests=2
    )
    assert [(sequence, ids) for sequence, _, ids, _ in told((await run(server, ask=True))[1])] == [
        ("0", [10]),
        ("1", [20]),
    ]


async def test_without_being_asked_nothing_but_versions_is_told() -> None:
    server = Server(
        step(10), start(STREAM), body(b"data: {}\n\n", more=True), body(b"data: [DONE]\n\n")
    )
    headers, text = await run(server, ask=False)
    assert headers[b"x-fulgurite-version"] == b"policy@1.7"
    assert text == b"data: {}\n\n: fulgurite-version policy@1.7\n\ndata: [DONE]\n\n"
    assert [params.logprobs for params in server.processor.asked] == [None]
    headers, text = await run(Server(step(10), start(JSON), body(b'{"id": "x"}')), ask=False)
    assert (text, headers[b"content-length"]) == (b'{"id": "x"}', b"12")


@pytest.mark.parametrize(("asked", "set_to"), [(None, 0), (3, 3)])
async def test_the_engine_is_asked_for_logprobs_unless_the_agent_did(
    asked: int | None, set_to: int
) -> None:
    server = Server(step(10), start(STREAM), body(b"event: a\n\n"), logprobs=asked)
    await run(server, ask=True)
    assert [params.logprobs for params in server.processor.asked] == [set_to]


@pytest.mark.parametrize("asked", [None, 0])
async def test_ids_without_matching_logprobs_are_told_without(asked: int | None) -> None:
    def change(processor: Processor) -> None:
        processor.request_states["0"].detokenizer.output_token_ids[:] = [11]

    script = [step(10), change, start(STREAM), body(b"event: a\n\n")]
    _, text = await run(Server(*script, logprobs=asked), ask=True)
    assert told(text) == [("0", [1, 2], [11], [])]


async def test_what_only_the_log_wants_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [
        start(STREAM),
        step(10, 20),
        body(b"event: a\n\n", more=True),
        step(30),
        body(b"event: b\n\n"),
    ]

    def explained(server: Server) -> list[Any]:
        return server.processor.request_states["0"].logprobs_processor.logprobs

    fast, by_vllm, for_the_agent = Server(*script), Server(*script), Server(*script, logprobs=0)
    said = [(await run(fast, ask=True))[1], (await run(for_the_agent, ask=True))[1]]
    monkeypatch.setenv("FULGURITE_VLLM_FAST_LOGPROBS", "false")
    said.append((await run(by_vllm, ask=True))[1])
    assert said[0] == said[1] == said[2]
    assert (len(explained(fast)), len(explained(for_the_agent)), len(explained(by_vllm))) == (
        0,
        3,
        3,
    )


async def test_the_lowest_log_probability_is_that_of_vllms_own_replies() -> None:
    def generate(processor: Processor) -> None:
        state = processor.request_states["0"]
        state.detokenizer.output_token_ids += [10]
        state.logprobs_processor._update_sample_logprobs(
            SimpleNamespace(logprob_token_ids=[[10]], logprobs=[[float("-inf")]])
        )

    for asked in (None, 0):
        server = Server(generate, start(STREAM), body(b"event: a\n\n"), logprobs=asked)
        assert told((await run(server, ask=True))[1]) == [("0", [1, 2], [10], [-9999.0])]


async def test_what_is_no_post_passes() -> None:
    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    await VersionMiddleware(app)({"type": "http", "method": "GET"}, app, app)  # type: ignore[arg-type]
    assert passed == [{"type": "http", "method": "GET"}]


class Engine:
    """The part of vLLM's engine client that is asked."""

    def __init__(self) -> None:
        self.output_processor = Processor()
        self.weight_version = "default"
        self.asked = 0

    async def get_weight_version(self) -> str:
        self.asked += 1
        return self.weight_version


async def test_an_engine_that_has_just_started_refuses_who_expects_more() -> None:
    engine = Engine()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(start(JSON))
        await send(body(b"{}"))

    middleware = VersionMiddleware(app)

    async def call(expected: bytes | None) -> tuple[int, dict[bytes, bytes], bytes]:
        scope = {
            "type": "http",
            "method": "POST",
            "app": SimpleNamespace(state=SimpleNamespace(engine_client=engine)),
        }
        headers = [(b"x-fulgurite-expects", expected)] if expected else []
        sent = await _sent(middleware, {**scope, "headers": headers}, None)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    status, headers, said = await call(b"policy@1.7")
    assert (status, headers[b"x-fulgurite-refused"], headers[b"retry-after"]) == (
        503,
        b"version",
        b"1",
    )
    assert int(headers[b"content-length"]) == len(said)
    assert "policy@1.7" in json.loads(said)["error"]["message"]
    assert (await call(None))[0] == (await call(b"policy@0.0"))[0] == 200
    engine.weight_version = "policy@1.6"
    assert (await call(b"policy@1.7"))[0] == 200, "an update is under way, or a rollback"
    assert (await call(b"policy@1.7"))[0] == 200
    assert engine.asked == 2, "not again once it was given weights"
