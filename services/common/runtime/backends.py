"""Parses VLLM_BASE_URL: one address, a list of addresses, or names with addresses. No I/O.

`http://a:8000` is one backend, named by FULGURITE_BACKEND. The backends of
`http://a:8000,http://b:8000` are named by host and port, `a:8000`. Those of
`east=http://a:8000,west=http://b:8000` have names of their own.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(https?://.+)")


def parse_backends(text: str, name: str) -> dict[str, str]:
    """Parse backends into base URLs without `/v1` by name, in order. Raises ValueError."""
    parts = [part for part in (part.strip() for part in text.split(",")) if part]
    if not parts:
        raise ValueError("VLLM_BASE_URL names no backend: set it to vLLM's address, without /v1")
    found: dict[str, str] = {}
    for part in parts:
        match = _NAMED.fullmatch(part)
        backend, url = (
            (match[1], match[2])
            if match
            else (name if len(parts) == 1 else urlsplit(part).netloc, part)
        )
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"VLLM_BASE_URL: {part!r} is neither http://host:port nor name=http://host:port"
            )
        if backend in found:
            raise ValueError(
                f"VLLM_BASE_URL: two backends are named {backend!r}; give each a name of its own"
            )
        found[backend] = url.rstrip("/").removesuffix("/v1")
    return found


def one_backend(text: str, name: str) -> tuple[str, str]:
    """Name and address of the backend `name`, or of the only backend. Raises ValueError."""
    backends = parse_backends(text, name)
    if len(backends) == 1:
        return next(iter(backends.items()))
    if name not in backends:
        raise ValueError(
            f"FULGURITE_BACKEND={name}: VLLM_BASE_URL has no such backend, only "
            f"{', '.join(backends)}. Set it to one of them."
        )
    return name, backends[name]
