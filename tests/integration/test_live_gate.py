"""`fulgurite gate` against a real Kafka: what it writes follows from the log, whenever it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.enums import UpdateKind
from fulgurite.events import AgentReward, Event, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.selection.authors import GATE, evaluation_for
from fulgurite.selection.canary import GuardRails
from fulgurite.topics import AGENT_REWARDS, EPISODES, POLICY_ROUTES, POLICY_UPDATES, Topic
from services.cli.held_out import Earned
from services.cli.live_gate import LiveGate, Trials
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.policies.route_log import publish_route, write_route
from services.common.runtime.clock import now_ms
from services.local_stack.kafka_local import LocalKafka
from tests.fulgurite.selection.live_traffic import live_episode, vote
from tests.integration.gateway_process import kafka_settings

pytestmark = pytest.mark.engine

GATE_OPTIONS = ("--least", "30", "--most", "60", "--margin", "0.2", "--poll", "0.2")
LIVE = LiveGate(
    alias="policy",
    policy="policy",
    rails=GuardRails(least=30, most=60),
    margin=0.1,
    min_tasks=2,
    poll_s=0.1,
)


@pytest.fixture
def log(kafka: LocalKafka, topic_prefix: str) -> KafkaSettings:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    create_topics(settings)
    return settings


def publish(log: KafkaSettings, topic: Topic, events: Iterable[Event]) -> None:
    producer = EventProducer(log, Codec(), "test")
    for event in events:
        producer.submit(topic, getattr(event, "group_id", "policy"), event)
    assert producer.close() == 0


def version(step: int) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"update {step}",
        event_time=now_ms(),
        policy="policy",
        kind=UpdateKind.update,
        epoch=1,
        step=step,
        version=f"policy@1.{step}",
        learner_id="l",
        trained_actions=1,
    )


def claim() -> PolicyUpdate:
    return PolicyUpdate(
        event_id="claim", event_time=1, policy="policy", kind=UpdateKind.claim, epoch=1, step=0,
        learner_id="l", trained_actions=0,
    )  # fmt: skip


def serve(log: KafkaSettings, variant: str, numbers: range, thumbs: Sequence[float]) -> None:
    """Conversations with a variant, and a vote on each."""
    at = now_ms()
    episodes = [live_episode(number, variant, at=at) for number in numbers]
    votes: list[AgentReward] = [
        vote(number, thumbs[number % len(thumbs)], at=at + 10) for number in numbers
    ]
    publish(log, EPISODES, episodes)
    publish(log, AGENT_REWARDS, votes)


def routes(log: KafkaSettings) -> list[PolicyRoute]:
    events = (record.event for record in read_all(log, POLICY_ROUTES, Codec()))
    return [event for event in events if isinstance(event, PolicyRoute)]


def shares(route: PolicyRoute) -> list[tuple[str | None, float]]:
    return [(target.version, target.weight) for target in route.targets]


def target(name: str) -> RouteTarget:
    return RouteTarget(policy="policy", version=name, weight=1.0)


@contextmanager
def gate(log: KafkaSettings, folder: Path, *options: str) -> Generator[subprocess.Popen[bytes]]:
    """A gate that is killed at the end of the block."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FULGURITE_", "KAFKA_", "REDIS_"))
    }
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": log.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": log.topic_prefix,
        "FULGURITE_GATEWAY_URL": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-P", "-m", "services.cli.main", "gate", "policy"]
    with (folder / "output").open("a") as output:
        process = subprocess.Popen(
            [*command, *GATE_OPTIONS, *options],
            env=inherited | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def wait_for_routes(
    log: KafkaSettings, count: int, process: subprocess.Popen[bytes], folder: Path
) -> PolicyRoute:
    """The last route, once there are so many."""
    while len(routes(log)) < count:
        assert process.poll() is None, (folder / "output").read_text()
        time.sleep(0.1)
    return routes(log)[-1]


def test_a_gate_that_is_killed_loses_and_repeats_nothing(
    log: KafkaSettings, tmp_path: Path
) -> None:
    publish(log, POLICY_UPDATES, [claim(), version(1)])
    with gate(log, tmp_path) as process:
        pinned = wait_for_routes(log, 1, process, tmp_path)
    assert shares(pinned) == [("policy@1.1", 1.0)]

    publish(log, POLICY_UPDATES, [version(2)])
    with gate(log, tmp_path) as process:
        trial = wait_for_routes(log, 2, process, tmp_path)
    assert shares(trial) == [("policy@1.1", 0.9), ("policy@1.2", 0.1)]

    serve(log, "policy@1.1", range(100), (1.0, 1.0, 0.0))
    serve(log, "policy@1.2", range(100, 120), (0.0,))
    with gate(log, tmp_path) as process:
        while "20 users of the new version" not in (tmp_path / "output").read_text():
            assert process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.1)
    assert len(routes(log)) == 2, "nothing is decided by few users"

    serve(log, "policy@1.2", range(120, 140), (0.0,))
    with gate(log, tmp_path) as process:
        back = wait_for_routes(log, 3, process, tmp_path)
    assert shares(back) == [("policy@1.1", 1.0)]
    assert back.author == GATE
    assert back.reason.startswith("rolled back policy@1.2 against policy@1.1: reward 0.000 against")
    assert back.previous == (target("policy@1.2"),)

    publish(log, POLICY_UPDATES, [version(3)])
    with gate(log, tmp_path) as process:
        wait_for_routes(log, 4, process, tmp_path)
        serve(log, "policy@1.1", range(200, 300), (1.0, 0.0))
        serve(log, "policy@1.3", range(300, 362), (1.0,))
        promoted = wait_for_routes(log, 5, process, tmp_path)
    assert shares(promoted) == [("policy@1.3", 1.0)]
    assert promoted.previous == (target("policy@1.1"),)

    with gate(log, tmp_path) as process:
        while "policy@1.3 serves" not in (tmp_path / "output").read_text():
            assert process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.1)
    history = routes(log)
    assert len(history) == 5
    assert len({route.event_id for route in history}) == 5


