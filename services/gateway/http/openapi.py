"""`/openapi.json`, and `/docs` made of it: the REST routes as FastAPI knows them, the model APIs
beside them, keys, errors, headers.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.gateway.http.openapi_calls import CALLS, CallDoc, Json, body_schema

_ABOUT = """An agent's endpoint that records every call in Kafka before its answer is complete.

An agent in any framework sets its base URL and its key, nothing else:

    OPENAI_BASE_URL=http://gateway:8080/v1   OPENAI_API_KEY=<a rollout's api_key, or a plain key>

**Which rollout a call belongs to**: the key's own; else the path `/rollouts/{name}/v1/…` (`/agents/{role}/v1/…` names the role; both can be
combined); else the header `x-fulgurite-rollout`; else `metadata.session_id`; else the conversation it goes on with; else one of its own.
Every reply names it in `x-fulgurite-rollout-id`.

**Errors** have OpenAI's shape (Anthropic's under `/v1/messages`), a message that says what to do, and `Retry-After` where waiting helps.
"""  # noqa: E501 - a table

_TAGS: list[Json] = [
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

_SCHEMES: Json = {
    "agentKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A rollout's `api_key`, or one of FULGURITE_API_KEYS.",
    },
    "anthropicKey": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same keys, as Anthropic's clients send them.",
    },
    "rewardKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "A rollout's `reward_key`: agents do not have it.",
    },
    "adminKey": {"type": "http", "scheme": "bearer", "description": "FULGURITE_ADMIN_KEY."},
}

_MEANINGS = {
    400: "The request makes no sense; the message says what to change.",
    401: "No key, an unknown key, or a rollout's key after its deadline.",
    403: "A good key for something else.",
    404: "Unknown model, rollout, response or path.",
    409: "This idempotency key came with another payload before.",
    408: "The body did not arrive within FULGURITE_REQUEST_TIMEOUT_S.",
    413: "The body has more bytes, or more JSON values, than are taken.",
    415: "Compressed in a way that is not read here; `Accept-Encoding` lists those that are.",
    429: "Over this key's limits, or the model server's: come back after `Retry-After`.",
    502: "The model server cannot be reached, or its answer broke off.",
    503: "The log cannot take the call, or no place at the model server: nothing was "
    "generated, or it is withheld; see `Retry-After`.",
    504: "The model server was silent for too long.",
}
_OF_CALLS = (400, 401, 403, 404, 408, 413, 415, 429, 502, 503, 504)
_OF_WRITES = (400, 401, 403, 404, 408, 409, 413, 415, 429, 503)

_KEYS: dict[str, list[Json]] = {
    "/v1/rollouts": [{"adminKey": []}],
    "/v1/rollouts/{rollout}/attempts": [{"adminKey": []}],
    "/v1/rollouts/{rollout}/status": [{"agentKey": []}, {"adminKey": []}],
    "/v1/rewards": [{"rewardKey": []}, {"adminKey": []}],
    "/v1/policies": [{"agentKey": []}, {"adminKey": []}],
}

_REPLIES: dict[str, Json] = {
    "/v1/rollouts": {
        "group_id": "gr_…",
        "deadline": 1_700_000_600_000,
        "mode": "train",
        "alias": "policy",
        "policy": "policy",
        "rollouts": [
            {
                "rollout_id": "ro_…",
                "index": 0,
                "attempt": 0,
                "base_url": "http://gateway:8080/v1",
                "api_key": "fg-…",
                "reward_key": "fg-…",
            }
        ],
    },
    "/v1/rollouts/{rollout}/status": {
        "status_id": "ev_…",
        "rollout_id": "ro_…",
        "attempt": 0,
        "kind": "finished",
    },
    "/v1/rewards": {
        "reward_id": "ev_…",
        "rollout_id": "ro_…",
        "completion_id": None,
        "name": "correct",
        "value": 1.0,
    },
}

_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
    "example": {
        "error": {
            "message": "No API key: send …",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
    },
}
_ANTHROPIC_ERROR: Json = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
    "example": {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "Unknown model 'x'. This gateway serves: policy.",
        },
    },
}

_REPLY_HEADERS: Json = {
    "x-fulgurite-rollout-id": {
        "description": "The rollout that the call belongs to.",
        "schema": {"type": "string"},
    },
    "x-fulgurite-version": {
        "description": "The version of the policy that answered.",
        "schema": {"type": "string"},
    },
}


def describe(app: FastAPI) -> None:
    """Make the app's OpenAPI page; built at its first request."""

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _page(app)
        return app.openapi_schema

    app.openapi = openapi  # pyright: ignore[reportAttributeAccessIssue] - FastAPI's documented way


