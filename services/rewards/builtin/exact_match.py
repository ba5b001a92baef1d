"""1 if the answer is one of the references, else 0.

With `normalise=squad`, the default, case, punctuation, articles and white space don't count, as in
SQuAD's exact match (Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of
Text", 2016, and its evaluation script). For the reference "The Eiffel Tower": "eiffel tower." → 1,
"the tower" → 0.
"""

from __future__ import annotations

import re
import string

from fulgurite.episodes.view import EpisodeView
from services.rewards.builtin.answers import answer_of, references_of

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def reward(episode: EpisodeView, reference: str, after: str, normalise: str) -> float:
    """In {0, 1}. Raises RewardFailed for a task without the field `reference`."""
    same = normalised if normalise == "squad" else str.strip
    answer = same(answer_of(episode, after))
    return float(any(answer == same(one) for one in references_of(episode, reference)))


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, words one blank apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
