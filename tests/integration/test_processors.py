"""Aggregator, rewarder and reward worker as real processes on a real broker, killed and started
again.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from fulgurite.avro.codec import Codec
from fulgurite.enums import CallOutcome, EpisodeOutcome, FilterReason, Mode, StatusKind, TrainingUse
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.group_revisions import RevisionLog
from fulgurite.ids import action_id
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    DEAD_LETTERS,
    EPISODES,
    LLM_CALLS,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.common.kafka.consumer import read_all
from services.common.kafka.delivery import Delivery
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.ports import free_ports
from tests.synthetic import group_id, make_call, make_declared, make_group, make_reward, make_status

pytestmark = pytest.mark.engine

WAIT_S = 120.0
Made = LlmCall | AgentStatus | AgentReward


def topic_of(event: Made) -> Topic:
    return {LlmCall: LLM_CALLS, AgentStatus: AGENT_STATUS, AgentReward: AGENT_REWARDS}[type(event)]


class Deployment:
    """One topic prefix and the processes on it."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix)
        self.folder = folder
        self.codec = Codec()
        self.processes: dict[str, ChildProcess] = {}
        self.environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "FULGURITE_TOPIC_PREFIX": prefix,
            "FULGURITE_AGGREGATOR_COMMIT_INTERVAL_S": "0.1",
            "FULGURITE_REWARDER_COMMIT_INTERVAL_S": "0.1",
        }
        create_topics(self.kafka)
        self.producer = EventProducer(self.kafka, self.codec, "test")
        self._starts = 0

    def start(self, *names: str, **environment: str) -> None:
        """Start services by name and wait until they own their partitions."""
        logs = {name: self._spawn(name, f"services.{name}.main", (), environment) for name in names}
        for name, log in logs.items():
            self._await_ready(name, log)

    def start_worker(self, *arguments: str, **environment: str) -> None:
        self._await_ready(
            "worker", self._spawn("worker", "services.rewards.worker", arguments, environment)
        )

    def _spawn(
        self, name: str, module: str, arguments: Sequence[str], environment: dict[str, str]
    ) -> Path:
        self._starts += 1
        log = self.folder / f"{name}-{self._starts}.log"
        self.processes[name] = ChildProcess(
            [sys.executable, "-m", module, *arguments], log, env=self.environment | environment
        )
        return log

    def _await_ready(self, name: str, log: Path) -> None:
        def ready() -> bool:
            assert self.processes[name].is_running, log.read_text()
            return '"event": "ready"' in log.read_text()

        wait_until(ready, f"{name} is ready")

    def kill(self, *names: str) -> None:
        """kill -9."""
        for name in names:
            self.processes.pop(name).kill()

    def stop(self) -> dict[str, int | None]:
        """SIGTERM to all; exit codes."""
        for process in self.processes.values():
            process.terminate()
        return {name: process.wait(30) for name, process in self.processes.items()}

    def publish(self, events: Sequence[Made]) -> None:
        """Publish; return when all is acknowledged. As with the gateway, a declaration is in the log
        before its group's first call is, and what a group did before its next status.
        """
        pending: dict[str, list[Future[Delivery]]] = {}
        for event in events:
            earlier = pending.setdefault(event.group_id, [])
            if isinstance(event, AgentStatus):
                while earlier:
                    earlier.pop().result(WAIT_S)
            earlier.append(self.producer.submit(topic_of(event), event.group_id, event))
            if isinstance(event, AgentStatus) and event.kind is StatusKind.declared:
                earlier.pop().result(WAIT_S)
        for futures in pending.values():
            for future in futures:
                future.result(WAIT_S)

    def read(self, topic: Topic) -> list[Event]:
        """Every event in a topic, without what a test put there to poison it."""
        return [
            record.event
            for record in read_all(self.kafka, topic, self.codec)
            if record.event is not None
        ]

    def contents(self, topic: Topic) -> dict[str, Event]:
        """A topic as a set of ids with contents; two events with one id must be the same."""
        found: dict[str, Event] = {}
        for event in self.read(topic):
            assert found.setdefault(event.event_id, event) == event
        return found

    def close(self) -> None:
        self.producer.close()
        for process in self.processes.values():
            process.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s until {what}"
        time.sleep(0.1)


