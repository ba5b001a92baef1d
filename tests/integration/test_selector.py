"""A selector as a real process on a real broker: killed, superseded, overruled, accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from fulgurite.enums import SelectionKind, SelectionMode
from fulgurite.events import Event, PolicyRoute, RouteTarget, SelectionDecision
from fulgurite.selection.rules import SelectionRules
from fulgurite.topics import AGENT_REWARDS, EPISODES, POLICY_ROUTES, SELECTION_DECISIONS
from services.cli.main import app
from services.common.runtime.clock import now_ms
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_processors import Deployment, wait_until
from tests.selection_stream import ALIAS, EASY, HARD, Model, Stream

pytestmark = pytest.mark.engine

MODELS = {
    "good": Model({EASY: 0.9, HARD: 0.9}, 0.0),
    "bad": Model({EASY: 0.2, HARD: 0.2}, 0.0),
}
QUICK = {
    "FULGURITE_SELECTOR_EVERY": "20",
    "FULGURITE_SELECTOR_WARMUP": "10",
    "FULGURITE_SELECTOR_CELLS": "0",
    "FULGURITE_SELECTOR_MODE": "automatic",
}


class Selected(Deployment):
    """A selector, and the stream of a simulated gateway that follows its routes."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path) -> None:
        super().__init__(bootstrap, prefix, folder)
        silent = SelectionRules(every=10**9)
        self.stream = Stream(silent, 1, MODELS, SelectionMode.shadow)
        self.stream.now_ms = now_ms()
        self.route = self.stream.set_route({"good": 1, "bad": 1})
        self._written = len(self.stream.log) - 1
        self.flush()

    def start_selector(self, name: str = "selector", **environment: str) -> None:
        arguments = ("--alias", ALIAS)
        self._await_ready(
            name,
            self._spawn(name, "services.selector.main", arguments, QUICK | environment),
        )

    def run(self, episodes: int) -> None:
        """Let rollouts end, by the routes that are in force."""
        for event in self.routes():
            if event not in self.stream.log:
                self.stream.write(event)
        self._written = len(self.stream.log)
        self.stream.run(episodes, settle_every=10**9)
        self.flush()

    def flush(self) -> None:
        events, self._written = self.stream.log[self._written :], len(self.stream.log)
        for event in events:
            topic = (
                POLICY_ROUTES
                if isinstance(event, PolicyRoute)
                else AGENT_REWARDS
                if type(event).__name__ == "AgentReward"
                else EPISODES
            )
            key = event.alias if isinstance(event, PolicyRoute) else _group(event)
            self.producer.publish_sync(topic, key, event)

    def routes(self) -> list[PolicyRoute]:
        return [event for event in self.read(POLICY_ROUTES) if isinstance(event, PolicyRoute)]

    def decisions(self, kind: SelectionKind = SelectionKind.shares) -> list[SelectionDecision]:
        found = [e for e in self.read(SELECTION_DECISIONS) if isinstance(e, SelectionDecision)]
        return [event for event in found if event.kind is kind]

    def share(self, name: str) -> float:
        targets = self.routes()[-1].targets
        total = sum(target.weight for target in targets)
        return sum(target.weight for target in targets if target.upstream == name) / total


def _group(event: Event) -> str:
    group: str = getattr(event, "group_id", "")
    return group


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Selected]:
    made = Selected(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


def test_a_killed_selector_loses_and_repeats_nothing(deployment: Selected) -> None:
    deployment.start_selector()
    deployment.run(60)
    wait_until(lambda: bool(deployment.decisions()), "the first decision")
    chance = random.Random(3)
    for _ in range(3):
        deployment.run(chance.randrange(20, 60))
        deployment.kill("selector")
        deployment.run(30)
        count = len(deployment.decisions())
        deployment.start_selector()
        wait_until(
            lambda count=count: len(deployment.decisions()) > count, "it goes on where it was"
        )
    wait_until(lambda: deployment.share("good") > 0.9, "the better variant has the traffic")
    decisions, routes = deployment.decisions(), deployment.routes()
    assert len({one.event_id for one in decisions}) == len(decisions)
    applied = [one.selection for one in routes if one.selection is not None]
    assert len(set(applied)) == len(applied)
    assert set(applied) <= {one.event_id for one in decisions}
    known = [one.known_until for one in decisions]
    assert known == sorted(set(known)), "nothing is decided twice"
    assert [one.epoch for one in deployment.decisions(SelectionKind.claim)] == [1, 2, 3, 4]
    assert deployment.stop() == {"selector": 0}


def test_a_second_selector_takes_over_and_an_operator_overrules_both(
    deployment: Selected,
) -> None:
    deployment.start_selector()
    deployment.run(60)
    wait_until(lambda: deployment.share("good") > 0.6, "the first one's shares")
    deployment.start_selector("second")
    first = deployment.processes.pop("selector")
    assert first.wait(30) == 1
    route = msgspec.structs.replace(
        deployment.route,
        event_id="by-hand",
        event_time=deployment.stream.now_ms,
        targets=(
            RouteTarget(policy="", upstream="good", weight=0.3),
            RouteTarget(policy="", upstream="bad", weight=0.7),
        ),
    )
    deployment.producer.publish_sync(POLICY_ROUTES, ALIAS, route)
    deployment.run(60)
    wait_until(lambda: deployment.decisions()[-1].base_id == "by-hand", "it starts again")
    assert deployment.stop() == {"second": 0}


def test_a_proposal_waits_until_it_is_accepted(
    deployment: Selected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", deployment.kafka.bootstrap_servers)
    monkeypatch.setenv("FULGURITE_TOPIC_PREFIX", deployment.kafka.topic_prefix)
    cli = CliRunner()

    def select(*arguments: str) -> tuple[int, str]:
        done = cli.invoke(app, ["select", *arguments])
        return done.exit_code, " ".join(done.output.split())

    assert select("status")[0] == 0
    assert "no selector has run" in select("status")[1]
    code, text = select("status", "--alias", ALIAS)
    assert (code, "selectors have run for: no alias" in text) == (1, True)
    assert select("accept", ALIAS)[0] == 1
    deployment.start_selector(FULGURITE_SELECTOR_MODE="proposal")
    assert "nothing is decided yet" in select("status")[1]
    code, text = select("accept", ALIAS)
    assert (code, "there is no proposal" in text) == (1, True)
    deployment.run(120)
    wait_until(
        lambda: (
            bool(found := deployment.decisions())
            and sum(one.episodes for one in found[-1].variants) > 100
        ),
        "the last proposal for these episodes",
    )
    code, text = select("status", "--alias", ALIAS)
    assert code == 0
    for word in ("proposal, decided", "upstream:good", "50.0%", "upstream:good minus upstream:bad"):
        assert word in text
    assert '"selector"' in select("status", "--json")[1]
    assert deployment.share("good") == 0.5
    code, text = select("accept", ALIAS)
    assert code == 0, text
    assert deployment.share("good") > 0.5
    accepted = deployment.routes()[-1]
    assert accepted.selection == deployment.decisions()[-1].event_id
    code, text = select("accept", ALIAS)
    assert (code, "for another route than the one in force" in text) == (1, True)
    deployment.run(40)
    wait_until(
        lambda: deployment.decisions()[-1].replaces == accepted.event_id, "it goes on from there"
    )
    assert deployment.decisions()[-1].base_id == deployment.route.event_id
    assert deployment.stop() == {"selector": 0}
