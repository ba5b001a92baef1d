"""Deltas and claim checks from gateway to aggregator: episodes are whole; what cannot be made whole
is a dead letter with its actions.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import link_of, shorten
from fulgurite.events import DeadLetter, Episode, Event, LlmCall
from fulgurite.ids import action_id
from fulgurite.tokens import pack_ids, prompt_hash
from fulgurite.topics import AGENT_STATUS, DEAD_LETTERS, EPISODES, LLM_CALLS, Topic
from services.cli.ledger import read_books
from services.cli.main import app
from services.common.blobs.blob_store import redeemed
from services.common.kafka.consumer import read_all
from services.common.kafka.logged_calls import CallReader
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from services.replay.archive import ArchiveSource
from services.replay.groups import read_groups
from tests.integration.gateway_process import kafka_settings, running_gateway
from tests.integration.stub_upstream import running_stub
from tests.synthetic import make_call, make_declared, make_status

pytestmark = [pytest.mark.engine]

CHAT = "/v1/chat/completions"
CODEC = Codec()


def events(kafka: KafkaSettings, topic: Topic) -> list[Any]:
    return [record.event for record in read_all(kafka, topic, CODEC)]


def aggregator(kafka: KafkaSettings, log: Path) -> ChildProcess:
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": kafka.topic_prefix,
    }
    return ChildProcess([sys.executable, "-m", "services.aggregator.main"], log, env=environment)


def wait_for(kafka: KafkaSettings, topic: Topic, count: int) -> list[Any]:
    deadline = time.monotonic() + 60
    while len(found := events(kafka, topic)) < count:
        assert time.monotonic() < deadline, f"{topic.name}: {found}"
        time.sleep(0.2)
    return found


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_an_agents_turns_are_deltas_and_its_episode_is_whole(
    kafka: LocalKafka, tmp_path: Path, topic_prefix: str
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    data = str(tmp_path / "data")
    sent: list[str] = []
    async with (
        running_stub() as stub,
        running_gateway(
            settings,
            stub.url,
            tmp_path,
            FULGURITE_DATA_DIR=data,
            FULGURITE_CLAIM_CHECK_BYTES="100000",
        ) as gateway,
    ):
        group = await gateway.declare(n=1, task={}, deadline_s=600)
        rollout = group["rollouts"][0]
        messages: list[dict[str, Any]] = []
        for turn in range(5):
            image = {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + "A" * 12_000_000},
            }
            said = [
                {"type": "text", "text": f"question {turn} ☃ " * 100},
                *([image] if turn == 4 else []),
            ]
            messages.append({"role": "user", "content": said})
            sent.append(json.dumps({"model": "policy", "messages": messages}))
            status, reply = await gateway.json(CHAT, sent[-1].encode(), rollout["api_key"])
            assert status == 200, reply
            messages.append(reply["choices"][0]["message"])
        await gateway.json(
            f"/v1/rollouts/{rollout['rollout_id']}/status", {"kind": "finished"}, rollout["api_key"]
        )
        logged: list[LlmCall] = await asyncio.to_thread(events, settings, LLM_CALLS)
        whole = await gateway.calls()
        assert [redeemed(call).request for call in whole] == sent
        assert len(whole[4].request or "") < 20_000
        text = await (await gateway.client.get(gateway.url + "/metrics")).text()
        assert "fulgurite_gateway_claim_checks_total 1.0" in text
    assert [call.parent is not None for call in logged] == [False, True, True, True, True]
    assert all(len(call.request or "") < 3_000 for call in logged)
    assert (len(logged[4].pieces), logged[4].claim_check) == (1, None)
    process = aggregator(settings, tmp_path / "aggregator.log")
    try:
        episode: Episode = (await asyncio.to_thread(wait_for, settings, EPISODES, 1))[0]
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    assert [redeemed(call).request for call in episode.calls] == sent
    assert len(episode.calls[4].request or "") < 20_000
    assert all(call.parent is None for call in episode.calls)
    await asyncio.to_thread(archived_and_pruned, settings, tmp_path, sent)


def archived_and_pruned(settings: KafkaSettings, folder: Path, sent: list[str]) -> None:
    """A claim that the log names stays, however old; the archive needs it no more."""
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": settings.topic_prefix,
        "FULGURITE_DATA_DIR": str(folder / "data"),
    }

    def fulgurite(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, [*arguments, "--json"], env=environment)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert fulgurite("archive", str(folder / "archive"))["claims"] == 1
    [claim] = [path for path in (folder / "data" / "claims").rglob("*") if path.is_file()]
    assert fulgurite("claims", "prune")["young"] == 1
    os.utime(claim, (1_000, 1_000))
    pruned = fulgurite("claims", "prune")
    assert (pruned["named"], pruned["removed"]) == (1, 0)
    claim.unlink()
    [group] = read_groups(ArchiveSource(folder / "archive"), CODEC)
    assert not group.unreadable
    assert redeemed(group.episodes()[0].calls[4]).request == sent[4]


def test_what_cannot_be_made_whole_is_a_dead_letter_and_the_ledger_balances(
    kafka: LocalKafka, tmp_path: Path, topic_prefix: str
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    create_topics(settings)
    producer = EventProducer(settings, CODEC, "test")

    def publish(topic: Topic, event: Event) -> tuple[int, int]:
        delivery = producer.publish_sync(topic, calls[0].group_id, event)
        return delivery.partition, delivery.offset

    calls = [
        hashed(make_call(turn=turn, at=1_000 + turn, prompt=range(500 * (turn + 1))))
        for turn in range(5)
    ]
    first = publish(LLM_CALLS, calls[0])
    good, _ = shorten(calls[1], [link_of(calls[0], *first)])
    second = publish(LLM_CALLS, good)
    # A parent that is a delta itself; one that is not there; one that is not what it was.
    deep, _ = shorten(calls[2], [link_of(calls[1], *second, depth=1)])
    publish(LLM_CALLS, deep)
    missing, _ = shorten(
        calls[3], [link_of(make_call(turn=9, prompt=range(1_900)), first[0], 1_000)]
    )
    wrong, _ = shorten(
        calls[4],
        [
            link_of(
                msgspec.structs.replace(calls[0], prompt_token_ids=pack_ids(range(2_000))), *first
            )
        ],
    )
    for call in (missing, wrong):
        assert call.parent is not None
        publish(LLM_CALLS, call)
    publish(AGENT_STATUS, make_declared(0, 1, deadline=int(time.time() * 1000) + 600_000))
    publish(AGENT_STATUS, make_status(at=2_000))
    producer.close()
    reader = CallReader(settings, CODEC)
    assert reader.complete_call(deep, lambda _call_id: None) == calls[2], (
        "nobody remembers: both parents are read again"
    )
    process = aggregator(settings, tmp_path / "aggregator.log")
    try:
        letters: list[DeadLetter] = wait_for(settings, DEAD_LETTERS, 2)
        (episode,) = wait_for(settings, EPISODES, 1)
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert list(episode.calls) == calls[:3]
    assert [(letter.stage, letter.error_type, letter.partition) for letter in letters] == [
        ("aggregator", "Rejected", first[0])
    ] * 2
    assert ["not in the log" in letter.error for letter in letters] == [True, False]
    assert ["does not have the recorded hash" in letter.error for letter in letters] == [
        False,
        True,
    ]
    assert [letter.actions for letter in letters] == [
        (action_id(call.call_id, 0),) for call in calls[3:]
    ]
    books = read_books(settings)
    assert (books.actions, books.terms["dead_lettered"], books.remainder) == (5, 2, 0)


def hashed(call: LlmCall) -> LlmCall:
    return msgspec.structs.replace(call, prompt_hash=prompt_hash(call.prompt_token_ids or b""))
