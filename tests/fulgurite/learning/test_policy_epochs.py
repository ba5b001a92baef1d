"""Which events of `policy.updates` count, whatever their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.policy_epochs import PolicyEpochs


def event(kind: UpdateKind, epoch: int, learner_id: str, step: int = 0) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"{kind}{epoch}.{step}{learner_id}",
        event_time=1,
        policy="policy",
        kind=kind,
        epoch=epoch,
        step=step,
        learner_id=learner_id,
        trained_actions=0,
    )


def claim(epoch: int, learner_id: str) -> PolicyUpdate:
    return event(UpdateKind.claim, epoch, learner_id)


def update(epoch: int, learner_id: str, step: int = 1) -> PolicyUpdate:
    return event(UpdateKind.update, epoch, learner_id, step)


def counted(fold: PolicyEpochs, *events: PolicyUpdate) -> list[PolicyUpdate]:
    return [one for one in events if fold.apply(one)]


def test_nothing_counts_before_a_claim() -> None:
    fold = PolicyEpochs()
    assert counted(fold, update(1, "a"), update(0, "a")) == []
    assert (fold.epoch, fold.highest, fold.claims) == (-1, 1, {})


def test_updates_of_who_claimed_first_count() -> None:
    fold = PolicyEpochs()
    first, second = claim(1, "a"), claim(1, "b")
    ours = update(1, "a")
    assert counted(fold, first, second, update(1, "b"), ours, update(2, "a")) == [ours]
    assert (fold.epoch, fold.highest, fold.claims) == (1, 2, {1: first})


def test_a_superseded_learner_does_not_count_any_more() -> None:
    fold = PolicyEpochs()
    before, after = update(1, "a"), update(2, "b")
    assert counted(fold, claim(1, "a"), before, claim(2, "b"), update(1, "a", 2), after) == [
        before,
        after,
    ]


def test_a_late_claim_of_a_lower_epoch_changes_nothing() -> None:
    fold = PolicyEpochs()
    assert counted(fold, claim(3, "c"), claim(2, "b"), update(2, "b"), update(3, "c")) == [
        update(3, "c")
    ]
    assert list(fold.claims) == [3, 2]


def test_an_update_that_comes_again_counts_again() -> None:
    fold = PolicyEpochs()
    assert counted(fold, claim(1, "a"), update(1, "a"), update(1, "a")) == [update(1, "a")] * 2


def test_an_unknown_kind_of_event_does_not_count() -> None:
    fold = PolicyEpochs()
    assert counted(fold, claim(1, "a"), event(UpdateKind.unknown, 1, "a")) == []


EVENTS = st.builds(
    event, st.sampled_from(UpdateKind), st.integers(0, 3), st.sampled_from("abc"), st.integers(0, 2)
)


@given(st.lists(EVENTS))
def test_what_counts_follows_from_the_claims_before_it(events: list[PolicyUpdate]) -> None:
    fold = PolicyEpochs()
    for number, one in enumerate(events):
        claims = [before for before in events[:number] if before.kind is UpdateKind.claim]
        epoch = max((before.epoch for before in claims), default=-1)
        holder = next((c.learner_id for c in claims if c.epoch == epoch), None)
        assert fold.epoch == epoch
        assert fold.apply(one) == (
            one.kind is UpdateKind.update and (one.epoch, one.learner_id) == (epoch, holder)
        )
    assert fold.highest == max((one.epoch for one in events), default=0)
    firsts: dict[int, PolicyUpdate] = {}
    for one in events:
        if one.kind is UpdateKind.claim:
            firsts.setdefault(one.epoch, one)
    assert list(fold.claims.items()) == list(firsts.items())
