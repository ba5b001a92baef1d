"""Replaces what looks like a key in texts: log lines, printed events, errors in the index.

Upstreams repeat keys in their errors ("Incorrect API key provided: sk-..."), and agents write them
into messages.
"""

from __future__ import annotations

import re

HIDDEN = "[hidden]"
"""Stands for what was replaced."""

_SECRET = re.compile(
    r"(?i:\bbearer\s+)\S{8,}"
    # Keys of Fulgurite, model providers and code hosts: a known beginning, then chance.
    r"|(?i:\b(?:fg-|sk-))[A-Za-z0-9._~+/=*-]{8,}"
    r"|\b(?:hf_|gh[opsu]_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_.*-]{12,}"
    r"|\b(?:AKIA[A-Z0-9]{12,}|AIza[A-Za-z0-9_-]{20,})"
    # A password within an address; Redis has them without a user.
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)


def without_secrets(text: str) -> str:
    """Replace what looks like a key by `[hidden]`."""
    return _SECRET.sub(HIDDEN, text)
