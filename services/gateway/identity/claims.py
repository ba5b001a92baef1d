"""What a scoped key says: which rollout a caller is, and what it may do."""

from __future__ import annotations

import msgspec

from fulgurite.enums import Mode


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a scoped key says, and its signature proves."""

    rollout: str
    attempt: int
    group: str
    agent: str
    mode: Mode
    scopes: tuple[str, ...]
    exp: int
    """Deadline plus grace, Unix milliseconds."""
    alias: str = ""
    """Alias that `served_by` stands in for, or whose prompt `prompt_version` is."""
    served_by: str = ""
    """What answers the rollout's calls for `alias`: another alias or a version; empty: `alias`."""
    prompt_version: str = ""
    """Version of the prompt of `alias` that its calls are served with, or `none`; empty: the one in
    force.
    """
