"""Keys do not get into texts that people read."""

from __future__ import annotations

import pytest

from services.common.runtime.logs import hidden
from services.common.runtime.redaction import without_secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcdefgh was refused", "Authorization: [hidden] was refused"),
        ("Incorrect API key provided: sk-proj-0123456789.", "Incorrect API key provided: [hidden]"),
        ("key fg-0123456789abcdef", "key [hidden]"),
        ("token hf_0123456789abcdef", "token [hidden]"),
        ("push with ghp_0123456789abcdef", "push with [hidden]"),
        ("cannot reach redis://:secret@host:6379/0", "cannot reach redis://[hidden]@host:6379/0"),
        ("cannot reach https://me:secret@host/v1", "cannot reach https://[hidden]@host/v1"),
        ("a risk-assessment at http://host:8080/v1", "a risk-assessment at http://host:8080/v1"),
        ("the bearer came late", "the bearer came late"),
    ],
)
def test_what_looks_like_a_key_is_hidden(text: str, expected: str) -> None:
    assert without_secrets(text) == expected
    assert hidden(text) == expected
