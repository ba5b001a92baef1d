"""APIs that generate nothing: recorded as calls without choices, so that they are never
trained on.
"""

from __future__ import annotations

from fulgurite.events import Choice, Sampling
from fulgurite.failures import FailureKind
from services.gateway.dialects.capture import Capture, Json, Mark, encode
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.upstream.route import Route


class PlainDialect:
    """Base of their dialects. The body passes with the upstream's model name; the answer is always
    complete.
    """

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """Nothing is sampled."""
        return defaults

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        return encode({**request.body, "model": route.model})

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """None."""
        return {}


class PlainCapture(Capture):
    """A reply that is recognised by one field, and recorded without its largest ones."""

    def __init__(self, public_id: str, alias: str | None, known_by: str, bulk: str = "") -> None:
        super().__init__(public_id, alias)
        self._known_by = known_by
        self._bulk = bulk

    def parse_reply(self, reply: Json) -> bytes | None:
        """See Capture."""
        if reply.get(self._known_by) is None:
            self.parse_error(reply)
            return None
        for name, value in (("id", self._id), ("model", self._alias)):
            if name in reply and value is not None:
                reply[name] = value
        self.parse_usage(reply.get("usage"), "prompt_tokens", "completion_tokens")
        self.head = {
            name: value for name, value in reply.items() if name not in (self._bulk, "usage")
        }
        return encode(reply)

    def mark(self, chunk: Json) -> Mark:
        """Streams are not asked for."""
        return Mark.none

    def parse_chunk(self, chunk: Json) -> bytes | None:
        """Streams are not asked for."""
        return encode(chunk)

    def finished(self) -> bool:
        """Streams are not asked for."""
        return True

    def recorded_choices(self) -> tuple[Choice, ...]:
        """Nothing was generated."""
        return ()

    def failure(self) -> FailureKind | None:
        """None: nothing was generated."""
        return None
