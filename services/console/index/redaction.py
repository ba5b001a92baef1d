"""Removes what looks like a key from the texts of errors and messages.

Upstreams repeat keys in their errors ("Incorrect API key provided: sk-..."). The index is read by
more people than the log.
"""

from __future__ import annotations

import re

_REMOVED = "[removed]"
_SECRET = re.compile(
    r"(?i:\bbearer\s+)\S+"
    # Keys of Fulgurite, model providers and code hosts: a known beginning, then chance.
    r"|\b(?:fg-|sk-|hf_|gh[opsu]_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_.*-]{12,}"
    r"|\b(?:AKIA[A-Z0-9]{12,}|AIza[A-Za-z0-9_-]{20,})"
    # A password within an address.
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def without_secrets(text: str) -> str:
    """Replace what looks like a key by `[removed]`."""
    return _SECRET.sub(_REMOVED, text)
