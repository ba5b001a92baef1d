"""`/openapi.json`, and `/docs` made of it.

FastAPI describes the REST routes. `openapi.json` beside this module describes what FastAPI cannot
see: the model APIs (raw ASGI), the keys, and the errors of every route.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Json = dict[str, Any]

DESCRIPTION = """An agent's endpoint that records every call in Kafka before its answer is complete.

An agent in any framework sets its base URL and its key, nothing else:

    OPENAI_BASE_URL=http://gateway:8080/v1   OPENAI_API_KEY=<a rollout's api_key, or a plain key>

**Which rollout a call belongs to**: the key's own; else the path `/rollouts/{name}/v1/…` (`/agents/{role}/v1/…` names the role; both can be
combined); else the header `x-fulgurite-rollout`; else `metadata.session_id`; else the conversation it goes on with; else one of its own.
Every reply names it in `x-fulgurite-rollout-id`.

**Errors** have OpenAI's shape (Anthropic's under `/v1/messages`), a message that says what to do, and `Retry-After` where waiting helps.
"""  # noqa: E501 - a table

TAGS: list[Json] = [
    {
        "name": "Model APIs",
        "description": "What agents call. Streams are server-sent events; the end of an answer "
        "waits for the log.",
    },
    {
        "name": "Rollouts and rewards",
        "description": "For whoever starts rollouts and pays them. A write answers once its "
        "event is in the log.",
    },
    {"name": "Operations", "description": "For whoever runs the gateway. No key."},
]

_INLINED = ("headers", "parameters", "responses")
"""Kinds of components that are written once in `openapi.json` and repeated where they are used."""


def _load() -> Json:
    document = msgspec.json.decode(Path(__file__).with_suffix(".json").read_bytes(), type=Json)
    return cast(Json, _inlined(document, document["components"]))


def _inlined(node: Any, components: Json) -> Any:
    """The node with what its references name in their place; schemas stay references."""
    if isinstance(node, list):
        return [_inlined(item, components) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    fields = cast(Json, node)
    kind, _, name = fields.get("$ref", "").removeprefix("#/components/").partition("/")
    if kind in _INLINED:
        return components[kind][name]
    return {field: _inlined(value, components) for field, value in fields.items()}


_DOCUMENT = _load()
_COMPONENTS: Json = _DOCUMENT["components"]
MODEL_APIS: Json = _DOCUMENT["paths"]
"""Path → its operations, of the model APIs."""

WRITE_ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 429, 503)
"""Statuses of a REST route with a body."""
READ_ERRORS = (401, 403)


def documented(*keys: str, errors: Iterable[int], reply: str | None = None) -> dict[str, Any]:
    """Arguments of `add_api_route` for what FastAPI cannot know of a route: its keys, its errors
    and an example of its reply. All are names in `openapi.json`.
    """
    named = _COMPONENTS["responses"]
    responses: dict[int, Json] = {status: named[str(status)] for status in errors}
    if reply is not None:
        responses[201] = named[reply]
    return {
        "responses": responses,
        "openapi_extra": {"security": [{key: []} for key in keys]},
    }


def describe(app: FastAPI) -> None:
    """Make the app's OpenAPI document; it is built at its first request."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue] - FastAPI's documented way


def _document(app: FastAPI) -> Json:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        tags=app.openapi_tags,
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    components["securitySchemes"] = _COMPONENTS["securitySchemes"]
    schemas = components.setdefault("schemas", {})
    schemas |= _COMPONENTS["schemas"]
    _remove_422(document["paths"], schemas)
    document["paths"] = MODEL_APIS | document["paths"]
    return document


def _remove_422(paths: Json, schemas: Json) -> None:
    """Remove FastAPI's own validation error: the gateway answers 400 in OpenAI's shape."""
    for methods in paths.values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)


def package_version() -> str:
    """The installed version; 0 in a checkout."""
    try:
        return version("fulgurite")
    except PackageNotFoundError:
        return "0"
