"""What a probe proves: judged by the mean of the differences, told by the largest; whatever is
beyond is not served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate, Probe
from fulgurite.tokens import pack_ids, pack_logprobs
from services.applier.engine import Engine
from services.applier.errors import ProbeFailed
from services.applier.probing import difference

TOKENS = 24
TOLERANCE = 0.15


class Says(Engine):
    """An engine that gives these log-probabilities."""

    def __init__(self, logprobs: Sequence[float]) -> None:
        super().__init__("http://nowhere")
        self._logprobs = list(logprobs)

    async def prompt_logprobs(
        self, token_ids: Sequence[int], model: str | None = None
    ) -> list[float]:
        return self._logprobs


def update() -> PolicyUpdate:
    probe = Probe(token_ids=pack_ids(range(TOKENS)), logprobs=pack_logprobs([-1.0] * (TOKENS - 1)))
    return PolicyUpdate(
        event_id="u", event_time=1, policy="policy", kind=UpdateKind.update, epoch=1, step=1, learner_id="l", trained_actions=1, probe=probe
    )  # fmt: skip


async def probed(*differences: float) -> float | None:
    logprobs = [-1.0 + value for value in differences]
    return await difference(
        Says(logprobs + [-1.0] * (TOKENS - 1 - len(logprobs))), update(), TOLERANCE
    )


async def test_one_token_may_differ_by_more_than_the_mean_and_is_told() -> None:
    assert await probed(0.01, -0.25) == pytest.approx(0.25)


async def test_a_mean_beyond_the_tolerance_fails_with_the_setting_and_the_largest() -> None:
    with pytest.raises(
        ProbeFailed,
        match=r"0\.200 on average and 0\.200 at most; the mean may be 0\.15 .*FULGURITE_APPLIER_PROBE_TOLERANCE",
    ) as told:
        await probed(*[0.2, -0.2] * 11, 0.2)
    assert told.value.largest == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
async def test_what_is_no_number_fails_and_is_not_told_as_one(wrong: float) -> None:
    with pytest.raises(ProbeFailed) as told:
        await probed(wrong)
    assert told.value.largest is None


async def test_an_answer_of_another_length_fails() -> None:
    with pytest.raises(ProbeFailed, match="has 23 log-probabilities, the engine gave 2"):
        await difference(Says([-1.0, -1.0]), update(), TOLERANCE)


async def test_without_a_probe_there_is_nothing_to_prove() -> None:
    assert await difference(Says([]), None, TOLERANCE) is None
