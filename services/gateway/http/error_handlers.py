"""The app's exception handlers: every error is JSON in the API's shape and says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from services.common.runtime import logs
from services.gateway.dialects.anthropic_errors import AnthropicErrors
from services.gateway.dialects.openai_errors import openai_error_body
from services.gateway.errors import ExpiredKey, GatewayError, InvalidRequest, NotFound, clipped
from services.gateway.http.error_responses import error_headers
from services.gateway.http.reply_headers import rollout_header

log = logs.get(__name__)

_MAX_NAMED_FIELDS = 20
"""Wrong fields that one error lists."""
_NOT_FOUND, _METHOD_NOT_ALLOWED = 404, 405


def add_error_handlers(app: FastAPI) -> None:
    """Register a handler for each kind of exception."""
    app.add_exception_handler(GatewayError, on_gateway_error)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_unexpected_error)


async def on_gateway_error(request: Request, error: Exception) -> Response:
    """Reply with an error of the gateway's own, in OpenAI's shape."""
    if not isinstance(error, GatewayError):
        error = GatewayError("The gateway failed. Its log says why; try again.")
    if isinstance(error, ExpiredKey):
        request.state.rollout_id = error.claims.rollout
    return Response(
        openai_error_body(error),
        error.status,
        {**error_headers(error), **rollout_header(request)},
        "application/json",
    )


async def on_invalid_body(request: Request, error: Exception) -> Response:
    """Reply with every field that pydantic found to be wrong."""
    details: Sequence[Mapping[str, Any]] = (
        cast("Sequence[Mapping[str, Any]]", error.errors())
        if isinstance(error, RequestValidationError)
        else ()
    )
    return await on_gateway_error(request, invalid_fields(details))


def invalid_fields(details: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The error that lists pydantic's findings, each with the field's name."""
    fields = [_field_name(detail) for detail in details]
    findings = [
        f"{f'`{field}`' if field else 'The body'}: {clipped(str(detail.get('msg', 'invalid')))}"
        for field, detail in zip(fields, details, strict=True)
    ]
    listed = "; ".join(findings[:_MAX_NAMED_FIELDS]) or "The request is invalid"
    left_out = len(findings) - _MAX_NAMED_FIELDS
    more = f"; {left_out} more" if left_out > 0 else ""
    return InvalidRequest(
        f"{listed}{more}. See /docs for the fields.", param=next(filter(None, fields), None)
    )


def _field_name(detail: Mapping[str, Any]) -> str:
    return clipped(
        ".".join(str(part) for part in detail.get("loc", ()) if part not in ("body", "header"))
    )


async def on_http_error(request: Request, error: Exception) -> Response:
    """Reply to unknown paths and methods, and to what the framework itself refuses."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    problem: GatewayError
    if status in (_NOT_FOUND, _METHOD_NOT_ALLOWED):
        problem = NotFound(
            f"No route {clipped(request.method)} {clipped(request.url.path)}. "
            "Agents use /v1/chat/completions, /v1/responses or /v1/messages; see /docs for the "
            "rest."
        )
    else:
        reason = error.detail if isinstance(error, HTTPException) else error
        problem = InvalidRequest(f"{reason}. See /docs for the fields of this route.")
    problem.status = status
    if "/v1/messages" in request.url.path:
        return Response(
            AnthropicErrors().error_body(problem),
            status,
            error_headers(problem),
            "application/json",
        )
    return await on_gateway_error(request, problem)


async def on_unexpected_error(request: Request, error: Exception) -> Response:
    """Log a bug with its traceback, and reply with status 500."""
    log.error("unexpected error", path=request.url.path, exc_info=error)
    return await on_gateway_error(
        request,
        GatewayError("The gateway failed. Its log says why; try again.", code="internal_error"),
    )
