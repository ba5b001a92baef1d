"""The console's index on a real broker: killed at random, started again, and complete."""

# confluent-kafka annotates the futures of its admin client partially.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgurite.events import LlmCall
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, LLM_CALLS, Topic, partition_of
from services.common.kafka.consumer import read_all
from services.common.kafka.topic_admin import admin_client, create_topics
from services.common.processes.process import ChildProcess
from services.console.index.errors import IndexFailed
from services.console.index.payloads import PayloadReader
from services.console.index.reader import IndexReader
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_processors import Deployment, wait_until
from tests.synthetic import group_id, make_group

pytestmark = pytest.mark.engine

GROUPS = 300
KILLS = 8


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


class Console:
    """A console's process, started and killed."""

    def __init__(self, deployment: Deployment) -> None:
        self.path = deployment.folder / "index.duckdb"
        self.reader = IndexReader(self.path)
        self._deployment = deployment
        self._starts = 0

    def start(self) -> ChildProcess:
        """Start it, and wait until its index can be read."""
        self._starts += 1
        log = self._deployment.folder / f"console-{self._starts}.log"
        environment = self._deployment.environment | {
            "FULGURITE_CONSOLE_INDEX": str(self.path),
            "FULGURITE_CONSOLE_RETENTION_DAYS": "36500",
            "FULGURITE_CONSOLE_PORT": "0",
        }
        process = ChildProcess(
            [sys.executable, "-m", "services.console.main"], log, env=environment
        )

        def is_readable() -> bool:
            assert process.is_running, log.read_text()
            return self.count("calls") is not None

        wait_until(is_readable, "the index can be read")
        return process

    def count(self, table: str) -> int | None:
        """Rows of a table; None while it cannot be read."""
        try:
            return self.reader.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"]
        except IndexFailed:
            return None

    def indexed(self) -> dict[str, int]:
        """Records of each topic whose rows are in the index; none while it cannot be read."""
        query = "SELECT topic, sum(next_offset)::INTEGER AS records FROM positions GROUP BY topic"
        try:
            return {row["topic"]: row["records"] for row in self.reader.rows(query)}
        except IndexFailed:
            return {}

    def has(self, records: dict[Topic, int]) -> bool:
        """Whether its rows tell of at least so many records of each topic."""
        indexed = self.indexed()
        return all(indexed.get(topic.name, 0) >= count for topic, count in records.items())

    def distinct(self, table: str, column: str) -> int:
        """Values of a column, each once."""
        return self.reader.rows(f"SELECT count(DISTINCT {column}) AS n FROM {table}")[0]["n"]


def partition(number: int) -> int:
    """The partition of a group."""
    return partition_of(group_id(number).encode(), LLM_CALLS.partitions)


def records(deployment: Deployment, topic: Topic) -> int:
    return sum(1 for _ in read_all(deployment.kafka, topic, deployment.codec))


def test_an_index_that_is_killed_at_random_doubles_and_loses_nothing(
    deployment: Deployment,
) -> None:
    chance = random.Random(22)
    console = Console(deployment)
    groups = [list(make_group(number, size=4, turns=5)) for number in range(GROUPS)]
    process = console.start()
    # It is for its owner alone.
    assert console.path.stat().st_mode & 0o077 == 0
    sent = 0
    for kill in range(KILLS):
        until = (kill + 1) * GROUPS // KILLS
        deployment.publish([event for group in groups[sent:until] for event in group])
        sent = until
        # Kill it at any moment of what it does with these records.
        goal = chance.randrange(sent * 20)
        wait_until(lambda goal=goal: (console.count("calls") or 0) >= goal, "the index grows")
        process.kill()
        # Without a console, the file itself is read, whatever the kill left.
        assert (console.count("calls") or 0) >= goal
        process = console.start()
    sent_to = {
        topic: records(deployment, topic) for topic in (LLM_CALLS, AGENT_REWARDS, AGENT_STATUS)
    }
    calls, rewards = sent_to[LLM_CALLS], sent_to[AGENT_REWARDS]
    assert (calls, rewards) == (GROUPS * 20, GROUPS * 4)
    wait_until(lambda: console.has(sent_to), "the index has all")
    assert console.distinct("calls", "event_id") == calls
    assert console.distinct("rewards", "event_id") == rewards
    assert console.count("rollouts") == console.distinct("rollouts", "rollout_id") == GROUPS * 4
    assert console.count("groups") == GROUPS
    (offsets,) = console.reader.rows(
        "SELECT sum(next_offset) AS next, sum(end_offset) AS ends FROM positions "
        "WHERE topic = 'llm.calls'"
    )
    assert offsets == {"next": calls, "ends": calls}
    assert console.count("gaps") == 0
    # Every call's record is there, once.
    payloads = PayloadReader(console.reader, deployment.codec)
    for row in console.reader.rows(
        'SELECT call_id, partition, "offset" FROM calls USING SAMPLE 50'
    ):
        call = payloads.call(row["partition"], row["offset"])
        assert isinstance(call, LlmCall)
        assert call.call_id == row["call_id"]
    before = console.reader.rows("SELECT * FROM rollouts ORDER BY rollout_id")
    process.terminate()
    assert process.wait(30) == 0
    # Deleted, it is built again.
    console.path.unlink()
    process = console.start()
    wait_until(lambda: console.has(sent_to), "the index is built again")
    assert console.reader.rows("SELECT * FROM rollouts ORDER BY rollout_id") == before
    process.terminate()
    assert process.wait(30) == 0


@pytest.mark.parametrize("later", [0, 2], ids=["empty", "longer than before"])
def test_topics_that_were_made_anew_are_indexed_anew(deployment: Deployment, later: int) -> None:
    console = Console(deployment)
    deployment.publish(list(make_group(1)))
    # Of the same partition, so that the new topic has more there than the old one had.
    others = [number for number in range(2, 500) if partition(number) == partition(1)][:later]
    process = console.start()
    wait_until(lambda: console.count("calls") == 20, "the index has the first log")
    process.terminate()
    assert process.wait(30) == 0
    name = deployment.kafka.topic(LLM_CALLS)
    # Its thread ends with it, and with that the futures.
    admin = admin_client(deployment.kafka)
    for future in admin.delete_topics([name]).values():
        future.result()
    wait_until(lambda: name in create_topics(deployment.kafka), "the topic is made again")
    again = [event for number in others for event in make_group(number)]
    deployment.publish(again)
    process = console.start()
    wait_until(
        lambda: (console.count("calls"), console.count("groups")) == (20 * later, 1 + later),
        "the index is built again",
    )
    left = console.reader.rows("SELECT DISTINCT group_id FROM calls ORDER BY group_id")
    assert [row["group_id"] for row in left] == sorted(map(group_id, others))
    process.terminate()
    assert process.wait(30) == 0