@pytest.fixture
def deployments(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[list[Deployment]]:
    """Two deployments of their own on one broker."""
    made: list[Deployment] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(Deployment(kafka.bootstrap_servers, f"{topic_prefix}{name}.", tmp_path / name))
    yield made
    for deployment in made:
        deployment.close()


@pytest.fixture
def deployment(deployments: list[Deployment]) -> Deployment:
    """One of them."""
    return deployments[0]


def overlapping(groups: int, at: int, at_once: int = 20) -> list[Made]:
    """Groups of 4 rollouts with 5 calls each, some twenty of them open at any time; the order is
    always the same.
    """
    chance = random.Random(7)
    waiting = [list(make_group(number, at=at)) for number in range(groups)]
    active = [waiting.pop(0) for _ in range(at_once)]
    events: list[Made] = []
    while active:
        chosen = chance.choice(active)
        events.append(chosen.pop(0))
        if not chosen:
            active.remove(chosen)
            active.extend([waiting.pop(0)] if waiting else [])
    return events


def rows(deployment: Deployment) -> list[Event]:
    """Rows and tombstones."""
    return [
        event
        for event in deployment.contents(TRAJECTORIES).values()
        if not isinstance(event, GroupClosed)
    ]


def closings(deployment: Deployment) -> list[GroupClosed]:
    """The last record of every closing, in the order of each partition."""
    return [
        event
        for event in deployment.contents(TRAJECTORIES).values()
        if isinstance(event, GroupClosed)
    ]


def test_killed_processors_write_the_trajectories_of_undisturbed_ones(
    deployments: list[Deployment],
) -> None:
    undisturbed, disturbed = deployments
    events = overlapping(groups=100, at=int(time.time() * 1000))
    assert sum(isinstance(event, LlmCall) for event in events) == 2_000
    parts = [events[start : start + 550] for start in range(0, len(events), 550)]

    undisturbed.start("aggregator", "rewarder")
    undisturbed.publish(events)
    wait_until(lambda: len(closings(undisturbed)) == 100, "the undisturbed run is complete")
    assert undisturbed.stop() == {"aggregator": 0, "rewarder": 0}

    disturbed.start("aggregator", "rewarder")
    for number, part in enumerate(parts):
        before = len(rows(disturbed))
        disturbed.publish(part)
        if number in (1, 3):
            # Dead in the middle: some of this part is written, some is not.
            wait_until(
                lambda before=before: len(rows(disturbed)) > before, "some of the part is written"
            )
            disturbed.kill("aggregator", "rewarder")
            disturbed.publish(parts[number][:100])
            disturbed.start("aggregator", "rewarder")
        elif number == 2:
            disturbed.kill("rewarder")
            disturbed.start("rewarder")
    wait_until(lambda: len(closings(disturbed)) >= 100, "the disturbed run is complete")
    assert disturbed.stop() == {"aggregator": 0, "rewarder": 0}

    expected = undisturbed.contents(TRAJECTORIES)
    assert disturbed.contents(TRAJECTORIES) == expected
    assert disturbed.contents(EPISODES) == undisturbed.contents(EPISODES)
    trained = [
        action_id(a.call_id, a.choice)
        for row in expected.values()
        if isinstance(row, Trajectory)
        for a in row.actions
        if a.loss
    ]
    assert sorted(trained) == sorted(
        action_id(event.call_id, 0) for event in events if isinstance(event, LlmCall)
    )
    for topic in (DEAD_LETTERS, TRAINING_LEDGER):
        assert disturbed.read(topic) == undisturbed.read(topic) == []


def test_nothing_is_written_twice_or_lost_after_a_quiet_restart(deployment: Deployment) -> None:
    at = int(time.time() * 1000)
    deployment.start("aggregator", "rewarder")
    deployment.publish(overlapping(groups=20, at=at))
    wait_until(lambda: len(closings(deployment)) == 20, "all groups are closed")
    deployment.kill("aggregator", "rewarder")
    deployment.start("aggregator", "rewarder")
    marker = list(make_group(999, at=at))
    deployment.publish(marker)
    wait_until(lambda: len(closings(deployment)) == 21, "the group after the restart is closed")
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}
    assert len(deployment.read(TRAJECTORIES)) == 84 + 21
    assert len(deployment.read(EPISODES)) == 84


