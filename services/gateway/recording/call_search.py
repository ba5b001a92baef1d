"""Find one call in `llm.calls` by its id: at the place that is remembered of it, else by its key
(`log_search`). Blocking.
"""

from __future__ import annotations

import time

from fulgurite.avro.codec import Codec
from fulgurite.errors import BadClaim, BrokenDelta
from fulgurite.events import LlmCall
from fulgurite.ids import CompletionRef
from fulgurite.topics import LLM_CALLS
from services.common.blobs.blob_store import redeemed
from services.common.kafka.delivery import Delivery
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs
from services.gateway.recording.log_search import LogSearch, open_search

log = logs.get(__name__)

PATIENCE_S = 10.0
"""Seconds that records are read in search of one call."""


class CallSearch:
    """Searches the log. Each search has consumers of its own, so that several threads may search at
    once.
    """

    def __init__(
        self, settings: KafkaSettings, codec: Codec, patience_s: float = PATIENCE_S
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._patience_s = patience_s

    def find(self, ref: CompletionRef, place: Delivery | None) -> LlmCall | None:
        """The complete call with all its text; None if the log does not have it (any more). Raises
        LogUnavailable, SearchTooLong.
        """
        try:
            with open_search(self._settings, self._codec, LLM_CALLS) as search:
                found = self._found(search, ref, place)
                call = found.get(ref.completion_id)
                if call is None:
                    return None
                # A delta is expanded from its parent: one of those found, or one that is read for
                # it.
                reader = CallReader(self._settings, self._codec)
                return redeemed(reader.complete_call(call, found.get))
        except (BrokenDelta, BadClaim) as error:
            log.warning(
                "a recorded call cannot be read", call_id=ref.completion_id, error=str(error)
            )
            return None
        except OSError as error:
            raise LogUnavailable(f"the store of payloads does not answer: {error}") from error

    def _found(
        self, search: LogSearch, ref: CompletionRef, place: Delivery | None
    ) -> dict[str, LlmCall]:
        """Calls of the group by id, as the log has them, the one that is sought among them if it is
        there.
        """
        group_id = ref.rollout.group_id
        deadline = time.monotonic() + self._patience_s
        steps = (
            search.newest_first(LLM_CALLS, group_id, deadline)
            if place is None
            else [search.at(LLM_CALLS, place, group_id)]
        )
        found: dict[str, LlmCall] = {}
        for events in steps:
            found |= {event.call_id: event for event in events if isinstance(event, LlmCall)}
            if ref.completion_id in found:
                break
        return found
