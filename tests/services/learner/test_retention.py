"""Which weights stay on disk: the newest, the routed, and those that a rollback returns to."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.events import PolicyRoute, RouteTarget
from services.learner.retention import prune, stored
from tests.services.learner.test_learner import PolicyLogInMemory, Trainer, learner_of, rows_of


def route(
    alias: str, *targets: tuple[str | None, float], previous: tuple[str | None, ...] = ()
) -> PolicyRoute:
    return PolicyRoute(
        event_id=alias,
        event_time=1,
        alias=alias,
        targets=tuple(
            RouteTarget(policy="policy", version=version, weight=weight)
            for version, weight in targets
        ),
        reason="",
        author="",
        previous=tuple(
            RouteTarget(policy="policy", version=version, weight=1) for version in previous
        ),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in range(1, 13):
        (tmp_path / f"1.{step}").mkdir()
        (tmp_path / f"1.{step}" / "model.safetensors").touch()
    return tmp_path


def left(folder: Path) -> list[int]:
    return [version.step for version in stored(folder, "policy")]


def test_without_routes_the_newest_stay(folder: Path) -> None:
    removed = prune(folder, "policy", 2, [])
    assert [version.step for version in removed] == list(range(1, 11))
    assert left(folder) == [11, 12]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_every_version_that_any_alias_names_stays(folder: Path) -> None:
    routes = [
        route("policy", ("policy@1.3", 0.9), ("policy@1.5", 0.0), (None, 0.1)),
        route("review", ("policy@1.7", 1.0), ("another@1.8", 1.0)),
    ]
    prune(folder, "policy", 2, routes)
    assert left(folder) == [3, 5, 7, 11, 12]


def test_a_rollback_finds_what_it_returns_to(folder: Path) -> None:
    prune(
        folder,
        "policy",
        1,
        [route("policy", ("policy@1.9", 1.0), previous=("policy@1.4", None)), route("gone")],
    )
    assert left(folder) == [4, 9, 12]


def test_a_malformed_version_in_a_route_protects_nothing_and_harms_nothing(folder: Path) -> None:
    prune(folder, "policy", 1, [route("policy", ("the best", 1.0), ("policy@0.0", 1.0))])
    assert left(folder) == [12]


def test_a_learner_keeps_the_version_that_was_routed_while_it_trained(tmp_path: Path) -> None:
    log = PolicyLogInMemory()
    log.routes["policy"] = route("policy", ("policy@1.1", 1.0))
    rows = [row for group in range(4) for row in rows_of(group, [1.0, 0.0])]
    learner, _ = learner_of(tmp_path, Trainer(), rows, log=log, publish={"keep": 1})
    learner.run()
    assert left(tmp_path / "artifacts" / "policy") == [1, 4]
