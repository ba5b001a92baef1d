"""What a gate writes: a function of the alias's last route, the versions and a verdict."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.selection.authors import EVALUATION, GATE, evaluation_for
from fulgurite.selection.canary import Finding, GuardRails, Verdict
from fulgurite.selection.trials import (
    Change,
    Shares,
    begin_trial,
    end_trial,
    next_candidate,
    overtaking,
    pin,
    read_shares,
)
from fulgurite.versions import parse_version

RAILS = GuardRails(share=0.2)


def target(version: str | None, weight: float = 1.0, **parameters: float) -> RouteTarget:
    return RouteTarget(policy="policy", version=version, weight=weight, parameters=parameters)


def route(
    *targets: RouteTarget,
    author: str = "ann",
    at: int = 100,
    previous: tuple[RouteTarget, ...] = (),
) -> PolicyRoute:
    return PolicyRoute(
        event_id=f"route {at}", event_time=at, alias="policy", targets=targets, reason="",
        author=author, previous=previous,
    )  # fmt: skip


def written(change: Change, at: int) -> PolicyRoute:
    return PolicyRoute(
        event_id=change.event_id, event_time=at, alias="policy", targets=change.targets,
        reason=change.reason, author=GATE, previous=change.previous,
    )  # fmt: skip


def candidate(shares: Shares, version: str, published_at: int = 1_000) -> str | None:
    found = next_candidate(shares, parse_version(version), published_at)
    return None if found is None else found.version


def test_an_open_alias_is_pinned_to_what_serves_it() -> None:
    shares = read_shares(None)
    assert shares.is_open
    change = pin("policy", shares, parse_version("policy@1.3"))
    assert change.targets == (target("policy@1.3"),)
    after = read_shares(written(change, 200))
    assert (after.stable, after.trial, after.is_open) == (target("policy@1.3"), None, False)
    assert candidate(after, "policy@1.3") is None
    assert candidate(after, "policy@1.4", published_at=1) == "policy@1.4"


def test_a_trial_and_its_promotion() -> None:
    shares = read_shares(route(target("policy@1.3", 7.0, temperature=0.7)))
    new = next_candidate(shares, parse_version("policy@1.4"), 101)
    assert new is not None
    assert new == target("policy@1.4", temperature=0.7)
    change = begin_trial("policy", shares, new, RAILS, "why")
    assert [(one.version, one.weight) for one in change.targets] == [
        ("policy@1.3", 0.8),
        ("policy@1.4", 0.2),
    ]
    assert change.previous == (target("policy@1.3", temperature=0.7),)
    on_trial = read_shares(written(change, 300))
    assert on_trial.trial is not None
    assert on_trial.trial.began_at == 300
    assert candidate(on_trial, "policy@1.5") is None
    assert end_trial("policy", on_trial, Finding(Verdict.undecided, "")) is None
    promoted = end_trial("policy", on_trial, Finding(Verdict.promote, "figures"))
    assert promoted is not None
    assert promoted.targets == (target("policy@1.4", temperature=0.7),)
    assert promoted.previous == (target("policy@1.3", temperature=0.7),)
    assert promoted.reason == (
        "promoted policy@1.4,temperature=0.7 against policy@1.3,temperature=0.7: figures"
    )
    after = read_shares(written(promoted, 400))
    assert after.stable == promoted.targets[0]
    assert candidate(after, "policy@1.5", published_at=350) == "policy@1.5"


def test_a_version_that_was_rolled_back_is_not_tried_again() -> None:
    stable, new = target("policy@1.3", 0.8), target("policy@1.4", 0.2)
    on_trial = read_shares(route(stable, new, author=GATE))
    change = end_trial("policy", on_trial, Finding(Verdict.roll_back, "figures"))
    assert change is not None
    assert change.targets == (target("policy@1.3"),)
    assert "rolled back policy@1.4 against policy@1.3: figures" in change.reason
    after = read_shares(written(change, 200))
    assert candidate(after, "policy@1.4") is None
    assert candidate(after, "policy@1.5", published_at=150) == "policy@1.5"
    # The log may forget all routes but the last one, and the base model is no candidate.
    assert next_candidate(after, parse_version("policy@0.0"), None) is None


def test_the_same_decision_is_the_same_event() -> None:
    on_trial = read_shares(route(target("policy@1.3", 0.8), target("policy@1.4", 0.2), author=GATE))
    ids = {
        change.event_id
        for verdict in (Verdict.promote, Verdict.promote, Verdict.roll_back)
        if (change := end_trial("policy", on_trial, Finding(verdict, ""))) is not None
    }
    assert len(ids) == 2


def test_a_route_by_hand_ends_a_trial_and_is_gone_on_from() -> None:
    shares = read_shares(route(target("policy@1.2"), target("policy@1.9", 0.0), at=500))
    assert (shares.stable, shares.trial) == (target("policy@1.2"), None)
    assert candidate(shares, "policy@1.4", published_at=500) is None
    assert candidate(shares, "policy@1.5", published_at=501) == "policy@1.5"


def test_another_policys_versions_are_not_compared_by_number() -> None:
    other = RouteTarget(policy="other", version="other@9.9", weight=1.0)
    shares = read_shares(route(other, author=GATE))
    assert candidate(shares, "policy@1.5") == "policy@1.5"


def test_an_upstream_may_be_the_stable_one() -> None:
    upstream = RouteTarget(policy="", upstream="gpt", weight=1.0)
    for author in ("ann", GATE):
        shares = read_shares(route(upstream, author=author))
        assert (shares.stable, shares.newest_tried) == (upstream, None)
        assert candidate(shares, "policy@1.5") == "policy@1.5"


@pytest.mark.parametrize(
    ("targets", "author", "why"),
    [
        ((), "ann", "the route by ann names no version"),
        ((), GATE, "names no version"),
        ((target("policy@1.2", 0.5), target("policy@1.3", 0.5)), "ann", "names 2 versions"),
        ((target(None),), "ann", "names the newest version"),
        ((target("policy@1.2"),), EVALUATION, "a version is evaluated"),
        ((target("policy@1.2"),), evaluation_for("other"), "a version is evaluated"),
    ],
)
def test_what_holds_a_gate(targets: tuple[RouteTarget, ...], author: str, why: str) -> None:
    shares = read_shares(route(*targets, author=author))
    assert why in (shares.held or "")
    assert shares.stable is None
    assert not shares.is_open
    assert candidate(shares, "policy@1.5") is None


def test_an_evaluation_leaves_an_open_alias_open() -> None:
    assert read_shares(route(author=EVALUATION)).is_open


def test_an_alias_has_one_author_of_its_shares() -> None:
    shares = read_shares(
        replace(route(target("policy@1.2"), author="selector a"), selection="decision")
    )
    assert shares.other_author == "selector a"
    assert shares.stable is None


def test_the_last_route_that_somebody_set_meanwhile_stays() -> None:
    read = route(target("policy@1.1"), at=100)
    own = route(target("policy@1.2"), at=200, author=GATE)
    first, second = (route(target("policy@1.3"), at=at) for at in (110, 120))
    assert overtaking([], read, own) is None
    assert overtaking([first, second], read, own) == second
    assert overtaking([first], None, own) == first
    assert overtaking([own], read, own) is None, "another gate decided the same"


def test_an_evaluation_while_a_gate_decides_changes_nothing() -> None:
    read = route(target("policy@1.1"), at=100)
    own = route(target("policy@1.2"), at=200, author=GATE)
    evaluation = route(target("policy@1.2"), at=110, author=EVALUATION)
    assert overtaking([evaluation, read], read, own) is None
    assert overtaking([evaluation], read, own) == evaluation, "it has not ended"