def test_an_operators_route_ends_a_trial_and_stays(log: KafkaSettings, tmp_path: Path) -> None:
    publish(log, POLICY_UPDATES, [claim(), version(1)])
    with gate(log, tmp_path) as process:
        wait_for_routes(log, 1, process, tmp_path)
        publish(log, POLICY_UPDATES, [version(2)])
        wait_for_routes(log, 2, process, tmp_path)
        write_route(log, "policy", (target("policy@1.1"),), "by hand")
        while "policy@1.1 serves" not in (tmp_path / "output").read_text():
            assert process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.1)
        assert len(routes(log)) == 3
        publish(log, POLICY_UPDATES, [version(3)])
        again = wait_for_routes(log, 4, process, tmp_path)
    assert shares(again) == [("policy@1.1", 0.9), ("policy@1.3", 0.1)]


def test_an_alias_has_one_author_of_its_shares(log: KafkaSettings, tmp_path: Path) -> None:
    other = "selector a"
    ours = write_route(log, "policy", (target("policy@1.1"),), "a bandit", author=other)
    publish_route(log, msgspec.structs.replace(ours, selection="a decision"))
    with gate(log, tmp_path) as process:
        assert process.wait(60) == 1
    assert f"are written by {other}, and an alias has one author" in (
        tmp_path / "output"
    ).read_text().replace("\n", " ")


def test_a_route_that_came_first_stays(log: KafkaSettings) -> None:
    """Somebody sets a route after the gate has read the log, and before it writes."""
    publish(log, POLICY_UPDATES, [claim(), version(1), version(2)])
    write_route(log, "policy", (target("policy@1.1"),), "first")
    publish(log, POLICY_UPDATES, [version(3)])

    def measure(model: str) -> Earned:
        if model == "policy@1.3":
            write_route(log, "policy", (target("policy@1.2"),), "meanwhile")
        gain = model == "policy@1.3"
        return Earned(model, {f"task {n}": [gain * (1 + n / 10)] for n in range(4)})

    said: list[str] = []
    Trials(log, LIVE, measure, said.append).step()
    assert [route.reason for route in routes(log)][-1] == "meanwhile"
    assert "came first, and stays: meanwhile" in said[-1]


def test_held_out_tasks_come_first(log: KafkaSettings) -> None:
    publish(log, POLICY_UPDATES, [claim(), version(1)])
    said: list[str] = []
    asked: list[str] = []

    def measure(model: str) -> Earned:
        asked.append(model)
        gain = 0.5 if model == "policy@1.2" else 1.0
        return Earned(model, {f"task {n}": [n * gain] for n in range(4)})

    trials = Trials(log, LIVE, measure, said.append)
    assert trials.step()
    publish(log, POLICY_UPDATES, [version(2)])
    assert not trials.step()
    assert not trials.step(), "a version is measured once"
    assert asked == ["policy@1.1", "policy@1.2"]
    assert any("policy@1.2 gets no share: on held-out tasks" in text for text in said)
    publish(log, POLICY_UPDATES, [version(3)])
    stopped = threading.Event()
    stopped.set()
    trials.run(stopped)
    assert len(routes(log)) == 1


def start_and_stop(log: KafkaSettings) -> list[str]:
    """What a gate says that is stopped at once."""
    said: list[str] = []
    stopped = threading.Event()
    stopped.set()
    Trials(log, LIVE, None, said.append).run(stopped)
    return said


def test_a_gate_takes_back_the_route_of_an_evaluation_that_it_was_killed_in(
    log: KafkaSettings,
) -> None:
    publish(log, POLICY_UPDATES, [claim(), version(1)])
    assert Trials(log, LIVE, None, lambda _: None).step()
    (pinned,) = routes(log)
    held = msgspec.structs.replace(target("policy@1.2"), weight=0.0)
    targets, author = (*pinned.targets, held), evaluation_for("policy")
    write_route(log, "policy", targets, "evaluation of policy@1.2", author=author)
    (said,) = start_and_stop(log)
    assert said == "policy: evaluation of policy@1.2 was killed, and its route is taken back"
    assert routes(log)[-1] == pinned
    assert start_and_stop(log) == []


def test_it_takes_back_the_route_of_its_held_out_tasks_alias_and_of_no_others(
    log: KafkaSettings,
) -> None:
    whole = (target("policy@1.2"),)
    for alias, author in (("tasks", evaluation_for("policy")), ("policy", evaluation_for("x"))):
        write_route(log, alias, whole, "evaluation", author=author)
    start_and_stop(log)
    assert [(route.alias, route.targets) for route in routes(log)[2:]] == [("tasks", ())]


def test_a_route_that_was_compacted_away_is_written_from_what_replaced_it(
    log: KafkaSettings,
) -> None:
    before, author = (target("policy@1.1"),), evaluation_for("policy")
    write_route(log, "policy", (target("policy@1.2"),), "evaluation", before, author=author)
    start_and_stop(log)
    last = routes(log)[-1]
    assert (last.targets, last.author) == (before, GATE)
    assert last.reason == "taken back: evaluation"
