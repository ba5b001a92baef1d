"""VLLM_BASE_URL as one address, as a list, with names."""

from __future__ import annotations

import pytest

from services.common.runtime.backends import one_backend, parse_backends


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a:8000/v1/", {"vllm": "http://a:8000"}),
        ("http://a:8000, http://b:8000/", {"a:8000": "http://a:8000", "b:8000": "http://b:8000"}),
        ("east=http://a:8000/v1,west=https://b", {"east": "http://a:8000", "west": "https://b"}),
        ("east=http://a:8000", {"east": "http://a:8000"}),
        ("http://a:8000/?x=1", {"vllm": "http://a:8000/?x=1"}),
    ],
)
def test_the_forms_of_an_address(text: str, expected: dict[str, str]) -> None:
    assert parse_backends(text, "vllm") == expected


@pytest.mark.parametrize("text", ["", " , ", "a:8000", "east=a", "east=http://a,east=http://b"])
def test_what_makes_no_sense_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="VLLM_BASE_URL"):
        parse_backends(text, "vllm")


def test_an_applier_finds_its_own() -> None:
    assert one_backend("http://a", "whatever") == ("whatever", "http://a")
    assert one_backend("east=http://a", "vllm") == ("east", "http://a")
    assert one_backend("east=http://a,west=http://b", "west") == ("west", "http://b")
    assert one_backend("http://a:1,http://b:1", "b:1") == ("b:1", "http://b:1")
    with pytest.raises(ValueError, match="FULGURITE_BACKEND"):
        one_backend("east=http://a,west=http://b", "vllm")
