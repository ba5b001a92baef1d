"""Versions by weight and backends by rollout: sticky, in proportion, and nobody moves who need not."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import ApplyOutcome, UpdateKind
from fulgurite.events import PolicyApplied, PolicyRoute, PolicyUpdate, RouteTarget
from services.gateway.upstream import routing
from services.gateway.upstream.policies import PolicyView
from services.gateway.upstream.route import Route
from services.gateway.upstream.routing import Router, Target, ranked, weighted

BACKENDS = {"east": "http://east", "west": "http://west", "north": "http://north"}
ROLLOUTS = [f"ro_{n}" for n in range(4000)]
names = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=8, unique=True)


def target(key: str, weight: float) -> Target:
    return Target(key, weight, (), ())


def route(
    alias: str = "policy", policy: str | None = "policy", kind: str = "vllm", backend: str = "east"
) -> Route:
    made = {
        "alias": alias,
        "backend": backend,
        "base_url": BACKENDS.get(backend, "http://x"),
        "kind": kind,
        "model": policy or alias,
    }
    return msgspec.convert({**made, "policy": policy, "api_key": None}, Route)


def update(version: str) -> PolicyUpdate:
    policy, _, number = version.partition("@")
    epoch, step = (int(part) for part in number.split("."))
    return PolicyUpdate(
        event_id=version, event_time=1, policy=policy, kind=UpdateKind.update, epoch=epoch, step=step, version=version, learner_id="l",
        trained_actions=1,
    )  # fmt: skip


def claim(policy: str) -> PolicyUpdate:
    return msgspec.structs.replace(update(f"{policy}@1.0"), kind=UpdateKind.claim, version=None)


def applied(
    backend: str,
    version: str,
    outcome: ApplyOutcome = ApplyOutcome.applied,
    engine: str = "e1",
    previous: str | None = None,
) -> PolicyApplied:
    return PolicyApplied(
        event_id=f"{backend}{version}", event_time=2, policy=version.partition("@")[0], backend=backend, engine_id=engine, version=version,
        previous=previous, outcome=outcome, seconds=0.1,
    )  # fmt: skip


def routed(alias: str, **weights: float) -> PolicyRoute:
    targets = [
        RouteTarget(policy=key.partition("_")[0], version=None, weight=w)
        for key, w in weights.items()
    ]
    return PolicyRoute(
        event_id="r", event_time=3, alias=alias, targets=tuple(targets), reason="", author=""
    )


def pinned(alias: str, weights: dict[str, float]) -> PolicyRoute:
    targets = [
        RouteTarget(policy=v.partition("@")[0], version=v, weight=w) for v, w in weights.items()
    ]
    return PolicyRoute(
        event_id="r", event_time=3, alias=alias, targets=tuple(targets), reason="", author=""
    )


class Town:
    """A router over three backends, and the log it reads."""

    def __init__(
        self,
        *routes: Route,
        adapters: frozenset[str] = frozenset(),
        backends: dict[str, str] = BACKENDS,
    ) -> None:
        self.view = PolicyView(adapters)
        self.router = Router(
            {r.alias: r for r in routes or (route(),)}, backends, adapters, "policy", self.view
        )

    def says(self, *events: PolicyUpdate | PolicyApplied | PolicyRoute) -> None:
        for event in events:
            self.view.apply(event)

    def backends(self, rollout: str = "ro_1", alias: str = "policy") -> list[str]:
        return [way.backend for way in self.router.candidates(alias, rollout)]

    def models(self, alias: str, rollout: str = "ro_1") -> dict[str, str]:
        return {way.backend: way.model for way in self.router.candidates(alias, rollout)}


@given(names, st.text())
def test_who_leaves_moves_nobody_else(backends: list[str], rollout: str) -> None:
    order = ranked(rollout, backends, str)
    assert sorted(order) == sorted(backends)
    for gone in backends:
        assert ranked(rollout, [b for b in backends if b != gone], str) == [
            b for b in order if b != gone
        ]


@given(names, st.text(), st.data())
def test_a_choice_by_weight_is_sticky_and_moves_only_towards_what_gained(
    keys: list[str], rollout: str, data: st.DataObject
) -> None:
    weights = {key: data.draw(st.floats(0.01, 100)) for key in keys}
    before = weighted(rollout, tuple(target(k, w) for k, w in weights.items())).key
    assert (
        weighted(rollout, tuple(target(k, w) for k, w in reversed(weights.items()))).key == before
    )
    gains = data.draw(st.sampled_from(keys))
    after = weighted(
        rollout, tuple(target(k, w * (3 if k == gains else 1)) for k, w in weights.items())
    ).key
    assert after in (before, gains)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_shares_are_those_of_the_weights(share: float) -> None:
    rollouts = [f"r{n}" for n in range(20_000)]
    targets = (target("policy@1.3", 1 - share), target("policy@1.4", share))
    found = sum(weighted(r, targets).key == "policy@1.4" for r in rollouts) / len(rollouts)
    # Four standard deviations of a fair draw; the hash is fixed, so this never flickers.
    assert abs(found - share) < 4 * (share * (1 - share) / len(rollouts)) ** 0.5


def test_rollouts_spread_evenly_and_stay() -> None:
    town = Town()
    first = {rollout: town.backends(rollout)[0] for rollout in ROLLOUTS}
    counts = Counter(first.values())
    assert all(abs(counts[b] - len(ROLLOUTS) / 3) < 120 for b in BACKENDS)
    town.says(update("policy@1.1"))
    assert {rollout: town.backends(rollout)[0] for rollout in ROLLOUTS} == first
    fewer = Town(backends={b: url for b, url in BACKENDS.items() if b != "north"})
    moved = [r for r in ROLLOUTS if fewer.backends(r)[0] != first[r]]
    assert all(first[r] == "north" for r in moved)
    assert len(moved) == counts["north"]


def test_backends_with_the_newest_version_come_first_and_any_when_there_is_none() -> None:
    town = Town()
    assert sorted(town.backends()) == sorted(BACKENDS)
    town.says(
        claim("policy"),
        update("policy@1.1"),
        applied("west", "policy@1.1"),
        applied("north", "policy@1.1"),
        applied("east", "policy@0.0"),
    )
    assert all(town.backends(rollout)[2] == "east" for rollout in ROLLOUTS[:50])
    town.says(update("policy@1.2"))
    assert {town.backends(rollout)[0] for rollout in ROLLOUTS[:50]} == set(BACKENDS)
    town.says(
        applied("north", "policy@1.2", ApplyOutcome.failed, previous="policy@1.1"),
        applied("east", "policy@1.2"),
    )
    assert {town.backends(rollout)[0] for rollout in ROLLOUTS[:50]} == {"east"}


def test_a_split_sends_each_rollout_to_the_backend_of_its_version() -> None:
    town = Town()
    town.says(
        applied("east", "policy@1.3"), applied("west", "policy@1.4"), applied("north", "policy@1.3")
    )
    town.says(pinned("policy", {"policy@1.3": 0.75, "policy@1.4": 0.25}))
    first = Counter(town.backends(rollout)[0] for rollout in ROLLOUTS)
    assert abs(first["west"] / len(ROLLOUTS) - 0.25) < 0.03
    assert first["east"] + first["north"] + first["west"] == len(ROLLOUTS)
    town.says(pinned("policy", {"policy@1.3": 1.0, "policy@1.4": 0.0}))
    assert all(town.backends(rollout)[0] != "west" for rollout in ROLLOUTS)


def test_an_adapter_is_asked_for_by_its_immutable_name() -> None:
    town = Town(
        route("sql", "writer"), route("judge", "checker"), adapters=frozenset({"writer", "checker"})
    )
    assert set(town.models("sql").values()) == {"policy"}
    town.says(
        claim("writer"),
        update("writer@1.1"),
        applied("east", "writer@1.1"),
        applied("west", "writer@1.1"),
    )
    assert town.models("sql") == {"east": "writer@1.1", "west": "writer@1.1", "north": "policy"}
    assert [way.version for way in town.router.candidates("sql", "ro_1")][2] == "writer@0.0"
    assert set(town.models("judge").values()) == {"policy"}
    town.says(update("writer@1.2"), applied("west", "writer@1.2"))
    assert town.backends("ro_1", "sql")[0] == "west"
    assert town.models("sql") == {"east": "writer@1.1", "west": "writer@1.2", "north": "policy"}
    town.says(pinned("sql", {"writer@1.1": 1.0}))
    assert town.models("sql") == {"east": "writer@1.1", "west": "writer@1.1", "north": "policy"}
    assert ("writer", "west", "writer@1.1") in list(town.view.held())
    town.says(applied("west", "writer@1.1", ApplyOutcome.retired))
    assert ("writer", "west", "writer@1.1") not in list(town.view.held())
    assert town.backends("ro_1", "sql")[0] == "east"
    town.says(pinned("sql", {"writer@0.0": 1.0}))
    assert set(town.models("sql").values()) == {"policy"}


def test_a_restarted_engine_has_lost_its_adapters() -> None:
    town = Town(
        route("sql", "writer"), adapters=frozenset({"writer"}), backends={"east": "http://east"}
    )
    town.says(
        claim("writer"),
        update("writer@1.1"),
        update("writer@1.2"),
        applied("east", "writer@1.1"),
        applied("east", "writer@1.2"),
    )
    town.says(applied("east", "writer@1.1", engine="e2"))
    assert town.models("sql") == {"east": "writer@1.1"}


def test_a_full_weight_backend_is_asked_for_what_it_last_proved() -> None:
    town = Town(route(), route("own", "policy", "vllm", "elsewhere"))

    def expected(alias: str = "policy") -> dict[str, str | None]:
        return {way.backend: way.expects for way in town.router.candidates(alias, "ro_1")}

    town.says(
        claim("policy"),
        update("policy@1.1"),
        applied("east", "policy@1.1"),
        applied("west", "policy@0.0"),
    )
    assert expected() == {"east": "policy@1.1", "west": "policy@0.0", "north": None}
    town.says(
        update("policy@1.2"),
        applied("east", "policy@1.2", ApplyOutcome.failed, engine="e2", previous="policy@0.0"),
    )
    assert expected()["east"] == "policy@0.0", "its applier has nothing better for it"
    assert expected("own") == {"elsewhere": None}
    writers = Town(route("sql", "writer"), adapters=frozenset({"writer"}))
    writers.says(applied("east", "writer@1.1"))
    assert {way.expects for way in writers.router.candidates("sql", "ro_1")} == {None}


def test_other_upstreams_go_where_they_are_configured() -> None:
    town = Town(route("gpt", None, "openai", "gpt"), route("own", "policy", "vllm", "elsewhere"))
    assert town.backends(alias="gpt") == ["gpt"]
    assert town.backends(alias="own") == ["elsewhere"]
    with pytest.raises(KeyError):
        town.backends(alias="nobody")


def test_an_alias_can_be_split_between_policies() -> None:
    town = Town(route("sql", "writer"), adapters=frozenset({"writer", "checker"}))
    town.says(routed("sql", writer=1.0, checker=1.0))
    policies = Counter(town.router.candidates("sql", rollout)[0].policy for rollout in ROLLOUTS)
    assert abs(policies["writer"] - policies["checker"]) < 300


def test_the_version_that_answered() -> None:
    assert route().reported("policy@1.3") == "policy@1.3"
    bare = msgspec.structs.replace(route("sql", "writer"), version="writer@0.0")
    assert bare.reported("policy@0.0") == "writer@0.0"
    assert bare.reported("policy@1.3") == "policy@1.3"
    assert bare.reported(None) is None
    assert (
        msgspec.structs.replace(bare, version="writer@1.1").reported("writer@1.1") == "writer@1.1"
    )


def test_a_route_to_what_no_backend_serves_is_named() -> None:
    town = Town()
    town.says(
        claim("policy"), update("policy@1.1"), update("policy@1.2"), applied("east", "policy@1.2")
    )
    assert town.router.unserved() == {}
    town.says(
        pinned("policy", {"policy@1.1": 0.5, "policy@1.2": 0.5}),
        pinned("other", {"policy@1.1": 1.0}),
    )
    assert town.router.unserved() == {"policy": ["policy@1.1"]}
    town.says(applied("west", "policy@1.1"))
    assert town.router.unserved() == {}
    town.says(routed("policy", policy=1.0))
    assert town.router.unserved() == {}


def test_in_place_of_a_missing_adapter_an_older_one_comes_before_a_newer() -> None:
    town = Town(
        route("sql", "writer"), adapters=frozenset({"writer"}), backends={"east": "http://east"}
    )
    town.says(
        *(applied("east", f"writer@1.{step}") for step in (1, 2, 5)),
        pinned("sql", {"writer@1.4": 1.0}),
    )
    assert town.models("sql") == {"east": "writer@1.2"}
    town.says(
        applied("east", "writer@1.1", ApplyOutcome.retired),
        applied("east", "writer@1.2", ApplyOutcome.retired),
    )
    assert town.models("sql") == {"east": "writer@1.5"}


def test_a_served_version_can_be_asked_for_by_its_name() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))
    town.says(claim("policy"), update("policy@1.1"), update("policy@1.2"))
    assert town.router.find("policy@1.1") is None, "no backend serves it"
    town.says(applied("west", "policy@1.1"), applied("east", "policy@1.2"))
    found = town.router.find("policy@1.1")
    assert found is not None
    assert (found.alias, found.policy) == ("policy@1.1", "policy")
    assert town.backends(alias="policy@1.1")[0] == "west"
    assert town.backends(alias="policy@1.2")[0] == "east"
    town.says(pinned("policy", {"policy@1.2": 1.0}))
    assert town.backends(alias="policy@1.1")[0] == "west", "whatever the alias is routed to"
    assert town.router.find("policy") == route()
    for unknown in ("policy@1.9", "another@1.1", "policy@one", "gpt@1.1", "nobody"):
        assert town.router.find(unknown) is None
    with pytest.raises(KeyError):
        town.backends(alias="another@1.1")


def test_an_adapter_and_its_base_can_be_asked_for_by_name() -> None:
    town = Town(route("sql", "writer"), adapters=frozenset({"writer"}))
    town.says(claim("writer"), update("writer@1.1"), applied("west", "writer@1.1"))
    assert town.models("writer@1.1")["west"] == "writer@1.1"
    assert town.backends(alias="writer@1.1")[0] == "west"
    assert set(town.models("writer@0.0").values()) == {"policy"}
    assert town.router.find("writer@1.2") is None


def to_upstream(upstream: str, weight: float, **parameters: float) -> RouteTarget:
    return RouteTarget(policy="", upstream=upstream, weight=weight, parameters=parameters)


def split(alias: str, *targets: RouteTarget) -> PolicyRoute:
    return PolicyRoute(
        event_id="r", event_time=3, alias=alias, targets=targets, reason="", author=""
    )


def test_a_share_of_the_rollouts_goes_to_another_upstream_under_the_same_alias() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))
    policy = RouteTarget(policy="policy", weight=0.8)
    town.says(split("policy", policy, to_upstream("gpt", 0.2, temperature=0.5)))
    first = [town.router.candidates("policy", rollout)[0] for rollout in ROLLOUTS]
    counts = Counter((way.variant, way.propensity) for way in first)
    assert set(counts) == {("policy", 0.8), ("upstream:gpt,temperature=0.5", 0.2)}
    assert abs(counts["policy", 0.8] / len(ROLLOUTS) - 0.8) < 0.03
    other = next(way for way in first if way.backend == "gpt")
    assert (other.alias, other.kind, other.policy) == ("policy", "openai", None)
    assert other.parameters == (("temperature", 0.5),)


def test_a_rollout_keeps_its_variant_and_propensity_while_that_has_a_share() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))

    def given() -> dict[str, tuple[str | None, float | None]]:
        found = {rollout: town.router.candidates("policy", rollout)[0] for rollout in ROLLOUTS}
        return {rollout: (way.variant, way.propensity) for rollout, way in found.items()}

    newest = RouteTarget(policy="policy", weight=0.9)
    town.says(split("policy", newest, to_upstream("gpt", 0.1)))
    before = given()
    town.says(split("policy", msgspec.structs.replace(newest, weight=1), to_upstream("gpt", 9)))
    assert given() == before
    assert town.router.candidates("policy", "ro_new")[0].propensity in (0.1, 0.9)
    town.says(split("policy", newest, to_upstream("gpt", 0)))
    kept = given()
    assert {rollout: kept[rollout] for rollout in ROLLOUTS if before[rollout][0] == "policy"} == {
        rollout: old for rollout, old in before.items() if old[0] == "policy"
    }
    assert {kept[rollout] for rollout in ROLLOUTS if before[rollout][0] != "policy"} == {
        ("policy", 1.0)
    }


def test_a_context_cell_has_shares_of_its_own_and_the_propensity_is_that_of_the_cell() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))
    newest = RouteTarget(policy="policy", weight=0.9, cell_weights={"/long": 1, "/never": 0})
    other = msgspec.structs.replace(to_upstream("gpt", 0.1), cell_weights={"/long": 3, "/never": 0})
    town.says(split("policy", newest, other))
    long = [town.router.candidates("policy", rollout, lambda: "/long")[0] for rollout in ROLLOUTS]
    found = Counter((way.variant, way.propensity, way.cell) for way in long)
    assert set(found) == {("policy", 0.25, "/long"), ("upstream:gpt", 0.75, "/long")}
    assert abs(found["policy", 0.25, "/long"] / len(ROLLOUTS) - 0.25) < 0.04
    for cell in ("/short", "/never", None):
        way = town.router.candidates("policy", f"ro_{cell}", lambda cell=cell: cell)[0]
        assert (way.propensity, way.cell) in ((0.9, cell), (0.1, cell))


def test_a_rollout_keeps_its_variant_whatever_its_context_and_the_route_become() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))

    def targets(policy: float, gpt: float) -> tuple[RouteTarget, RouteTarget]:
        return (
            RouteTarget(policy="policy", weight=0.5, cell_weights={"/long": policy}),
            msgspec.structs.replace(to_upstream("gpt", 0.5), cell_weights={"/long": gpt}),
        )

    def given(cell: str) -> list[tuple[str | None, float | None, str | None]]:
        ways = [town.router.candidates("policy", rollout, lambda: cell)[0] for rollout in ROLLOUTS]
        return [(way.variant, way.propensity, way.cell) for way in ways]

    town.says(split("policy", *targets(0.1, 0.9)))
    before = given("/long")
    assert given("/short") == before, "a longer conversation, or another role"
    town.says(split("policy", *targets(0.99, 0.01)))
    assert given("/long") == before, "new shares"
    town.says(split("policy", *targets(1.0, 0.0)))
    assert given("/long") == before, "none left in this context"


def test_without_shares_by_context_nobody_asks_for_it() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))
    town.says(split("policy", RouteTarget(policy="policy", weight=1), to_upstream("gpt", 1)))

    def never() -> str:
        raise AssertionError

    assert town.router.candidates("policy", "ro_1", never)[0].cell is None


def test_only_the_latest_rollouts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_GIVEN", 2)
    town = Town(route(), route("gpt", None, "openai", "gpt"))
    town.says(split("policy", RouteTarget(policy="policy", weight=1)))
    for rollout in ("ro_1", "ro_2", "ro_1", "ro_3"):
        town.router.candidates("policy", rollout)
        town.view.generation += 1
    town.says(split("policy", RouteTarget(policy="policy", weight=1e-9), to_upstream("gpt", 1.0)))
    found = {r: town.router.candidates("policy", r)[0].variant for r in ("ro_3", "ro_1", "ro_2")}
    assert found == {"ro_3": "policy", "ro_1": "policy", "ro_2": "upstream:gpt"}


def test_what_stands_in_for_a_missing_version_is_named_and_was_not_given_by_share() -> None:
    town = Town(route(), backends={"east": "http://east"})
    town.says(claim("policy"), update("policy@1.1"), update("policy@1.2"))
    town.says(applied("east", "policy@1.2"), pinned("policy", {"policy@1.1": 1.0}))
    (way,) = town.router.candidates("policy", "ro_1")
    assert (way.variant, way.propensity) == ("policy@1.2", None)
    town.says(applied("east", "policy@1.1"))
    (way,) = town.router.candidates("policy", "ro_1")
    assert (way.variant, way.propensity) == ("policy@1.1", 1.0)
    adapters = Town(
        route("sql", "writer"), adapters=frozenset({"writer"}), backends={"east": "http://east"}
    )
    adapters.says(pinned("sql", {"writer@1.1": 1.0}))
    assert adapters.router.candidates("sql", "ro_1")[0].variant == "writer@0.0"


def test_every_alias_names_its_variant() -> None:
    town = Town(route(), route("gpt", None, "openai", "gpt"))
    for alias, variant in (("policy", "policy"), ("gpt", "upstream:gpt")):
        way = town.router.candidates(alias, "ro_1")[0]
        assert (way.variant, way.propensity) == (variant, 1.0)
    town.says(claim("policy"), update("policy@1.1"), applied("west", "policy@1.1"))
    way = town.router.candidates("policy@1.1", "ro_1")[0]
    assert (way.variant, way.propensity) == ("policy@1.1", 1.0)


def test_an_alias_of_an_upstream_is_split_between_upstreams_only() -> None:
    town = Town(route("gpt", None, "openai", "gpt"), route("big", None, "openai", "big"), route())
    town.says(
        split(
            "gpt",
            to_upstream("gpt", 1.0),
            to_upstream("big", 1.0),
            to_upstream("gone", 2.0),
            to_upstream("policy", 2.0),
            RouteTarget(policy="policy", weight=1.0),
        )
    )
    found = Counter(town.backends(rollout, "gpt")[0] for rollout in ROLLOUTS)
    assert set(found) == {"gpt", "big"}
    assert town.router.candidates("gpt", "ro_1")[0].propensity == 0.5
    assert town.router.unserved() == {"gpt": ["upstream:gone", "upstream:policy"]}
