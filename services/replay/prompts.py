"""Gives recorded calls the requests that were served, where a prompt version edited them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.episodes.stitching import Input
from fulgurite.errors import CodecError
from fulgurite.events import LlmCall
from fulgurite.prompts.editing import served_call
from fulgurite.prompts.history import PromptHistory
from fulgurite.topics import PROMPT_UPDATES
from services.common.blobs.blob_store import redeemed
from services.replay.groups import Group
from services.replay.log_source import DOWNSTREAM_FIRST
from services.replay.records import Source

WITH_PROMPTS = (*DOWNSTREAM_FIRST, PROMPT_UPDATES)
"""Topics of a source that is read for prompt versions, too."""


def read_prompts(source: Source, codec: Codec) -> PromptHistory:
    """Read every prompt version of a source that was opened `WITH_PROMPTS`.

    Records that cannot be decoded are left out.
    """
    history = PromptHistory()
    for raw in source.read((PROMPT_UPDATES,), 0):
        try:
            history.apply(codec.decode(raw.value))
        except CodecError:
            continue
    return history


def with_served_requests(
    group: Group, prompts: PromptHistory, complete: Callable[[LlmCall], LlmCall] = redeemed
) -> Group:
    """The group with what was served in place of what agents sent. Raises BadClaim.

    `complete`: restores a call's payload, which may be stored elsewhere.
    """

    def served(event: Input) -> Input:
        if not isinstance(event, LlmCall) or event.prompt_version is None:
            return event
        return served_call(complete(event), prompts)

    inputs = {
        key: {event_id: served(event) for event_id, event in events.items()}
        for key, events in group.inputs.items()
    }
    return msgspec.structs.replace(group, inputs=inputs)
