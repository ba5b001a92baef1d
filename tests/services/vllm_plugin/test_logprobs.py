"""How vLLM's log-probabilities cross between its processes. Its classes are played by others of the
same shape; `tests/integration/test_gateway_capture.py` has the real ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from services.local_stack.vllm_settings import VllmSettings
from services.vllm_plugin import logprobs

IDS = np.array([[7, 1], [9, 2]], np.int32)
VALUES = np.array([[-0.1, -0.2], [-np.inf, -0.4]], np.float32)
RANKS = np.array([1, 3])


def classes() -> tuple[Any, Any, Any]:
    """`LogprobsLists`, `LogprobsTensors` and `LogprobsProcessor`, new ones."""

    class Lists(NamedTuple):
        logprob_token_ids: NDArray[np.int32]
        logprobs: NDArray[np.float32]
        sampled_token_ranks: NDArray[np.int64]
        cu_num_generated_tokens: list[int] | None = None

    class Tensors:
        def tolists(self, counts: list[int] | None = None) -> Any:
            return Lists(IDS, VALUES, RANKS, counts)

    class Explaining:
        def __init__(self) -> None:
            self.explained: Any = None

        def _update_sample_logprobs(self, lists: Any) -> None:
            self.explained = [
                (ids.tolist(), values.tolist(), rank.tolist())
                for ids, values, rank in zip(*lists[:3], strict=True)
            ]

    return Lists, Tensors, Explaining


def test_plain_lists_cross_between_processes_and_are_the_same_numbers() -> None:
    lists, tensors, explaining = classes()
    by_vllm = explaining()
    by_vllm._update_sample_logprobs(tensors().tolists())
    logprobs.patch(lists, tensors, explaining)
    logprobs.patch(lists, tensors, explaining)
    sent = tensors().tolists([0, 1, 2])
    # Without hooks: Python is not called for any of it.
    come = msgspec.msgpack.Decoder(lists | None).decode(msgspec.msgpack.Encoder().encode(sent))
    assert come == sent == lists(IDS.tolist(), VALUES.tolist(), [1, 3], [0, 1, 2])
    explained = explaining()
    explained._update_sample_logprobs(come)
    assert explained.explained == by_vllm.explained


def test_the_numbers_of_a_request_are_kept_and_not_explained() -> None:
    lists, tensors, explaining = classes()
    logprobs.patch(lists, tensors, explaining)
    processor, other = explaining(), explaining()
    numbers = logprobs.numbers_only(processor)
    processor._update_sample_logprobs(tensors().tolists())
    assert processor.explained is None
    assert numbers.packed([7, 9], 0) == np.array([-0.1, -9999], "<f4").tobytes()
    assert numbers.packed([9], 1) == np.array([-9999], "<f4").tobytes()
    assert numbers.packed([7, 8], 0) == numbers.packed([9, 9], 1) == b""
    other._update_sample_logprobs(tensors().tolists())
    assert other.explained, "another request's are explained as ever"


@pytest.mark.parametrize(
    ("value", "on"), [(None, True), ("", True), ("true", True), ("false", False), ("0", False)]
)
def test_the_setting_means_here_what_it_means_to_the_local_stack(
    monkeypatch: pytest.MonkeyPatch, value: str | None, on: bool
) -> None:
    monkeypatch.delenv(logprobs.SETTING, raising=False)
    if value is not None:
        monkeypatch.setenv(logprobs.SETTING, value)
    assert logprobs.is_on() is VllmSettings.read().fast_logprobs is on
