"""Arranges rows of tokens as a prefix forest, so that a model computes each shared prefix once.

A node is a token after a particular history. Nodes are numbered depth-first, a node's position id
is its depth, and a node may attend to itself and its ancestors only: what the model computes at a
node is then what it computes for that token in every row through it. The forest does not depend on
the order of the rows. Array names end in their shape: N nodes, K needed nodes, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class MalformedRow(ValueError):
    """A row is empty, its arrays differ in length, or its first token is marked as trained."""


@dataclass(frozen=True, eq=False)
class Forest:
    """A prefix forest of rows."""

    tokens_N: Ints
    parent_N: Ints
    """-1 at a root."""
    depth_N: Ints
    """The position id: 0 at a root."""
    end_N: Ints
    """One past the last node of the subtree: descendants of a node are `[node, end)`."""
    nodes: tuple[Ints, ...]
    """For each row, in the order given, the node of each of its tokens (T,)."""
    needed_K: Ints
    """Ascending: the nodes that predict a trained token of some row; only their logits are needed.
    """

    def __len__(self) -> int:
        return len(self.tokens_N)

    def mask_NN(self) -> Bools:
        """True where a node (row) may attend to another (column): itself and its ancestors."""
        node_N = np.arange(len(self))
        return (node_N[None, :] <= node_N[:, None]) & (node_N[:, None] < self.end_N[None, :])

    def padded(self, length: int) -> Forest:
        """The forest with nodes added up to `length`: token 0, roots, without descendants."""
        more = length - len(self)
        node_N = np.arange(len(self), length)
        return replace(
            self,
            tokens_N=np.pad(self.tokens_N, (0, more)),
            parent_N=np.pad(self.parent_N, (0, more), constant_values=-1),
            depth_N=np.pad(self.depth_N, (0, more)),
            end_N=np.concatenate([self.end_N, node_N + 1]),
        )

    def blocks_BB(self, size: int, window: int | None = None) -> tuple[Bools, Bools]:
        """The mask in B blocks of `size` nodes, from `end_N` alone: where a block of nodes (row)
        may attend to any of another (column), and where each of them to each.

        `window`: nodes attend to their nearest ancestors only. Then the first may be True for a
        block in which none attends to any. `size` must divide the number of nodes.
        """
        end_BS, depth_BS = self.end_N.reshape(-1, size), self.depth_N.reshape(-1, size)
        block_B = np.arange(len(end_BS))
        before_BB = block_B[None, :] < block_B[:, None]
        first_B, last_B = block_B * size, (block_B + 1) * size - 1
        any_BB = before_BB & (first_B[:, None] < end_BS.max(1)[None, :])
        all_BB = before_BB & (last_B[:, None] < end_BS.min(1)[None, :])
        if window is not None:
            nearest_BB = depth_BS.min(1)[:, None] - depth_BS.max(1)[None, :]
            farthest_BB = depth_BS.max(1)[:, None] - depth_BS.min(1)[None, :]
            any_BB &= nearest_BB < window
            all_BB &= farthest_BB < window
        # Within a block each node attends at least to itself, and none to a later one.
        return any_BB | np.eye(len(block_B), dtype=bool), all_BB


def build(token_ids: Sequence[NDArray[np.integer]], trained: Sequence[Bools]) -> Forest:
    """Build the forest of rows `token_ids[i]` (T,), whose tokens in `trained[i]` (T,) carry loss.

    Raises MalformedRow.
    """
    for row, mask in zip(token_ids, trained, strict=True):
        if len(row) == 0 or len(row) != len(mask) or mask[0]:
            raise MalformedRow(
                f"a row of {len(row)} tokens and a mask of {len(mask)}: a row needs tokens, a mask "
                "of the same length, and a first token that is not trained"
            )
    nodes: list[Ints] = [np.empty(0, np.int64)] * len(token_ids)
    tokens: list[NDArray[np.integer]] = []
    parents: list[Ints] = []
    depths: list[Ints] = []
    ends: list[tuple[Ints, int]] = []
    path = np.empty(0, np.int64)
    size = 0
    for index, shared in _in_order(token_ids):
        ends.append((path[shared:], size))
        new = np.arange(size, size + len(token_ids[index]) - shared)
        path = np.concatenate([path[:shared], new])
        nodes[index] = path
        tokens.append(token_ids[index][shared:])
        parents.append(np.concatenate([[-1], path[:-1]])[shared:])
        depths.append(np.arange(shared, len(path)))
        size += len(new)
    end_N = np.full(size, size, np.int64)
    for closed, end in ends:
        end_N[closed] = end
    predicting = [path[:-1][mask[1:]] for path, mask in zip(nodes, trained, strict=True)]
    return Forest(
        _joined(tokens),
        _joined(parents),
        _joined(depths),
        end_N,
        tuple(nodes),
        np.unique(_joined(predicting)),
    )


def partition(token_ids: Sequence[NDArray[np.integer]], max_nodes: int) -> list[list[int]]:
    """Put rows into bins whose forests have at most `max_nodes` nodes; returns their indices.

    Neighbours in the forest stay together. A longer row shares a bin only with its prefixes.
    """
    bins: list[list[int]] = []
    size = 0
    for index, shared in _in_order(token_ids):
        length = len(token_ids[index])
        if bins and size + length - shared <= max_nodes:
            bins[-1].append(index)
            size += length - shared
        else:
            bins.append([index])
            size = length
    return bins


def _in_order(token_ids: Sequence[NDArray[np.integer]]) -> Iterator[tuple[int, int]]:
    """Yield row indices in lexicographic order, each with its prefix shared with the last row."""
    # Big-endian, so that bytes compare as the numbers do.
    keys = [np.asarray(row, dtype=">u4").tobytes() for row in token_ids]
    last: NDArray[np.integer] = np.empty(0, np.int64)
    for index in sorted(range(len(keys)), key=keys.__getitem__):
        row = token_ids[index]
        common = min(len(last), len(row))
        differs = np.flatnonzero(last[:common] != row[:common])
        yield index, int(differs[0]) if len(differs) else common
        last = row


def _joined(parts: Sequence[NDArray[np.integer]]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)
