"""From any id that names a group (a group, rollout, attempt or completion) to what the log holds of
it.
"""

from __future__ import annotations

import re

from fulgurite.avro.codec import Codec
from fulgurite.ids import MalformedId, parse_completion, parse_rollout
from services.replay.errors import BadArgument, NotFound
from services.replay.groups import Group, read_groups
from services.replay.records import Source


def group_of(name: str) -> tuple[str, str | None]:
    """The group of an id, and its rollout if the id names one. Raises BadArgument."""
    bare = re.sub(r"/\d+$", "", name.partition("#")[0])
    if bare.startswith("gr_"):
        return bare, None
    try:
        found = parse_rollout(bare) if bare.startswith("ro_") else parse_completion(bare).rollout
    except MalformedId as error:
        raise BadArgument(f"{name!r} is no id of a group, a rollout or a call: {error}") from error
    return found.group_id, found.rollout_id


def find_group(source: Source, codec: Codec, group_id: str) -> Group:
    """Raises NotFound, LogUnavailable, BadArchive."""
    for group in read_groups(source, codec, keys={group_id}):
        return group
    raise NotFound(f"the log holds nothing of group {group_id}")
