"""The applier's settings."""

from __future__ import annotations

import pytest

from services.applier.settings import ApplierSettings


@pytest.mark.parametrize("given", ["http://vllm:8000", "http://vllm:8000/", "http://vllm:8000/v1"])
def test_the_base_url_has_no_v1(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", given)
    monkeypatch.setenv("FULGURITE_APPLIER_PROBE_TOLERANCE", "0.2")
    settings = ApplierSettings()  # pyright: ignore[reportCallIssue]
    assert (settings.vllm_base_url, settings.probe_tolerance) == ("http://vllm:8000", 0.2)


def test_of_several_backends_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", "east=http://a:8000,west=http://b:8000")
    monkeypatch.setenv("FULGURITE_BACKEND", "west")
    monkeypatch.setenv("FULGURITE_LORA_POLICIES", "writer, checker")
    settings = ApplierSettings()  # pyright: ignore[reportCallIssue]
    assert (settings.backend, settings.vllm_base_url, settings.adapters()) == (
        "west",
        "http://b:8000",
        ("writer", "checker"),
    )
    monkeypatch.setenv("FULGURITE_BACKEND", "north")
    with pytest.raises(
        ValueError, match="FULGURITE_BACKEND=north: VLLM_BASE_URL has no such backend"
    ):
        ApplierSettings()  # pyright: ignore[reportCallIssue]


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    assert "very-secret" not in repr(ApplierSettings())  # pyright: ignore[reportCallIssue]
