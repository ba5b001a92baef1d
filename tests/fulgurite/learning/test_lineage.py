"""What a version descends from, over restarts and over a step back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.lineage import descends, lineage_of
from fulgurite.versions import Version, base_version, parse_version


def update(version: str, parent: str | None, kind: UpdateKind = UpdateKind.update) -> PolicyUpdate:
    at = parse_version(version)
    return PolicyUpdate(
        event_id=version,
        event_time=1,
        policy="policy",
        kind=kind,
        epoch=at.epoch,
        step=at.step,
        version=version,
        parent_version=parent,
        learner_id="learner",
        trained_actions=1,
    )


CHAIN = ["policy@0.0", "policy@1.1", "policy@1.2", "policy@2.3", "policy@2.4"]
UPDATES = [update(child, parent) for parent, child in itertools.pairwise(CHAIN)]


@given(st.permutations([*UPDATES, update("policy@1.3", "policy@1.2")]))
def test_a_version_descends_from_its_parents_in_whatever_order_they_are_told(
    updates: list[PolicyUpdate],
) -> None:
    lineage = lineage_of(Version("policy", 2, 4), updates)
    assert lineage == {0: 0, 1: 2, 2: 4}
    assert all(descends(lineage, parse_version(name)) for name in CHAIN)
    assert not descends(lineage, Version("policy", 1, 3)), "a learner went on without it"
    assert not descends(lineage, Version("policy", 3, 1))


def test_a_claim_is_no_ancestor() -> None:
    claim = update("policy@1.1", "policy@0.0", UpdateKind.claim)
    assert lineage_of(Version("policy", 1, 1), [claim]) == {1: 1}


@pytest.mark.parametrize("updates", [[], [update("policy@0.0", "policy@0.0")]])
def test_the_base_model_has_no_parents(updates: list[PolicyUpdate]) -> None:
    assert lineage_of(base_version("policy"), updates) == {0: 0}