def metric(port: int, name: str) -> float:
    """The value of a series of a service's metrics port; -1 if it is not shown yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
    return -1.0


def test_processors_and_workers_show_what_they_consumed_and_their_lag(
    deployment: Deployment,
) -> None:
    aggregator, worker = free_ports(2)
    deployment.start("aggregator", FULGURITE_METRICS_PORT=str(aggregator))
    deployment.start_worker("--reward", "builtin:f1", FULGURITE_METRICS_PORT=str(worker))
    events = [event for number in range(3) for event in make_group(number)]
    calls = sum(isinstance(event, LlmCall) for event in events)
    deployment.publish(events)
    deployment.producer.submit(LLM_CALLS, "g", make_reward(1, 1)).result(WAIT_S)

    def shows(port: int, name: str, value: float) -> None:
        wait_until(lambda: metric(port, name) == value, f"{name} is {value}")

    shows(aggregator, 'fulgurite_consumed_records_total{topic="llm.calls"}', calls + 1)
    shows(aggregator, 'fulgurite_consumer_lag_records{topic="llm.calls"}', 0)
    shows(aggregator, 'fulgurite_consumer_lag_records{topic="agent.status"}', 0)
    shows(aggregator, 'fulgurite_published_events_total{topic="dead.letters"}', 1)
    episodes = len(deployment.read(EPISODES))
    wait_until(
        lambda: (
            metric(worker, 'fulgurite_consumed_records_total{topic="episodes"}') >= episodes > 0
        ),
        "the worker has read the episodes",
    )
    shows(worker, 'fulgurite_consumer_lag_records{topic="episodes"}', 0)


def test_verdicts_retries_late_calls_and_poison(deployment: Deployment) -> None:
    times = {
        "FULGURITE_REWARDER_GRACE_S": "1",
        "FULGURITE_REWARDER_AMEND_EVERY_S": "0",
        "FULGURITE_AGGREGATOR_SILENCE_S": "2",
    }
    deployment.start("aggregator", "rewarder", **times)
    poison = Producer(deployment.kafka.client_config())
    for topic in (LLM_CALLS, AGENT_STATUS, EPISODES, AGENT_REWARDS):
        for partition in range(topic.partitions):
            poison.produce(deployment.kafka.topic(topic), b"no frame", b"key", partition=partition)
    poison.flush()
    now = int(time.time() * 1000)
    late = make_call(0, 0, 9, at=now + 20)
    deployment.publish(
        [
            # 0 ends well, 1 is heard of and never ends, 2 fails and is tried again, 3 is never
            # heard of.
            make_declared(0, size=4, at=now, deadline=now + 3_000, max_attempts=2),
            make_call(0, 0, 0, at=now + 10),
            make_status(0, 0, at=now + 100),
            make_reward(0, 0, 1.0, at=now + 200),
            make_call(0, 1, 0, at=now + 10),
            make_reward(0, 1, 0.0, at=now + 200),
            make_call(0, 2, 0, at=now + 10),
            make_status(
                0,
                2,
                StatusKind.failed,
                at=now + 100,
                failure=FailureKind.infrastructure,
                will_retry=True,
            ),
            make_call(0, 2, 1, attempt=1, at=now + 110),
            make_status(0, 2, attempt=1, at=now + 200),
            # Undeclared traffic ends by silence.
            make_call(1, 0, 0, at=now, mode=Mode.live),
            make_reward(1, 0, 0.5, at=now + 10),
        ]
    )
    wait_until(lambda: len(rows(deployment)) == 5, "both groups are closed")
    deployment.publish(
        [
            late,
            msgspec.structs.replace(
                late, event_id="x", call_id="x", outcome=CallOutcome.client_disconnected
            ),
        ]
    )
    wait_until(
        lambda: late.call_id in calls_of_newest(deployment, late.group_id),
        "the group is re-closed",
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}

    found = rows(deployment)
    last = newest(deployment, late.group_id)
    declared = [
        row
        for row in found
        if isinstance(row, Trajectory | Tombstone) and row.group_revision == last
    ]
    outcome = {
        row.rollout_id.split("_")[2]: row.reason if isinstance(row, Tombstone) else None
        for row in declared
    }
    assert outcome == {"0": None, "1": None, "2": FilterReason.no_reward, "3": FilterReason.missing}
    (live,) = (row for row in found if isinstance(row, Trajectory) and row.mode is Mode.live)
    assert (live.episode_reward, live.group_size) == (0.5, 1)
    reasons = {(entry.group_revision == last, entry.reason) for entry in entries(deployment)}
    assert reasons == {
        (newest, reason)
        for newest in (True, False)
        for reason in (FilterReason.superseded, FilterReason.no_reward)
    }
    episodes = [event for event in deployment.read(EPISODES) if isinstance(event, Episode)]
    verdicts = {
        episode.rollout_id: episode.failure
        for episode in episodes
        if episode.outcome is EpisodeOutcome.timed_out
    }
    assert sorted(str(failure) for failure in verdicts.values()) == [
        "None",
        "agent_silent",
        "agent_timeout",
    ]
    revisions = [episode for episode in episodes if late.call_id in episode.inputs]
    assert revisions
    assert revisions[0].supersedes in {episode.revision for episode in episodes}
    letters = [event for event in deployment.read(DEAD_LETTERS) if isinstance(event, DeadLetter)]
    assert len({letter.event_id for letter in letters}) == 32
    assert {letter.stage for letter in letters} == {"aggregator", "rewarder"}


def test_live_traffic_that_is_opted_in_is_closed_for_training(deployment: Deployment) -> None:
    times = {
        "FULGURITE_AGGREGATOR_SILENCE_S": "2",
        "FULGURITE_REWARDER_LIVE_WAIT_S": "2",
        "FULGURITE_REWARDER_AMEND_EVERY_S": "0",
    }
    deployment.start("aggregator", "rewarder", **times)
    now = int(time.time() * 1000)
    uses = (TrainingUse.live, TrainingUse.live, TrainingUse.quota, TrainingUse.excluded)
    deployment.publish(
        [
            *(
                make_call(number, at=now, mode=Mode.live, use=use)
                for number, use in enumerate(uses)
            ),
            *(make_reward(number, 0, 1.0, at=now + 10) for number in (0, 2, 3)),
        ]
    )
    wait_until(lambda: len(rows(deployment)) == 4, "all groups are closed")
    deployment.publish([make_reward(1, 0, 0.5, at=now + 10)])
    wait_until(lambda: len(rows(deployment)) == 5, "the late vote closes its group again")
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}
    found = [row for row in rows(deployment) if isinstance(row, Trajectory | Tombstone)]
    assert {
        (row.group_id, row.mode, row.reason if isinstance(row, Tombstone) else None)
        for row in found
    } == {
        (group_id(0), Mode.train, None),
        (group_id(1), Mode.train, FilterReason.no_reward),
        (group_id(1), Mode.train, None),
        (group_id(2), Mode.train, FilterReason.quota),
        (group_id(3), Mode.live, FilterReason.excluded),
    }
    assert sorted(str(entry.reason) for entry in entries(deployment)) == ["no_reward", "quota"]


def test_rewards_that_leave_float32_stop_nobody_and_train_nothing(deployment: Deployment) -> None:
    """The gateway takes none of these: what is in the log of an older one, or was written past it."""
    at = int(time.time() * 1000)
    deployment.start("aggregator", "rewarder")
    rules = ("identical", "step", "discounted", "last_step", "gigpo", "per_role")
    values = {
        0: (1e308, 1e308),
        1: (-1e308, -1e308),
        2: (1e39, 0.0),
        3: (math.inf, 0.0),
        4: (math.nan, 0.0),
        5: (1.0, 0.0),
        6: (0.0, 0.0),
    }
    events: list[Made] = []
    for number, rule in enumerate(rules):
        events.append(
            make_declared(
                number,
                size=len(values),
                at=at,
                deadline=at + 600_000,
                expected=("a", "b"),
                credit=rule,
            )
        )
        for index, (outcome, of_call) in values.items():
            call = make_call(number, index, at=at + 1)
            events += [call, make_status(number, index, at=at + 2)]
            events.append(make_reward(number, index, outcome, name="a", at=at + 3))
            events.append(
                make_reward(
                    number, index, of_call, name="b", call_id=call.call_id, choice=0, at=at + 3
                )
            )
    weighted = len(rules)
    events.append(
        make_declared(weighted, at=at, deadline=at + 600_000, expected=("a",), weights={"a": 1e308})
    )
    for index, value in enumerate((100.0, 0.0)):
        events += [make_call(weighted, index, at=at + 1), make_status(weighted, index, at=at + 2)]
        events.append(make_reward(weighted, index, value, name="a", at=at + 3))
    deployment.publish(events)
    wait_until(
        lambda: len(rows(deployment)) == len(values) * len(rules) + 2, "all groups are closed"
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}

    found = rows(deployment)
    trained = [row for row in found if isinstance(row, Trajectory)]
    assert len(trained) == 2 * len(rules) + 1
    for row in trained:
        assert all(map(math.isfinite, [row.episode_reward or 0.0, *row.rewards.values()]))
        assert all(
            math.isfinite(action.reward) and math.isfinite(action.credit) for action in row.actions
        )
    assert {stone.reason for stone in found if isinstance(stone, Tombstone)} == {
        FilterReason.reward_failed
    }
    assert {entry.reason for entry in entries(deployment)} == {FilterReason.reward_failed}
    assert deployment.read(DEAD_LETTERS) == []
    assert (
        "of its 2 rewards add up to inf; at most 1e+12 can be trained"
        in next(deployment.folder.glob("rewarder-*.log")).read_text()
    )


REWARDS_THAT_HURT = """
import asyncio, sys

