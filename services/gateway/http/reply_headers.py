"""Headers of replies: the rollout that a request belongs to, and what answered it."""

from __future__ import annotations

from starlette.requests import Request

from services.gateway.http.asgi import Header
from services.gateway.identity.claims import Claims
from services.gateway.identity.rollout_resolver import ROLLOUT_ID_HEADER, Identified
from services.gateway.recording.call import Call


def rollout_header(request: Request) -> dict[str, str]:
    """The header of a REST reply that names its rollout; empty until a route has set it in
    `request.state.rollout_id`.
    """
    rollout = getattr(request.state, "rollout_id", None)
    return {ROLLOUT_ID_HEADER.decode(): rollout} if rollout else {}


def claims_header(claims: Claims | None) -> list[Header]:
    """The header that names the rollout of a scoped key; empty for another key."""
    return [] if claims is None else [(ROLLOUT_ID_HEADER, claims.rollout.encode())]


def rollout_headers(who: Identified, version: str | None = None) -> list[Header]:
    """The rollout, and the version that answered."""
    headers: list[Header] = [(ROLLOUT_ID_HEADER, who.rollout_id.encode())]
    if version is not None:
        headers.append((b"x-fulgurite-version", version.encode()))
    return headers


def call_headers(call: Call) -> list[Header]:
    """The same of a call that went to its upstream, and its sampling, prompt and continuation."""
    headers = rollout_headers(call.who, call.route.reported(call.capture.version_first))
    if call.draft.sampled is not None:
        headers.append((b"x-fulgurite-sampling", call.draft.sampled.encode()))
    if call.draft.prompt_version is not None:
        headers.append((b"x-fulgurite-prompt", call.draft.prompt_version.encode()))
    if call.continued:
        headers.append((b"x-fulgurite-continuation", b"tokens"))
    return headers
