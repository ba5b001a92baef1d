"""A forest holds every row, shares every prefix and lets a token see its own history, whatever the
order of the rows.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fulgurite.trajectories.forest import MalformedRow, build, partition

# Few different tokens, so that rows share prefixes often; some beyond 16 bits, so that the byte
# order matters.
tokens = st.lists(st.sampled_from([0, 1, 255, 256, 70_000]), min_size=1, max_size=7)
batches = st.lists(
    tokens.flatmap(
        lambda row: st.tuples(
            st.just(row), st.lists(st.booleans(), min_size=len(row), max_size=len(row))
        )
    ),
    max_size=8,
)
Batch = list[tuple[list[int], list[bool]]]


def arrays(batch: Batch) -> tuple[list[NDArray[np.int32]], list[NDArray[np.bool_]]]:
    rows = [np.array(row, np.int32) for row, _ in batch]
    masks = [np.array([False, *mask[1:]]) for _, mask in batch]
    return rows, masks


@settings(deadline=None, max_examples=50)
@given(batches)
def test_a_rows_nodes_spell_it_and_are_one_another_s_parents(batch: Batch) -> None:
    rows, masks = arrays(batch)
    forest = build(rows, masks)
    for row, nodes in zip(rows, forest.nodes, strict=True):
        assert forest.tokens_N[nodes].tolist() == row.tolist()
        assert forest.depth_N[nodes].tolist() == list(range(len(row)))
        assert forest.parent_N[nodes].tolist() == [-1, *nodes[:-1]]


@pytest.mark.parametrize("window", [None, 1, 3])
@settings(deadline=None, max_examples=50)
@given(batch=batches, size=st.integers(1, 4))
def test_blocks_are_those_of_the_mask(batch: Batch, size: int, window: int | None) -> None:
    forest = build(*arrays(batch))
    forest = forest.padded(len(forest) + -len(forest) % size)
    mask_NN = forest.mask_NN()
    if window is not None:
        mask_NN &= forest.depth_N[:, None] - forest.depth_N[None, :] < window
    blocks = len(forest) // size
    mask_BSBS = mask_NN.reshape(blocks, size, blocks, size)
    any_BB, all_BB = forest.blocks_BB(size, window)
    assert not (mask_BSBS.any((1, 3)) & ~any_BB).any(), "no pair is lost"
    assert not (all_BB & ~mask_BSBS.all((1, 3))).any(), "no pair is added"
    if window is None:
        np.testing.assert_array_equal(any_BB, mask_BSBS.any((1, 3)))


def test_added_nodes_attend_to_themselves_alone() -> None:
    forest = build([np.array([1, 2, 3])], [np.array([False, True, True])]).padded(5)
    assert len(forest) == 5
    assert forest.mask_NN()[3:].tolist() == [[False] * 3 + [True, False], [False] * 4 + [True]]


@settings(deadline=None, max_examples=50)
@given(batches)
def test_there_is_one_node_for_every_different_history(batch: Batch) -> None:
    rows, masks = arrays(batch)
    histories = {tuple(row[: end + 1].tolist()) for row in rows for end in range(len(row))}
    assert len(build(rows, masks)) == len(histories)


@settings(deadline=None, max_examples=50)
@given(batches)
def test_a_node_attends_to_itself_and_its_ancestors_alone(batch: Batch) -> None:
    forest = build(*arrays(batch))
    mask_NN = forest.mask_NN()
    for node in range(len(forest)):
        ancestors = {node}
        while (parent := int(forest.parent_N[min(ancestors)])) >= 0:
            ancestors.add(parent)
        assert set(np.flatnonzero(mask_NN[node]).tolist()) == ancestors


@settings(deadline=None, max_examples=50)
@given(batches)
def test_nodes_are_numbered_depth_first(batch: Batch) -> None:
    forest = build(*arrays(batch))
    assert all(parent < node for node, parent in enumerate(forest.parent_N))
    for node in range(len(forest)):
        subtree = [n for n in range(len(forest)) if forest.mask_NN()[n, node]]
        assert subtree == list(range(node, forest.end_N[node]))


@settings(deadline=None, max_examples=50)
@given(batches)
def test_needed_are_the_nodes_before_trained_tokens(batch: Batch) -> None:
    rows, masks = arrays(batch)
    forest = build(rows, masks)
    needed = {
        int(nodes[t - 1])
        for nodes, mask in zip(forest.nodes, masks, strict=True)
        for t in range(1, len(mask))
        if mask[t]
    }
    assert forest.needed_K.tolist() == sorted(needed)


@settings(deadline=None, max_examples=50)
@given(batches, st.randoms())
def test_the_order_of_rows_does_not_matter(batch: Batch, chance: Random) -> None:
    order = list(range(len(batch)))
    chance.shuffle(order)
    rows, masks = arrays(batch)
    one, other = build(rows, masks), build([rows[i] for i in order], [masks[i] for i in order])
    assert one.tokens_N.tolist() == other.tokens_N.tolist()
    assert one.parent_N.tolist() == other.parent_N.tolist()
    assert one.needed_K.tolist() == other.needed_K.tolist()
    assert [one.nodes[i].tolist() for i in order] == [nodes.tolist() for nodes in other.nodes]


@settings(deadline=None, max_examples=50)
@given(batches, st.integers(1, 12))
def test_bins_hold_every_row_once_and_keep_the_bound(batch: Batch, bound: int) -> None:
    rows, masks = arrays(batch)
    bins = partition(rows, bound)
    assert sorted(i for b in bins for i in b) == list(range(len(rows)))
    for members in bins:
        size = len(build([rows[i] for i in members], [masks[i] for i in members]))
        assert size <= max(bound, max(len(rows[i]) for i in members))


def test_a_bound_that_is_large_enough_makes_one_bin() -> None:
    rows, masks = arrays([([1, 2, 3], [False] * 3), ([1, 2], [False] * 2), ([1, 9], [False] * 2)])
    assert partition(rows, len(build(rows, masks))) == [[1, 0, 2]]


@pytest.mark.parametrize(
    ("row", "mask"),
    [([], []), ([1, 2], [False]), ([1, 2], [True, False])],
    ids=["empty", "mask of another length", "first token trained"],
)
def test_a_malformed_row_is_refused(row: list[int], mask: list[bool]) -> None:
    with pytest.raises(MalformedRow):
        build([np.array(row, np.int32)], [np.array(mask, np.bool_)])