class Mute(Exception):
    def __str__(self): raise RuntimeError("no")

def exits(): sys.exit(3)
def interrupted(): raise KeyboardInterrupt
async def cancelled(): raise asyncio.CancelledError
def mute(): raise Mute
def half(): raise ValueError("a" + chr(0xd83c))
def half_name(): return {"a" + chr(0xd83c): 1.0}
def long(): raise ValueError("x" * 9_000_000)
def long_name(): return {"x" * 9_000_000: 1.0}
def huge(): return 10**400
def good(): return 0.5

def score(episode):
    return globals()[episode.task["question"]]()
"""


def test_whatever_a_reward_function_raises_or_returns_is_a_reward_and_the_next_episode_is_judged(
    deployment: Deployment,
) -> None:
    at = int(time.time() * 1000)
    (deployment.folder / "rewards.py").write_text(REWARDS_THAT_HURT)
    deployment.start("aggregator", "rewarder")
    worker = {"FULGURITE_REWARD_WORKER_CONCURRENCY": "2"}
    deployment.start_worker("--reward", f"{deployment.folder}/rewards.py:score", **worker)
    asked = (
        "exits",
        "interrupted",
        "cancelled",
        "mute",
        "half",
        "half_name",
        "long",
        "long_name",
        "huge",
        "good",
    )
    for number, name in enumerate(asked):
        task = json.dumps({"question": name})
        deployment.publish(
            [
                make_declared(number, size=1, at=at, deadline=at + 600_000, task=task),
                make_call(number, 0, at=at + 1),
                make_status(number, 0, at=at + 2),
            ]
        )
    wait_until(
        lambda: len(rows(deployment)) == len(asked),
        "every episode is judged and every group closed",
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0, "worker": 0}
    rewards = {
        event.group_id: event
        for event in deployment.read(AGENT_REWARDS)
        if isinstance(event, AgentReward)
    }
    told = {name: rewards[make_call(number).group_id] for number, name in enumerate(asked)}
    assert told.pop("good").value == 0.5
    assert all(reward.value is None and reward.error for reward in told.values())
    assert (
        sum(
            isinstance(row, Tombstone) and row.reason is FilterReason.reward_failed
            for row in rows(deployment)
        )
        == len(asked) - 1
    )


def test_a_session_without_an_end_does_not_take_the_memory_of_others(
    deployment: Deployment,
) -> None:
    at = int(time.time() * 1000)
    deployment.start(
        "aggregator", FULGURITE_AGGREGATOR_ATTEMPT_MB="0.05", FULGURITE_AGGREGATOR_SILENCE_S="600"
    )
    session = [
        msgspec.structs.replace(
            make_call(0, 0, turn, at=at + turn, mode=Mode.train),
            request=random.Random(turn).randbytes(5_000).hex(),
        )
        for turn in range(12)
    ]
    deployment.publish(session[:6])
    wait_until(
        lambda: len(letters_of(deployment)) == 3, "it is given up, and what came since is refused"
    )
    deployment.publish([*session[6:], *make_group(1, at=at)])
    wait_until(
        lambda: len(deployment.read(EPISODES)) == 4, "the other group's episodes are written"
    )
    wait_until(lambda: len(letters_of(deployment)) == 9, "all is accounted for")
    deployment.kill("aggregator")
    deployment.start("aggregator")
    assert deployment.stop() == {"aggregator": 0}

    first, *rest = sorted(letters_of(deployment), key=lambda letter: -len(letter.actions))
    assert first.error_type == "AttemptTooLarge"
    assert {letter.error_type for letter in rest} == {"Rejected"}
    lost = [action for letter in (first, *rest) for action in letter.actions]
    assert sorted(lost) == sorted(action_id(call.call_id, 0) for call in session)
    assert {
        event.group_id for event in deployment.read(EPISODES) if isinstance(event, Episode)
    } == {make_call(1).group_id}


def letters_of(deployment: Deployment) -> list[DeadLetter]:
    return [
        event
        for event in deployment.contents(DEAD_LETTERS).values()
        if isinstance(event, DeadLetter)
    ]


def newest(deployment: Deployment, group_id: str) -> str | None:
    """The revision of a group that counts."""
    written = RevisionLog()
    for event in deployment.read(TRAJECTORIES):
        if isinstance(event, Trajectory | Tombstone | GroupClosed) and event.group_id == group_id:
            written.add(event)
    return written.current


def calls_of_newest(deployment: Deployment, group_id: str) -> set[str]:
    last = newest(deployment, group_id)
    found = [
        row
        for row in rows(deployment)
        if isinstance(row, Trajectory) and row.group_revision == last
    ]
    return {action.call_id for row in found for action in row.actions}


def entries(deployment: Deployment) -> list[LedgerEntry]:
    return [event for event in deployment.read(TRAINING_LEDGER) if isinstance(event, LedgerEntry)]


def test_reward_functions_are_called_and_their_failures_told(
    deployment: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(
        "import time\ndef fn(episode):\n    index = int(episode.rollout_id.split('_')[2])\n    if "
        "index == 1: raise ValueError('no such thing')\n    if index == 2: time.sleep(600)\n    if "
        "index == 3: return float('nan')\n    return {'reward': len(episode.calls), 'style': 0.5}\n"
    )
    at = int(time.time() * 1000)
    events: list[Made] = [
        event for event in make_group(0, at=at) if not isinstance(event, AgentReward)
    ]
    declared = make_declared(0, 4, at=at, deadline=at + 600_000, run_id="mine")
    others = [event for event in make_group(1, at=at) if not isinstance(event, AgentReward)]
    deployment.start("aggregator", "rewarder")
    deployment.start_worker(
        "--reward",
        f"{tmp_path}/rewards.py:fn",
        "--run-id",
        "mine",
        FULGURITE_REWARD_WORKER_TIMEOUT_S="1",
    )
    deployment.publish([declared, *events[1:], *others])
    wait_until(lambda: len(rows(deployment)) == 4, "the group is closed")
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0, "worker": 0}

    rewards = [event for event in deployment.read(AGENT_REWARDS) if isinstance(event, AgentReward)]
    told = {
        (reward.rollout_id.split("_")[2], reward.name): (reward.value, reward.error)
        for reward in rewards
    }
    assert told == {
        ("0", "reward"): (5.0, None),
        ("0", "style"): (0.5, None),
        ("1", "reward"): (None, "ValueError: no such thing"),
        ("2", "reward"): (None, "no value within 1 s"),
        ("3", "reward"): (
            None,
            "rewards.py:fn returned nan (float) for 'reward': expected a number from -1000000 to "
            "1000000",
        ),
    }
    assert {
        row.group_id for row in rows(deployment) if isinstance(row, Trajectory | Tombstone)
    } == {declared.group_id}
    assert (
        sum(
            isinstance(row, Tombstone) and row.reason is FilterReason.reward_failed
            for row in rows(deployment)
        )
        == 3
    )


def test_a_worker_that_cannot_load_its_function_says_so(
    deployment: Deployment, tmp_path: Path
) -> None:
    async def run() -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.rewards.worker", "--reward", f"{tmp_path}/none.py:fn"),
            env=deployment.environment,
            stderr=asyncio.subprocess.PIPE,
        )
        _, stderr = await process.communicate()
        return process.returncode, stderr

    code, stderr = asyncio.run(run())
    assert code == os.EX_CONFIG
    assert b"expected FILE.py:FUNCTION" in stderr


def test_three_workers_own_the_same_partitions_of_both_topics(deployment: Deployment) -> None:
    at = int(time.time() * 1000)
    for instance in ("one", "two", "three"):
        log = deployment._spawn(  # pyright: ignore[reportPrivateUsage]
            f"aggregator-{instance}",
            "services.aggregator.main",
            (),
            {"FULGURITE_AGGREGATOR_INSTANCE": instance},
        )
        deployment._await_ready(f"aggregator-{instance}", log)  # pyright: ignore[reportPrivateUsage]
    deployment.start("rewarder")
    deployment.publish(overlapping(groups=40, at=at))
    wait_until(lambda: len(rows(deployment)) == 160, "all rows are written")
    # One worker dies; after its session the others go on with its partitions.
    deployment.kill("aggregator-two")
    deployment.publish([event for number in range(50, 70) for event in make_group(number, at=at)])
    wait_until(lambda: len(rows(deployment)) == 240, "the dead worker's share is written too")
    assert set(deployment.stop().values()) == {0}
