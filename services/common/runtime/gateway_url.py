"""The gateway's address, as people write it: OpenAI's clients want it with `/v1`, ours without.
Both are taken for either.
"""

from __future__ import annotations


def root_of(url: str) -> str:
    """Without `/v1` and slashes at its end."""
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
