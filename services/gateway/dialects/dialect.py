"""The interface of a model API, so that one endpoint serves them all.

A dialect parses requests, makes the upstream's requests, parses replies (with a `Capture`) and
renders errors. It does no I/O, and does not choose rollouts or upstreams.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import msgspec

from fulgurite.events import Sampling
from services.gateway.dialects.capture import Capture, Json
from services.gateway.errors import GatewayError, InvalidRequest
from services.gateway.request_body import decode_body
from services.gateway.upstream.route import Route

_LONGEST_NAME = 256


class ApiRequest(msgspec.Struct, frozen=True):
    """A request with a valid envelope; the upstream checks the rest."""

    body: Json
    alias: str
    stream: bool
    session: str | None
    """`metadata.session_id`, or what the API has in its place."""
    items: list[Any] | None = None
    """The conversation so far, as messages or items that `fulgurite.calls.conversations` reads;
    None for an API without conversations.
    """
    user: str | None = None
    """The end user on whose behalf the agent asks, in the API's own field for it."""
    continues: str | None = None
    """Id of the answer that the request builds on, as the agent wrote it, where the API has a field
    for it (`previous_response_id`).
    """
    references: tuple[str, ...] = ()
    """Ids of the recorded items that an input refers to, while they are not in it. `items` is None
    until then.
    """


class Unkept(msgspec.Struct, frozen=True):
    """A field that asks for state or work between calls that this gateway does not offer. It is
    refused, never ignored.
    """

    field: str
    instead: str
    """Why it is refused, and what to do."""
    code: str | None = None


class Dialect(Protocol):
    """One API. Stateless: one instance serves every request."""

    @property
    def api(self) -> str:
        """Name in events: `chat.completions`."""
        ...

    @property
    def path(self) -> str:
        """Path, at the gateway and at the upstream: `/v1/chat/completions`."""
        ...

    @property
    def keep_alive(self) -> bytes:
        """What keeps a silent stream alive; every client skips it."""
        ...

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest."""
        ...

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """The effective sampling parameters."""
        ...

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """The body for the upstream."""
        ...

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """Additional headers for the upstream."""
        ...

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> Capture:
        """A parser of this call's answer."""
        ...

    def error_body(self, problem: GatewayError) -> bytes:
        """The body of an error."""
        ...

    def error_event(self, problem: GatewayError) -> bytes:
        """The last event of a stream that failed."""
        ...


def parse_envelope(raw: bytes, needs: str) -> tuple[Json, str, bool]:
    """Body, alias and whether a stream is asked for. Raises InvalidRequest unless it is a JSON
    object with `model` and a boolean `stream`.
    """
    body = decode_body(raw, needs)
    if not isinstance(body, dict):
        raise InvalidRequest(f"The body must be a JSON object with {needs}.")
    fields = cast(Json, body)
    alias = fields.get("model")
    if not isinstance(alias, str) or not alias:
        raise InvalidRequest(
            "`model` must be a string: one of the names that GET /v1/models lists.", param="model"
        )
    if len(alias) > _LONGEST_NAME:
        raise InvalidRequest(
            f"`model` has more than {_LONGEST_NAME} characters ({len(alias)}). Send one of the "
            "names that GET /v1/models lists.",
            param="model",
        )
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false.", param="stream")
    return fields, alias, bool(stream)


def refuse_unkept(body: Json, unkept: Iterable[Unkept]) -> None:
    """Raise InvalidRequest for such a field, unless its value is null, false or an empty list."""
    for one in unkept:
        asked = body.get(one.field)
        if asked is not None and asked is not False and asked != []:
            raise InvalidRequest(
                f"`{one.field}` is not supported: {one.instead}", param=one.field, code=one.code
            )


def text(body: Json, name: str) -> str | None:
    """The text under that name, if there is any."""
    value = body.get(name)
    return value if isinstance(value, str) and value else None


def mapping(body: Json, name: str) -> Json:
    """The object under that name; empty if there is none."""
    value = body.get(name)
    return cast(Json, value) if isinstance(value, dict) else {}
