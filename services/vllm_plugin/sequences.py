"""Collects what vLLM's engine generates for one HTTP request: versions, ids, log-probabilities.

They are the engine's own. `follow` makes the engine's output processor add each sequence to the
request that started it. Besides vLLM's `RequestState`s it reads nothing but the numbers of
`services.vllm_plugin.logprobs`.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any

from fulgurite.tokens import pack_ids, pack_logprobs
from fulgurite.versions import MalformedVersion, Version, base_version, parse_version
from services.vllm_plugin.logprobs import LOWEST, Numbers, is_on, numbers_only

UNTOUCHED = "default"
"""vLLM's name for the weights that it was started with."""


class Sequence:
    """A `RequestState` of vLLM, and how much of it was reported."""

    def __init__(self, state: Any, numbers: Numbers | None = None) -> None:
        """`numbers`: where its log-probabilities are; without them, in the state itself."""
        self.state = state
        self._numbers = numbers
        self._reported = 0
        self._prompt_reported = False

    def news(self) -> tuple[bytes, bytes, bytes] | None:
        """Return new packed prompt ids, ids and log-probabilities; None without new ids.

        The prompt's ids come only the first time.
        """
        ids: list[int] = (
            self.state.detokenizer.output_token_ids[self._reported :]
            if self.state.detokenizer is not None
            else []
        )
        if not ids:
            return None
        logprobs = self._logprobs(ids)
        self._reported += len(ids)
        prompt = b"" if self._prompt_reported else pack_ids(self.state.prompt_token_ids or ())
        self._prompt_reported = True
        return prompt, pack_ids(ids), logprobs

    def _logprobs(self, ids: list[int]) -> bytes:
        if self._numbers is not None:
            return self._numbers.packed(ids, self._reported)
        processor = self.state.logprobs_processor
        known = None if processor is None else processor.logprobs
        if known is None or len(known) < self._reported + len(ids):
            return b""
        try:
            return pack_logprobs(
                [
                    max(known[self._reported + number][token].logprob, LOWEST)
                    for number, token in enumerate(ids)
                ]
            )
        except (KeyError, TypeError):
            return b""


class Sequences:
    """The sequences of one HTTP request."""

    def __init__(self, *, wanted: bool = False) -> None:
        """`wanted`: whether ids and log-probabilities are wanted, not only versions."""
        self.wanted = wanted
        self._sequences: list[Sequence] = []
        self._labels: set[str] = set()
        self._versions: tuple[Version, Version] | None = None

    def add(self, state: Any, numbers: Numbers | None = None) -> None:
        """Add a sequence that begins."""
        self._sequences.append(Sequence(state, numbers))

    def first_and_last(self) -> tuple[Version, Version] | None:
        """The first and last version that the engine reports (`weight_version_starts`); None
        without tokens. The version of an adapter is its name.
        """
        states = [sequence.state for sequence in self._sequences]
        labels = {
            getattr(state, "lora_name", None) or label
            for state in states
            for label, _ in state.weight_version_starts
        }
        if labels != self._labels:
            versions = sorted(map(_version, labels))
            self._labels, self._versions = labels, (versions[0], versions[-1])
        return self._versions

    def news(self) -> list[tuple[int, tuple[bytes, bytes, bytes]]]:
        """Return what is new in each sequence, with its number."""
        return [
            (number, new)
            for number, sequence in enumerate(self._sequences)
            if (new := sequence.news()) is not None
        ]


def _version(label: str) -> Version:
    if label == UNTOUCHED:
        return base_version(os.environ.get("FULGURITE_POLICY", "policy"))
    try:
        return parse_version(label)
    except MalformedVersion:
        # Weights that were loaded under another name sort before all versions.
        return Version(label, -1, -1)


current: ContextVar[Sequences | None] = ContextVar("fulgurite_sequences", default=None)
"""The sequences of the current HTTP request."""


def follow(engine: Any) -> None:
    """Make the engine's output processor add each sequence to its request. Idempotent."""
    processor = engine.output_processor
    if getattr(processor, "_fulgurite", False):
        return
    add_request = processor.add_request

    def adding(request: Any, *args: Any, **kwargs: Any) -> None:
        sequences = current.get()
        asks = (
            sequences is not None
            and sequences.wanted
            and _ask_for_logprobs(request.sampling_params)
        )
        add_request(request, *args, **kwargs)
        state = processor.request_states.get(request.request_id)
        if sequences is not None and state is not None:
            only_here = asks and is_on()
            sequences.add(state, numbers_only(state.logprobs_processor) if only_here else None)

    processor.add_request = adding
    processor._fulgurite = True


def _ask_for_logprobs(params: Any) -> bool:
    """Those of the sampled tokens, before the engine gets the request; what the API's own fields
    asked for goes first. Returns whether nobody else wants them.
    """
    if params is None or params.logprobs is not None or params.logprob_token_ids:
        return False
    params.logprobs = 0
    return True
