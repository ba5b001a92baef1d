"""Normalises the gateway's URL: OpenAI's clients need it with `/v1`, ours without."""

from __future__ import annotations


def root_of(url: str) -> str:
    """Remove `/v1` and slashes at the end of a URL."""
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
