"""Sends requests to the gateway's REST routes, with the standard library alone.

Connection errors and the statuses 429 and 5xx are retried for `patience_s` seconds. Redirects are
not followed: the key would go along. Thread-safe.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import Any

import msgspec

from services.client.errors import GatewayRefused, GatewayUnreachable

_PAUSE_S = 0.25
_REQUEST_TIMEOUT_S = 35.0
"""More than the gateway takes to read a rollout."""
_LONGEST_QUOTE = 500


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the redirect is an error."""


class Connection:
    """Requests to one gateway."""

    def __init__(self, url: str, patience_s: float) -> None:
        """`url`: the gateway's, without `/v1`."""
        self._url = url
        self._patience_s = patience_s
        self._opener = urllib.request.build_opener(_NoRedirects)

    def get(self, path: str, key: str) -> dict[str, Any]:
        """The reply to a GET. Raises GatewayRefused, GatewayUnreachable."""
        return self._ask(path, key, None, {})

    def post(
        self, path: str, key: str, body: dict[str, Any], idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """The reply to a POST. Raises GatewayRefused, GatewayUnreachable."""
        headers = {"Content-Type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        return self._ask(path, key, msgspec.json.encode(body), headers)

    def _ask(
        self, path: str, key: str, body: bytes | None, headers: dict[str, str]
    ) -> dict[str, Any]:
        request = urllib.request.Request(
            self._url + path, body, {**headers, "Authorization": f"Bearer {key}"}
        )
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                with self._opener.open(request, timeout=_REQUEST_TIMEOUT_S) as reply:
                    return msgspec.json.decode(reply.read(), type=dict[str, Any])
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read().decode(errors="replace")[:_LONGEST_QUOTE]
                problem = f"{path}: {error.code} {said}"
                if error.code < 500 and error.code != 429:
                    raise GatewayRefused(
                        f"The gateway at {self._url} refused {problem}", error.code
                    ) from error
            except (OSError, http.client.HTTPException) as error:
                problem = f"{path}: {type(error).__name__}: {error}"
            if time.monotonic() > give_up:
                raise GatewayUnreachable(
                    f"No answer from the gateway at {self._url} in {self._patience_s:.0f} s "
                    f"({problem}). Is it running there (FULGURITE_GATEWAY_URL)?"
                )
            time.sleep(_PAUSE_S)
