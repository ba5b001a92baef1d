"""Which version a backend should serve."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import UpdateKind
from fulgurite.events import Event, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.learning.target_version import TargetVersion
from fulgurite.versions import Version, base_version
from tests.synthetic import make_call


def claim(epoch: int, learner: str, policy: str = "policy") -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"c{epoch}{learner}", event_time=1, policy=policy, kind=UpdateKind.claim, epoch=epoch, step=0, learner_id=learner,
        trained_actions=0,
    )  # fmt: skip


def update(epoch: int, step: int, learner: str, policy: str = "policy") -> PolicyUpdate:
    return msgspec.structs.replace(
        claim(epoch, learner, policy),
        event_id=f"u{epoch}.{step}",
        kind=UpdateKind.update,
        step=step,
    )


def route(*targets: tuple[str, str | None, float], alias: str = "policy") -> PolicyRoute:
    listed = tuple(
        RouteTarget(policy=policy, version=version, weight=weight)
        for policy, version, weight in targets
    )
    return PolicyRoute(
        event_id="r", event_time=1, alias=alias, targets=listed, reason="", author=""
    )


def after(*events: Event) -> TargetVersion:
    fold = TargetVersion("policy")
    for event in events:
        fold.apply(event)
    return fold


def test_without_updates_it_is_the_base_model() -> None:
    assert str(after(claim(1, "a")).version()) == "policy@0.0"


def test_the_newest_update_of_the_claimed_epoch() -> None:
    assert str(after(claim(1, "a"), update(1, 1, "a"), update(1, 2, "a")).version()) == "policy@1.2"


def test_the_first_claim_of_an_epoch_wins() -> None:
    assert str(after(claim(1, "a"), claim(1, "b"), update(1, 1, "b")).version()) == "policy@0.0"


def test_a_claimed_epoch_shuts_out_lower_ones_and_keeps_what_was_published() -> None:
    fold = after(claim(1, "a"), update(1, 1, "a"), claim(2, "b"), update(1, 2, "a"))
    assert str(fold.version()) == "policy@1.1"
    fold.apply(update(2, 1, "b"))
    assert str(fold.version()) == "policy@2.1"


def test_updates_are_immutable() -> None:
    first = update(1, 1, "a")
    fold = after(claim(1, "a"), first, msgspec.structs.replace(first, event_id="other"))
    assert fold.updates[Version("policy", 1, 1)].event_id == first.event_id


def test_versions_that_could_not_be_served_are_passed_over() -> None:
    fold = after(claim(1, "a"), update(1, 1, "a"), update(1, 2, "a"))
    assert str(fold.version({Version("policy", 1, 2)})) == "policy@1.1"
    everything = {Version("policy", 0, 0), Version("policy", 1, 1), Version("policy", 1, 2)}
    assert str(fold.version(everything)) == "policy@0.0"


def test_a_route_pins_a_known_version_until_it_is_taken_back() -> None:
    fold = after(
        claim(1, "a"), update(1, 1, "a"), update(1, 2, "a"), route(("policy", "policy@1.1", 1.0))
    )
    assert str(fold.version()) == "policy@1.1"
    fold.apply(route(("policy", "policy@1.1", 0.2), ("policy", "policy@0.0", 0.8)))
    assert str(fold.version()) == "policy@0.0"
    fold.apply(route(("policy", "policy@9.9", 1.0)))
    assert str(fold.version()) == "policy@1.2"
    fold.apply(
        route(("policy", None, 1.0), ("other", "other@1.1", 5.0), ("policy", "no version", 9.0))
    )
    assert str(fold.version()) == "policy@1.2"


def test_other_policies_and_other_events_change_nothing() -> None:
    fold = TargetVersion("policy")
    assert not fold.apply(update(1, 1, "a", "other"))
    assert not fold.apply(make_call())
    assert not fold.apply(None)
    assert not fold.apply(claim(1, "a"))
    assert not fold.apply(msgspec.structs.replace(update(1, 1, "a"), kind=UpdateKind.unknown))
    assert fold.apply(update(1, 1, "a"))


def test_a_canary_takes_the_other_version_while_an_alias_is_split() -> None:
    fold = after(claim(1, "a"), update(1, 1, "a"), update(1, 2, "a"), update(1, 3, "a"))
    assert str(fold.version(canary=True)) == "policy@1.3"
    fold.apply(route(("policy", "policy@1.1", 0.9), ("policy", "policy@1.2", 0.1)))
    assert (str(fold.version()), str(fold.version(canary=True))) == ("policy@1.1", "policy@1.2")
    fold.apply(route(("policy", "policy@1.1", 0.9), ("policy", None, 0.1)))
    assert (str(fold.version()), str(fold.version(canary=True))) == ("policy@1.1", "policy@1.3")
    assert str(fold.version({Version("policy", 1, 3)}, canary=True)) == "policy@1.2"
    fold.apply(route(("policy", "policy@1.1", 1.0), ("policy", "policy@1.2", 0.0)))
    assert str(fold.version(canary=True)) == "policy@1.1"
    fold.apply(route(("policy", "policy@1.1", 1.0)))
    assert str(fold.version(canary=True)) == "policy@1.1"


def test_adapters_are_wanted_together() -> None:
    fold = after(claim(1, "a"), update(1, 1, "a"), update(1, 2, "a"), update(1, 3, "a"))
    assert [str(v) for v in fold.versions()] == ["policy@1.3"]
    fold.apply(
        route(
            ("policy", "policy@1.1", 0.9),
            ("policy", None, 0.1),
            ("policy", "policy@0.0", 0.1),
            ("policy", "policy@7.7", 1.0),
        )
    )
    assert [str(v) for v in fold.versions()] == ["policy@1.3", "policy@1.1"]
    assert [str(v) for v in fold.versions({Version("policy", 1, 3)})] == [
        "policy@1.2",
        "policy@1.1",
    ]
    assert after().versions() == []


def test_in_place_of_a_pinned_version_that_cannot_be_loaded_a_backend_keeps_what_it_serves() -> (
    None
):
    fold = after(
        claim(1, "a"),
        *(update(1, step, "a") for step in range(1, 9)),
        route(("policy", "policy@1.2", 1.0)),
    )
    gone, serving = Version("policy", 1, 2), Version("policy", 1, 6)
    assert fold.version(kept=serving) == gone
    assert fold.version({gone}, kept=serving) == serving
    assert str(fold.version({gone})) == "policy@1.1", (
        "a backend that serves nothing yet takes an older one, not the newest"
    )
    assert str(fold.version({gone, serving}, kept=serving)) == "policy@1.1"
    assert (
        str(fold.version({Version("policy", 1, n) for n in range(3)} | {base_version("policy")}))
        == "policy@0.0"
    )


def test_the_greatest_share_decides_named_or_not() -> None:
    fold = after(
        claim(1, "a"),
        update(1, 1, "a"),
        update(1, 2, "a"),
        route(("policy", "policy@1.1", 0.1), ("policy", None, 0.9)),
    )
    assert (str(fold.version()), str(fold.version(canary=True))) == ("policy@1.2", "policy@1.1")
    fold.apply(route(("policy", "policy@1.1", 0.0), ("policy", None, 1.0)))
    assert (fold.pinned(), str(fold.version())) == (None, "policy@1.2")
    fold.apply(route(("policy", "policy@1.1", 0.5), ("policy", None, 0.5)))
    assert str(fold.version()) == "policy@1.1"
    fold.apply(route())
    assert fold.pinned() is None
    fold.apply(route(("policy", "policy@1.1", 1.0), alias="other"))
    assert str(fold.version()) == "policy@1.1"


def test_what_is_known() -> None:
    fold = after(claim(1, "a"), update(1, 1, "a"))
    assert [fold.is_known(Version("policy", *place)) for place in ((0, 0), (1, 1), (1, 2))] == [
        True,
        True,
        False,
    ]


steps = st.integers(0, 9)


@given(st.sets(st.integers(1, 9)), steps, st.sets(steps), st.none() | steps)
def test_nothing_newer_than_what_was_asked_for_is_ever_loaded(
    published: set[int], asked: int, lost: set[int], serves: int | None
) -> None:
    def version(step: int) -> Version:
        return Version("policy", 1, step) if step else base_version("policy")

    fold = after(
        claim(1, "a"),
        *(update(1, step, "a") for step in sorted(published)),
        route(("policy", str(version(asked)), 1.0)),
    )
    kept = None if serves is None else version(serves)
    found = fold.version({version(step) for step in lost}, kept=kept)
    assert found == kept or found <= version(asked)
    if asked in published | {0} and asked not in lost:
        assert found == version(asked)
