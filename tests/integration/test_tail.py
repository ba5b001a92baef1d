"""`fulgurite tail` and `fulgurite watch` on a real log: from where they are told, as it grows."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fulgurite.calls.deltas import link_of, shorten
from fulgurite.events import Event
from fulgurite.tokens import pack_ids, prompt_hash
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    LLM_CALLS,
    POLICY_ROUTES,
    Topic,
    partition_of,
)
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_cli import Cli, group_events, publish
from tests.integration.test_processors import wait_until
from tests.synthetic import group_id, make_call, make_declared, make_reward, rollout_id

pytestmark = pytest.mark.engine

FULGURITE = str(Path(sys.executable).with_name("fulgurite"))


@pytest.fixture
def cli(kafka: LocalKafka, topic_prefix: str) -> Cli:
    made = Cli(kafka, topic_prefix)
    assert made("topics", "create").returncode == 0
    return made


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_prints_the_newest_all_or_what_is_about_a_rollout(cli: Cli) -> None:
    publish(cli.settings, group_events()[0])
    assert cli("tail", "llm.calls", "--once").stdout == ""
    every = lines(cli("tail", "llm.calls", "--once", "--json", "--from-beginning"))
    assert [one["type"] for one in every] == ["LlmCall"] * 4
    assert every[0]["key"] == group_id(1)
    assert every[0]["event"]["prompt_token_ids"] == {"tokens": 2}
    name = f"{cli.settings.topic_prefix}llm.calls"
    newest = lines(cli("tail", name, "--once", "--json", "-n", "1"))
    assert newest == every[-1:]
    own = lines(
        cli("tail", "llm.calls", "--once", "--json", "-n", "9", "--rollout", rollout_id(1, 0))
    )
    assert [one["offset"] for one in own] == [0, 1]
    assert not lines(cli("tail", "llm.calls", "--once", "--json", "-n", "9", "--key", "other"))
    text = cli("tail", "training.ledger", "--once", "--since", "24h").stdout
    assert "LedgerEntry" in text
    assert "2 actions trained  policy@1.1  by learner" in text
    ledger = ("tail", "training.ledger", "--once", "--from-beginning", "--rollout")
    assert "actions trained" in cli(*ledger, rollout_id(1, 0)).stdout
    assert "actions trained" not in cli(*ledger, rollout_id(1, 1)).stdout


def test_later_turns_are_complete(cli: Cli) -> None:
    question = "one " * 500
    first = make_call(
        1, 0, 0, prompt=range(1, 900), messages=[{"role": "user", "content": question}]
    )
    longer = [*range(1, 900), 7, 9, 5]
    messages: list[dict[str, object]] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "answer 0"},
        {"role": "user", "content": "two"},
    ]
    second = make_call(1, 0, 1, prompt=longer, messages=messages)
    second = msgspec.structs.replace(second, prompt_hash=prompt_hash(pack_ids(longer)))
    place = partition_of(group_id(1).encode(), LLM_CALLS.partitions)
    delta, _ = shorten(second, [link_of(first, place, 0)])
    assert delta.parent is not None
    publish(cli.settings, [(LLM_CALLS, first), (LLM_CALLS, delta)])
    (last,) = lines(cli("tail", "llm.calls", "--once", "--json", "-n", "1"))
    assert last["event"]["request"] == {"messages": messages}
    assert last["event"]["prompt_token_ids"] == {"tokens": 902}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llm.cals"], "there is no topic 'llm.cals'; there are llm.calls, agent.status"),
        (["llm.calls", "--rollout", "nonsense"], "is no id of a group, a rollout or a call"),
        (["llm.calls", "--rollout", group_id(1)], f"use --key {group_id(1)}"),
        (["llm.calls", "--rollout", rollout_id(1, 0), "--key", "k"], "not of --key k"),
        (["llm.calls", "--since", "soon"], "'soon' is neither a span"),
    ],
)
def test_what_is_wrong_is_said(cli: Cli, arguments: list[str], words: str) -> None:
    done = cli("tail", *arguments)
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr


def test_bytes_that_are_no_event_are_reported_and_followed_by_the_next(cli: Cli) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": cli.settings.bootstrap_servers})
    producer.produce(cli.settings.topic(POLICY_ROUTES), b"nonsense", b"alias")
    producer.flush()
    (only,) = lines(cli("tail", "policy.routes", "--once", "--json", "--from-beginning"))
    assert (only["event"], "MalformedFrame" in only["error"]) == (None, True)


def test_it_follows_the_topic_until_it_is_stopped(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        process = subprocess.Popen(
            [FULGURITE, "tail", "agent.rewards", "--json", "-n", "1"],
            stdout=file,
            env=cli.environment,
        )
    try:
        publish(cli.settings, [(AGENT_REWARDS, make_reward(1, 0))])
        wait_until(lambda: out.read_text().count("\n") == 1, "the reward is printed")
        publish(cli.settings, [(AGENT_REWARDS, make_reward(1, 1))])
        wait_until(lambda: out.read_text().count("\n") == 2, "the next one is printed")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_a_run_is_watched_from_its_declaration_to_its_training(cli: Cli, tmp_path: Path) -> None:
    nothing = cli("watch", "--once")
    assert (nothing.returncode, "no rollout was declared yet" in nothing.stdout) == (0, True)
    assert cli("watch", "run-x", "--once").returncode == 1
    declared: list[tuple[Topic, Event]] = [
        (AGENT_STATUS, make_declared(1, 2, run_id="run-a")),
        (AGENT_REWARDS, make_reward(1, 0)),
    ]
    publish(cli.settings, declared)
    (before,) = lines(cli("watch", "run-a", "--once", "--json"))
    assert (before["run_id"], before["states"]["rolling out"]) == ("run-a", 2)
    out = tmp_path / "out"
    with out.open("w") as file:
        process = subprocess.Popen(
            [FULGURITE, "watch", "--every", "0.1"], stdout=file, env=cli.environment
        )
    try:
        wait_until(lambda: "2 rolling out" in out.read_text(), "the run is shown")
        publish(cli.settings, [one for one in group_events()[0] if one[0] is not AGENT_STATUS])
        wait_until(lambda: "1 trained  1 left out" in out.read_text(), "what became of it is shown")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
    said = out.read_text()
    assert "run-a: 2 rollouts" in said
    assert re.search(r"answer \d \(reward 1\)", said)


def test_on_a_terminal_it_is_drawn_in_place_and_ends_on_ctrl_c(cli: Cli) -> None:
    publish(cli.settings, [(AGENT_STATUS, make_declared(1, 2, run_id="run-a"))])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [FULGURITE, "watch"], stdout=theirs, stderr=theirs, env={**cli.environment, "TERM": "xterm"}
    )
    os.close(theirs)
    said = b""
    try:
        while b"2 rolling out" not in said:
            said += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
    assert b"Traceback" not in said