def _page(app: FastAPI) -> Json:
    page = get_openapi(
        title="Fulgurite gateway",
        version=_version(),
        description=_ABOUT,
        tags=_TAGS,
        routes=app.routes,
    )
    components = page.setdefault("components", {})
    components["securitySchemes"] = _SCHEMES
    schemas = components.setdefault("schemas", {})
    schemas |= {"Error": _ERROR, "AnthropicError": _ANTHROPIC_ERROR}
    for path, methods in page["paths"].items():
        for operation in methods.values():
            _complete(path, operation)
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    page["paths"] = (
        {call.path: {"post": _call(call)} for call in CALLS}
        | _recorded()
        | _models()
        | page["paths"]
    )
    return page


def _complete(path: str, operation: Json) -> None:
    """What FastAPI cannot know of a REST route: its key, its errors, what it answers."""
    keys = _KEYS.get(path)
    operation["tags"] = ["Operations" if keys is None else "Rollouts and rewards"]
    parameters = [
        p
        for p in operation.get("parameters", [])
        if p["name"].lower() not in ("authorization", "x-api-key")
    ]
    operation.pop("parameters", None)
    if parameters:
        operation["parameters"] = parameters
    operation["responses"].pop("422", None)
    if keys is None:
        return
    operation["security"] = keys
    operation["responses"] |= _errors(
        _OF_WRITES if "requestBody" in operation else (401, 403), "Error"
    )
    if path in _REPLIES:
        operation["responses"]["201"]["content"] = {"application/json": {"example": _REPLIES[path]}}


def _call(call: CallDoc) -> Json:
    content: Json = {"application/json": {"schema": {"type": "object"}, "example": call.reply}}
    if call.stream is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "example": call.stream}
    return {
        "tags": ["Model APIs"],
        "summary": call.summary,
        "description": call.text,
        "operationId": call.path.removeprefix("/v1/").replace("/", "_"),
        "security": [
            {"agentKey": []},
            {"adminKey": []},
            *([{"anthropicKey": []}] if call.anthropic else []),
        ],
        "parameters": _PARAMETERS,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body_schema(call), "example": call.request}},
        },
        "responses": {
            "200": {
                "description": "The model server's answer.",
                "headers": _REPLY_HEADERS,
                "content": content,
            },
            **_errors(_OF_CALLS, "AnthropicError" if call.anthropic else "Error"),
        },
    }


_PARAMETERS: list[Json] = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string", "maxLength": 256},
    }
    for name, text in (
        ("x-fulgurite-rollout", "The rollout, by id or by a name of your own."),
        ("x-fulgurite-agent", "The agent's role."),
        (
            "x-fulgurite-keep-alive",
            "Longest silence of a stream in seconds, 0.1 to 3600; 0: as long as it takes.",
        ),
        ("traceparent", "W3C trace context; the call's span joins it."),
    )
]


def _models() -> Json:
    example = {
        "object": "list",
        "data": [
            {
                "id": "policy",
                "object": "model",
                "created": 0,
                "owned_by": "fulgurite",
                "policy": "policy",
            }
        ],
    }
    answer = {
        "description": "The aliases.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": example}},
    }
    listing: Json = {
        "tags": ["Model APIs"],
        "summary": "Models",
        "description": "What may stand in `model`.",
        "operationId": "models",
        "security": [{"agentKey": []}, {"adminKey": []}, {"anthropicKey": []}],
        "responses": {"200": answer, **_errors((401,), "Error")},
    }
    return {"/v1/models": {"get": listing}}


def _recorded() -> Json:
    example = next(call.reply for call in CALLS if call.path == "/v1/responses")
    answer = {
        "description": "The response.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": example}},
    }
    reading: Json = {
        "tags": ["Model APIs"],
        "summary": "A recorded response",
        "description": "As it was answered, to whoever may build on it (`previous_response_id`).",
        "operationId": "recorded_response",
        "security": [{"agentKey": []}, {"adminKey": []}],
        "parameters": [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ],
        "responses": {"200": answer, **_errors((401, 404, 503), "Error")},
    }
    return {"/v1/responses/{id}": {"get": reading}}


def _errors(statuses: tuple[int, ...], shape: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {
        str(status): {"description": _MEANINGS[status], "content": content} for status in statuses
    }


def _version() -> str:
    try:
        return version("fulgurite")
    except PackageNotFoundError:
        return "0"
