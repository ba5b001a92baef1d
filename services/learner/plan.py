"""Deals the rows of a batch out to workers, as bins that are computed as a prefix forest each.

Every worker gets the same number of bins, and every bin has the same number of rows: a step is a
sequence of operations that all workers take part in, and verl cuts a batch into equal parts. Bins
are filled up with short rows that carry no loss and cost nothing. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from fulgurite.trajectories.forest import Forest, build, partition
from services.learner.train_row import TrainRow

_FILLER_TOKENS = 2
"""Tokens of a filler row: the shortest row with a token to predict."""

_PAIRS_PER_TOKEN = 4096
"""Pairs of nodes that cost as much in attention as a token does elsewhere: some 6 times the width
of a model, and the widths that are trained are 576 to 4,096."""


class Plan(NamedTuple):
    """A batch as workers compute it."""

    rows: list[TrainRow]
    """The rows that were given, and filler rows after them."""
    bins: list[list[int]]
    """Indices of rows, the bins of the first worker first."""
    forest_tokens: int
    """Nodes of all forests, filler rows included."""

    @property
    def order(self) -> list[int]:
        """The indices of all rows in the order in which they are computed."""
        return [index for one in self.bins for index in one]


def plan_batch(rows: Sequence[TrainRow], max_tokens: int, workers: int = 1) -> Plan:
    """Cut rows along their prefix forest into bins of at most `max_tokens` nodes, the same number
    for each worker, with the work shared out evenly.

    A longer row makes a bin of its own.
    """
    bins = _bins_for_all(rows, max_tokens, workers)
    tries = [_forest(rows, one) for one in bins]
    empty = -len(bins) % workers
    bins += [[] for _ in range(empty)]
    costs = [*map(_cost, tries), *[0] * empty]
    shares = cast(
        "list[list[int]]", get_seqlen_balanced_partitions(costs, workers, equal_size=True)
    )
    dealt = [bins[index] for share in shares for index in share]
    filled = list(rows)
    most = max(map(len, dealt))
    for one in dealt:
        filler = _filler(rows[one[0]] if one else rows[0])
        while len(one) < most:
            one.append(len(filled))
            filled.append(filler)
    # A filler row is a prefix of a row of its bin, and adds nodes to an empty one alone.
    return Plan(filled, dealt, sum(map(len, tries)) + empty * len(_filler(rows[0]).token_ids))


def _bins_for_all(rows: Sequence[TrainRow], max_tokens: int, workers: int) -> list[list[int]]:
    """Bins, at least one for each worker if there are rows enough: smaller ones share less, but
    an idle worker shares nothing.
    """
    token_ids = [row.token_ids for row in rows]
    bins = partition(token_ids, max_tokens)
    while len(bins) < min(workers, len(rows)):
        max_tokens //= 2
        bins = partition(token_ids, max_tokens)
    return bins


def _forest(rows: Sequence[TrainRow], indices: Sequence[int]) -> Forest:
    return build([rows[i].token_ids for i in indices], [rows[i].trained for i in indices])


def _cost(trie: Forest) -> int:
    """What a bin costs, in tokens: its nodes, and the pairs of nodes in its attention."""
    pairs = int((trie.end_N - np.arange(len(trie))).sum())
    return len(trie) + pairs // _PAIRS_PER_TOKEN


def _filler(model: TrainRow) -> TrainRow:
    """A row that is a prefix of another, and of no consequence."""
    zeros = np.zeros(_FILLER_TOKENS, np.float32)
    return TrainRow(
        model.token_ids[:_FILLER_TOKENS], zeros.astype(bool), zeros, zeros, zeros, zeros + 1
    )
