"""The F1 score of the answer's words against those of the nearest reference.

SQuAD's score (Rajpurkar et al., 2016), with its normalisation. For the reference "Denver Broncos of
Denver" and the answer "the Denver Broncos": 2 words in common, precision 2/2, recall 2/4, F1 =
0.67.
"""

from __future__ import annotations

from collections import Counter

from fulgurite.episodes.view import EpisodeView
from services.rewards.builtin.answers import answer_of, references_of
from services.rewards.builtin.exact_match import normalised


def reward(episode: EpisodeView, reference: str, after: str) -> float:
    """In [0, 1]. Raises RewardFailed for a task without the field `reference`."""
    answer = normalised(answer_of(episode, after)).split()
    return max(_f1(answer, normalised(one).split()) for one in references_of(episode, reference))


def _f1(answer: list[str], expected: list[str]) -> float:
    if not answer or not expected:
        return float(answer == expected)
    common = (Counter(answer) & Counter(expected)).total()
    return 2 * common / (len(answer) + len(expected))
