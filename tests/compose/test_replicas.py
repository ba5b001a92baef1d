"""docker-compose.ha.yml, used while parts of it are away: three brokers, two gateways behind one
port, two of each worker.
"""

from __future__ import annotations

import subprocess
from collections.abc import Generator

import pytest

from tests.compose.deployment import PROJECT, Deployment, balanced, timed, wait_for
from tests.compose.engine import HERE, ROOT, say
from tests.compose.traffic import Client, Traffic

pytestmark = pytest.mark.compose

FILES = (ROOT / "docker-compose.yml", ROOT / "docker-compose.ha.yml", HERE / "override.yml")
BROKERS = ("kafka", "kafka-2", "kafka-3")
WORKERS = ("aggregator", "aggregator-2", "rewarder", "rewarder-2")
LASTING = (
    *BROKERS,
    *WORKERS,
    "redis",
    "vllm",
    "learner",
    "applier",
    "gateway",
    "gateway-2",
    "balancer",
)
READ = """
import sys
from fulgurite.avro.codec import Codec
from fulgurite.topics import LLM_CALLS, TRAJECTORIES
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings
topic, name = {"calls": (LLM_CALLS, "call_id"), "groups": (TRAJECTORIES, "group_id")}[sys.argv[1]]
print(*{getattr(record.event, name) for record in read_all(KafkaSettings(), topic, Codec())})
"""


@pytest.fixture(scope="module")
def replicas(deployment: Deployment) -> Generator[Deployment]:
    made = Deployment(deployment.environment, FILES)
    made.settings = {**deployment.settings, "GATEWAY_PORT": str(made.gateway_port)}
    made.down()
    yield made
    made.down()


@pytest.fixture(scope="module")
def client(replicas: Deployment) -> Client:
    return Client(replicas)


def logged(replicas: Deployment, what: str) -> set[str]:
    """The ids of all calls, or of all groups that have rows for training, whether trained or left
    out.
    """
    done = replicas.cli("python", "-c", READ, what)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


def ready(replicas: Deployment) -> str:
    """What the gateway behind the port says of itself."""
    return subprocess.run(
        ["curl", "--silent", f"{replicas.url}/readyz"], capture_output=True, text=True, check=True
    ).stdout


def back(replicas: Deployment, *services: str) -> None:
    """As after a repair."""
    replicas.docker("start", *(f"{PROJECT}-{service}-1" for service in services))
    for service in services:
        wait_for(
            lambda service=service: replicas.healthy(service), 180, f"{service} is healthy again"
        )


def goes_on(client: Client, seconds: float, what: str) -> None:
    """Five more calls are answered, and recorded by their gateway."""
    known = len(client.acknowledged)
    wait_for(lambda: len(client.acknowledged) >= known + 5, seconds, f"calls are answered {what}")


def test_three_brokers_and_two_of_everything_come_up(replicas: Deployment, client: Client) -> None:
    timed(
        "up until all is healthy, replicas",
        lambda: replicas.must("up", "--detach", "--wait", "--wait-timeout", "600"),
    )
    assert all(replicas.healthy(service) for service in LASTING)
    assert "survives the loss of 1 broker" in ready(replicas)
    replicas.read_keys()
    assert client.ask(replicas.keys["OPENAI_API_KEY"], "How many is 3 and 8?") is not None, (
        replicas.logs("gateway")[-3000:]
    )
    say("  " + replicas.must("ps").replace("\n", "\n  "))


def test_only_the_balancer_is_reached_from_outside(replicas: Deployment) -> None:
    assert [
        service for service in LASTING if replicas.inspect(service)["HostConfig"]["PortBindings"]
    ] == ["balancer"]


def test_calls_go_on_without_a_broker(replicas: Deployment, client: Client) -> None:
    """The first: it is what a health check would ask that knows only one."""
    with Traffic(client):
        goes_on(client, 60, "before a broker dies")
        replicas.must("kill", "kafka")
        timed(
            "five calls without the first broker",
            lambda: goes_on(client, 120, "without the first broker"),
        )
        for worker in WORKERS:
            wait_for(
                lambda worker=worker: replicas.healthy(worker),
                120,
                f"{worker} is healthy without the first broker",
            )
        goes_on(client, 60, "while a broker is away")
        timed("the broker back", lambda: back(replicas, "kafka"))


def test_calls_go_on_without_a_gateway(replicas: Deployment, client: Client) -> None:
    refused = client.refused
    with Traffic(client):
        goes_on(client, 60, "before a gateway dies")
        replicas.must("kill", "gateway")
        timed(
            "five calls through the other gateway",
            lambda: goes_on(client, 120, "through the other gateway"),
        )
        back(replicas, "gateway")
        replicas.must("kill", "gateway-2")
        goes_on(client, 120, "through the first again")
        back(replicas, "gateway-2")
    say(f"  {client.refused - refused} calls were cut off")


def test_the_other_worker_takes_over(replicas: Deployment, client: Client) -> None:
    replicas.must("kill", "aggregator", "rewarder")

    def decided() -> None:
        groups = {client.play(), client.play()}
        assert None not in groups
        wait_for(
            lambda: groups <= logged(replicas, "groups"),
            120,
            "groups are decided by the other aggregator and rewarder",
        )

    timed("two groups, decided by the other aggregator and rewarder", decided)
    back(replicas, "aggregator", "rewarder")


def test_nothing_is_lost(replicas: Deployment, client: Client) -> None:
    assert client.acknowledged <= logged(replicas, "calls")
    assert balanced(replicas) != {}


def test_down_leaves_nothing(replicas: Deployment) -> None:
    replicas.must("--profile", "*", "down", "--volumes")
    assert replicas.leftovers() == ""
