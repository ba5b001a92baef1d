"""Finds a group in the log by the id of a group, rollout, attempt or completion."""

from __future__ import annotations

import re

from fulgurite.avro.codec import Codec
from fulgurite.ids import MalformedId, parse_completion, parse_rollout
from services.replay.errors import BadArgument, NotFound
from services.replay.groups import Group, read_groups
from services.replay.records import Source


def group_of(name: str) -> tuple[str, str | None]:
    """Parse an id into its group and, if it names one, its rollout. Raises BadArgument."""
    bare = re.sub(r"/\d+$", "", name.partition("#")[0])
    if bare.startswith("gr_"):
        return bare, None
    try:
        found = parse_rollout(bare) if bare.startswith("ro_") else parse_completion(bare).rollout
    except MalformedId as error:
        raise BadArgument(f"{name!r} is no id of a group, a rollout or a call: {error}") from error
    return found.group_id, found.rollout_id


def find_group(source: Source, codec: Codec, group_id: str) -> Group:
    """Rebuild a group. Raises NotFound, LogUnavailable, BadArchive."""
    for group in read_groups(source, codec, keys={group_id}):
        return group
    raise NotFound(f"the log holds nothing of group {group_id}")
