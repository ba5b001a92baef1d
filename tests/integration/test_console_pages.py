"""The console on a real broker: what is in the log is on its pages, and a signal ends it."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgurite.topics import TOPICS
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.ports import LOCALHOST, answers, free_port
from tests.integration.test_processors import WAIT_S, Deployment, wait_until
from tests.services.console.recording import MARKUP, RUN, events, topic_of
from tests.synthetic import rollout_id

pytestmark = pytest.mark.engine


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


def test_the_log_is_on_the_pages(deployment: Deployment) -> None:
    port = free_port()
    log = deployment.folder / "console.log"
    environment = deployment.environment | {
        "FULGURITE_CONSOLE_INDEX": str(deployment.folder / "console.duckdb"),
        "FULGURITE_CONSOLE_RETENTION_DAYS": "36500",
        "FULGURITE_CONSOLE_PORT": str(port),
    }

    def page(address: str) -> str:
        with urllib.request.urlopen(f"http://{LOCALHOST}:{port}{address}") as reply:
            return reply.read().decode()

    topics = {topic.name: topic for topic in TOPICS}
    for event in events():
        key = str(getattr(event, "group_id", None) or getattr(event, "policy", ""))
        deployment.producer.submit(topics[topic_of(event)], key, event).result(WAIT_S)
    process = ChildProcess([sys.executable, "-m", "services.console.main"], log, env=environment)
    try:
        wait_until(lambda: answers(port, "/healthz"), "the console answers")
        wait_until(lambda: RUN in page("/runs"), "the run is shown")
        wait_until(lambda: "policy@1.1" in page("/step"), "the version is shown")
        timeline = f"/timeline?rollout={rollout_id(0, 0)}"
        wait_until(lambda: "is 1" in page(timeline), "the answer is shown")
        assert MARKUP not in page(timeline)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
