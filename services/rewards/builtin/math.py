r"""1 if the answer is mathematically the same as one of the references, else 0.

By `math-verify`: the last formula of the answer (LaTeX, \boxed{...}, or plain) is compared by value
and form: for the reference "1/2", "so it is $\frac{2}{4}$" → 1, "0.5" → 1, "2" → 0. Evaluation is
symbolic, nothing is executed. What takes longer than `timeout_s` is worth 0.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from math_verify import parse, verify  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from fulgurite.episodes.view import EpisodeView
from services.rewards.builtin.answers import answer_of, references_of
from services.rewards.builtin.bounded import within
from services.rewards.errors import RewardFailed

# It would warn that the time limit is left to us.
logging.getLogger("math_verify").setLevel(logging.ERROR)


def reward(episode: EpisodeView, reference: str, after: str, timeout_s: float) -> float:
    """In {0, 1}. Raises RewardFailed for a task without the field `reference`, or with one that is
    no mathematics.
    """
    golds = [_gold(one) for one in references_of(episode, reference)]
    answer = answer_of(episode, after)
    return within(timeout_s, lambda: _worth(golds, answer))


def _worth(golds: list[list[Any]], answer: str) -> float:
    parsed = _parsed(answer)
    return float(any(verify(gold, parsed, timeout_seconds=None) for gold in golds))


def _gold(text: str) -> list[Any]:
    parsed = _parsed(text) or _parsed(f"${text}$")
    if all(isinstance(form, str) for form in parsed):
        raise RewardFailed(
            f"the reference {text[:80]!r} is no mathematics that math-verify can read"
        )
    return parsed


def _parsed(text: str) -> list[Any]:
    # The time limit is ours; its own would need signals.
    return cast("list[Any]", parse(text, parsing_timeout=cast(int, None)))
