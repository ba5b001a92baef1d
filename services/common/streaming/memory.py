"""What an event takes in memory."""

from __future__ import annotations

import sys

from fulgurite.events import LlmCall

EVENT_BYTES = 4_000
"""An event without its texts and tokens, as objects in memory."""

_CLAIM_BYTES = 300
"""The address of a text that lies outside Kafka, beside its URI."""

_CHOICE_BYTES = 200
"""A choice without its texts and tokens, beyond the first, which is among those."""


def call_weight(call: LlmCall) -> int:
    """Return the bytes that a call takes in memory, roughly.

    A text of other than European characters takes up to four for each.
    """
    weight = (
        EVENT_BYTES
        + sys.getsizeof(call.request)
        + sys.getsizeof(call.response)
        + sys.getsizeof(call.error)
        + len(call.prompt_token_ids or b"")
        + _CHOICE_BYTES * max(0, len(call.choices) - 1)
        + sum(_CLAIM_BYTES + len(claim.uri) for claim in call.pieces)
    )
    for choice in call.choices:
        weight += (
            sys.getsizeof(choice.message)
            + len(choice.token_ids or b"")
            + len(choice.logprobs or b"")
        )
    return weight
