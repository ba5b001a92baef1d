"""Records that stopped the processors once, on a real broker: each is handled or a dead letter, and
innocents' results are unharmed.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from fulgurite.events import ClaimCheck, DeadLetter, Episode, Event, LlmCall, ParentRef
from fulgurite.ids import action_id
from fulgurite.ledger.balance import balance
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    DEAD_LETTERS,
    EPISODES,
    LLM_CALLS,
    TRAJECTORIES,
    Topic,
)
from services.cli.ledger import read_sources
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_processors import Deployment, Made, wait_until
from tests.synthetic import make_call, make_group

pytestmark = pytest.mark.engine

BAD = (
    {"role": "assistant", "content": "ok", "tool_calls": bad}
    for bad in (["x"], [{"function": "x"}], 5, {"a": 1}, [None])
)
INNOCENT = range(50, 58)
BOMB = 60_000_000


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


def agents(at: int) -> list[Made]:
    """Groups in which one agent sends tool calls that are none: as the last answer, or six turns
    and a break between prompts before it.
    """
    events: list[Made] = []
    for number, message in enumerate(BAD):
        turns = [{"role": role, "content": "x"} for _ in range(6) for role in ("user", "assistant")]
        for index, said in enumerate(([message], [message, *turns])):
            group = 2 * number + index
            body = json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": "hi"},
                        *said,
                        {"role": "user", "content": "go on"},
                    ]
                }
            )
            poisoned = [
                msgspec.structs.replace(
                    make_call(group, 0, turn, at=at + 10 * turn, prompt=(turn, 5)), request=body
                )
                for turn in (7, 8, 9)
            ]
            declared, *rest = make_group(group, at=at)
            events += [declared, *poisoned, *rest]
    return events


def broken_calls(at: int) -> list[LlmCall]:
    """Calls that name places which no call has."""
    calls = [make_call(90, 0, turn, at=at) for turn in range(5)]
    digest = "ab" * 32
    claims = [
        ClaimCheck(uri=uri, sha256=digest, size=10)
        for uri in ("//[", "file:///dev/zero", f"file:///dev/ab/{digest}")
    ]
    parent = ParentRef(
        call_id=calls[0].call_id, partition=99, offset=0, shared_tokens=1, shared_messages=0
    )
    return [
        *(
            msgspec.structs.replace(call, claim_check=claim)
            for call, claim in zip(calls, claims, strict=False)
        ),
        msgspec.structs.replace(calls[3], parent=parent),
        msgspec.structs.replace(
            calls[4], parent=msgspec.structs.replace(parent, partition=0, offset=-5)
        ),
    ]


def put_raw(deployment: Deployment, value: bytes, *topics: Topic) -> None:
    """Into one partition of each topic, whatever it is; compressed it is small enough for the
    broker.
    """
    producer = Producer(
        {
            **deployment.kafka.client_config(),
            "message.max.bytes": 100_000_000,
            "compression.type": "zstd",
        }
    )
    failures: list[str] = []

    def delivered(error: object, _message: object) -> None:
        failures.extend([str(error)] if error else [])

    for topic in topics:
        for partition in range(2):
            producer.produce(
                deployment.kafka.topic(topic), value, b"key", partition, on_delivery=delivered
            )
    producer.flush()
    assert failures == []


def of_groups(deployment: Deployment, topic: Topic, numbers: Iterable[int]) -> dict[str, Event]:
    groups = {make_call(number).group_id for number in numbers}
    return {
        event.event_id: event
        for event in deployment.read(topic)
        if getattr(event, "group_id", None) in groups
    }


def test_hostile_records_are_handled_or_buried_and_innocents_are_unharmed(
    deployment: Deployment,
) -> None:
    at = int(time.time() * 1000)
    deployment.start("aggregator", "rewarder")
    hostile = broken_calls(at)
    deployment.publish([*agents(at), *hostile])
    put_raw(deployment, random.Random(0).randbytes(8_388_300), LLM_CALLS, EPISODES)
    put_raw(deployment, bytes(BOMB), LLM_CALLS, AGENT_STATUS, EPISODES, AGENT_REWARDS)
    deployment.publish([event for number in INNOCENT for event in make_group(number, at=at)])
    wait_until(
        # Four rows of each, and the record that its closing is complete.
        lambda: len(of_groups(deployment, TRAJECTORIES, INNOCENT)) == 5 * len(INNOCENT),
        "the innocents' rows are written",
    )
    wait_until(
        lambda: len(of_groups(deployment, EPISODES, range(10))) == 40,
        "the others' episodes are written",
    )
    wait_until(
        lambda: len(letters(deployment)) == len(hostile) + 4 + 8,
        "all that cannot be read is a dead letter",
    )
    deployment.kill("aggregator", "rewarder")
    deployment.start("aggregator", "rewarder")
    deployment.publish(list(make_group(60, at=at)))
    wait_until(
        lambda: len(of_groups(deployment, TRAJECTORIES, [60])) == 5,
        "what comes after a restart is written",
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}

    found = letters(deployment)
    assert sorted(action for letter in found for action in letter.actions) == sorted(
        action_id(call.call_id, 0) for call in hostile
    )
    assert (
        sum(
            letter.value is None and "do not fit into a message" in letter.error for letter in found
        )
        == 4 + 8
    )
    episodes = [
        event for event in deployment.contents(EPISODES).values() if isinstance(event, Episode)
    ]
    assert len(episodes) == 4 * (len(INNOCENT) + 11)
    assert all(episode.failure is None for episode in episodes)
    closed = balance(read_sources(deployment.kafka, deployment.codec), deployment.codec.decode, at)
    assert (closed.remainder, closed.discrepancies) == (0, ())


def letters(deployment: Deployment) -> list[DeadLetter]:
    return [
        event
        for event in deployment.contents(DEAD_LETTERS).values()
        if isinstance(event, DeadLetter)
    ]
