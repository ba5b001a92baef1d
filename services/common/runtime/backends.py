"""Where the vLLM backends are: VLLM_BASE_URL, one address, a list of them, or names with addresses.
Gateway, applier and CLI read it alike.

`http://a:8000` is one backend with the name given beside it (FULGURITE_BACKEND); of
`http://a:8000,http://b:8000` each is called by its host and port, `a:8000`;
`east=http://a:8000,west=http://b:8000` have names of their own. Pure.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(https?://.+)")


def parse_backends(text: str, name: str) -> dict[str, str]:
    """Backend → base URL without `/v1`, in order. Raises ValueError."""
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
            raise ValueError(f"VLLM_BASE_URL: two backends are called {backend!r}")
        found[backend] = url.rstrip("/").removesuffix("/v1")
    return found


def one_backend(text: str, name: str) -> tuple[str, str]:
    """Name and address of the backend called `name`, or of the only one whatever it is called.
    Raises ValueError.
    """
    backends = parse_backends(text, name)
    if len(backends) == 1:
        return next(iter(backends.items()))
    if name not in backends:
        raise ValueError(
            f"VLLM_BASE_URL has {', '.join(backends)}, and no {name!r}: set FULGURITE_BACKEND "
            "to one of them"
        )
    return name, backends[name]
