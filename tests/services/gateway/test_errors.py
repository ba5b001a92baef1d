"""Errors in OpenAI's shape, and how the upstream's own become ours."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.failures import FailureKind
from services.gateway.dialects.openai_errors import openai_error_body
from services.gateway.errors import InvalidRequest, Unauthorized, Unavailable, UpstreamRejected
from services.gateway.http.error_responses import error_headers


def test_the_shape() -> None:
    problem = InvalidRequest("say this", param="model", code="x")
    assert msgspec.json.decode(openai_error_body(problem)) == {
        "error": {
            "message": "say this",
            "type": "invalid_request_error",
            "param": "model",
            "code": "x",
        }
    }


def test_headers_that_clients_know() -> None:
    assert error_headers(Unavailable("x")) == {"retry-after": "1"}
    assert error_headers(Unauthorized("x")) == {"www-authenticate": "Bearer"}
    assert error_headers(UpstreamRejected("v", 429, b"{}", "7")) == {"retry-after": "7"}


@pytest.mark.parametrize(
    ("status", "said", "ours", "kind"),
    [
        (400, "maximum context length is 5", 400, FailureKind.context_overflow),
        (
            400,
            "The decoder prompt (length 9) is longer than the maximum model length of 5.",
            400,
            FailureKind.context_overflow,
        ),
        (422, "no", 422, FailureKind.unknown),
        (429, "no", 429, FailureKind.rate_limited),
        (401, "no", 502, FailureKind.infrastructure),
        (403, "no", 403, FailureKind.infrastructure),
        (404, "no", 404, FailureKind.infrastructure),
        (501, "no", 501, FailureKind.upstream_error),
        (529, "no", 529, FailureKind.upstream_error),
        (500, "no", 502, FailureKind.upstream_error),
        (503, "no", 503, FailureKind.upstream_error),
    ],
)
def test_an_upstreams_status(status: int, said: str, ours: int, kind: FailureKind) -> None:
    problem = UpstreamRejected(
        "vllm", status, msgspec.json.encode({"error": {"message": said, "code": status}})
    )
    assert (problem.status, problem.failure) == (ours, kind)
    assert said in problem.message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"message": "older"}', "older"),
        (b'{"detail": "fastapi"}', "fastapi"),
        (b"<html>", "<html>"),
        (b"", "(empty body)"),
        (b"\xff", "�"),
    ],
)
def test_an_upstreams_words_in_any_shape(body: bytes, says: str) -> None:
    assert says in UpstreamRejected("vllm", 500, body).message
