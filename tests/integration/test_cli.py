"""Commands that read the topics, on a real log, on an empty one and on none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, LedgerTerm, Mode, UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Episode,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyUpdate,
    Trajectory,
)
from fulgurite.groups.closing import close_group
from fulgurite.ids import action_id
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    EPISODES,
    LLM_CALLS,
    POLICY_APPLIED,
    POLICY_UPDATES,
    TOPICS,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.cli.main import app
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topic
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

pytestmark = pytest.mark.engine


class Cli:
    """The command line, pointed at one deployment."""

    def __init__(self, kafka: LocalKafka, topic_prefix: str) -> None:
        self.environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": topic_prefix,
            "FULGURITE_GATEWAY_URL": "http://127.0.0.1:9",
        }
        self.environment.pop("VLLM_BASE_URL", None)
        self.settings = KafkaSettings.model_validate(
            {
                "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "FULGURITE_TOPIC_PREFIX": topic_prefix,
            }
        )

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [str(Path(sys.executable).with_name("fulgurite")), *arguments]
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            env={**self.environment, **environment},
            check=False,
        )


@pytest.fixture
def cli(kafka: LocalKafka, topic_prefix: str) -> Cli:
    return Cli(kafka, topic_prefix)


def group_events() -> tuple[list[tuple[Topic, Event]], list[tuple[Topic, Event]]]:
    """A group of four actions; one rollout is rewarded and trained, the other has no reward. What
    the services write, but one entry.
    """
    declared = make_declared(1, 2)
    calls = [make_call(1, index, turn, prompt=[1, turn]) for index in range(2) for turn in range(2)]
    events: list[tuple[Topic, Event]] = [
        (AGENT_STATUS, declared),
        *((LLM_CALLS, call) for call in calls),
    ]
    rewards: list[AgentReward] = [make_reward(1, 0)]
    episodes: list[Episode] = []
    for index in range(2):
        inputs: list[AgentStatus | LlmCall] = [
            declared,
            *calls[2 * index : 2 * index + 2],
            make_status(1, index),
        ]
        episode = stitch(inputs)
        assert episode is not None
        episodes.append(episode)
        events.append((EPISODES, episode))
    outputs = close_group(group_id(1), declared.declaration, episodes, rewards)
    events += [
        (TRAINING_LEDGER if isinstance(event, LedgerEntry) else TRAJECTORIES, event)
        for event in outputs
    ]
    rows = [event for event in outputs if isinstance(event, Trajectory)]
    trained = tuple(action_id(a.call_id, a.choice) for row in rows for a in row.actions if a.loss)
    twice = LedgerEntry(
        event_id="learner", event_time=1, policy="policy", group_id=group_id(1), term=LedgerTerm.trained, actions=trained,
        version="policy@1.1", source="learner",
    )  # fmt: skip
    stale = LedgerEntry(
        event_id="other",
        event_time=1,
        policy="policy",
        group_id=group_id(1),
        term=LedgerTerm.stale,
        actions=trained[:1],
        source="learner",
    )
    return [*events, (TRAINING_LEDGER, twice)], [(TRAINING_LEDGER, stale)]


def publish(settings: KafkaSettings, events: list[tuple[Topic, Event]]) -> None:
    producer = EventProducer(settings, Codec(), "test")
    for topic, event in events:
        producer.publish_sync(topic, group_id(1), event)
    producer.close()


def test_from_no_topics_to_a_balanced_ledger_and_one_that_is_not(cli: Cli) -> None:
    before = cli("ledger")
    assert before.returncode == 2, before.stdout
    created = cli("topics", "create")
    assert created.returncode == 0, created.stdout
    assert created.stdout.count("created ") == len(TOPICS)
    again = cli("topics", "create")
    assert (again.returncode, again.stdout.count("created ")) == (0, 0)
    empty = cli("ledger")
    assert (empty.returncode, "no successful training action" in empty.stdout) == (0, True)

    balanced, too_much = group_events()
    publish(cli.settings, balanced)
    done = cli("ledger", "--json")
    assert done.returncode == 0, done.stdout
    books = json.loads(done.stdout)
    assert (books["actions"], books["remainder"]) == (4, 0)
    assert books["terms"] == {"trained": 2, "filtered(no_reward)": 2}
    shown = cli("ledger", "--partitions")
    assert shown.returncode == 0
    assert "filtered(no_reward)" in shown.stdout

    publish(cli.settings, too_much)
    done = cli("ledger", "--json")
    assert done.returncode == 1, done.stdout
    assert json.loads(done.stdout)["discrepancies"][0]["terms"] == ["stale", "trained"]


PRICES = """
currency = "EUR"

[tokens.policy]
input = 1_000_000
output = 2_000_000

[learner_per_hour]
policy = 3600
"""


def test_costs_are_added_up_by_run_and_by_version(cli: Cli, tmp_path: Path) -> None:
    cli("topics", "create")
    empty = cli("cost")
    assert (empty.returncode, "holds no call" in empty.stdout) == (0, True), empty.stderr
    update = PolicyUpdate(
        event_id="u", event_time=1, policy="policy", kind=UpdateKind.update, epoch=1, step=1, version="policy@1.1", learner_id="l",
        trained_actions=2, metrics={"seconds/train": 5.0},
    )  # fmt: skip
    declared = make_declared(1, 2, run_id="run-a")
    publish(cli.settings, [*group_events()[0], (AGENT_STATUS, declared), (POLICY_UPDATES, update)])
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    done = cli("cost", "--by", "version", "--prices", str(prices), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Four calls of 2 prompt and 2 sampled tokens; the learner's five seconds are 5 EUR.
    [version] = found["rows"]
    assert (version["key"], version["calls"], version["prompt"]) == ("policy@1.1", 4, 8)
    assert (version["trained"], version["discarded"]) == (4, {"no_reward": 4})
    assert version["money"] == {"low": 29.0, "high": 29.0}
    shown = cli("cost", "--prices", str(prices)).stdout
    assert all(words in shown for words in ("run-a", "learner policy", "29.0000", "4 no_reward"))
    archive = tmp_path / "archive"
    assert cli("archive", str(archive)).returncode == 0
    both = [
        cli("cost", "--archive", str(archive), *more, "--json")
        for more in ((), ("--archive-only",))
    ]
    assert [json.loads(one.stdout)["total"]["calls"] for one in both] == [4, 4]


def test_a_run_without_signal_is_diagnosed(cli: Cli) -> None:
    cli("topics", "create")
    empty = cli("diagnose")
    assert (empty.returncode, "no rollout was recorded since 24h" in empty.stderr) == (1, True)
    publish(cli.settings, [(AGENT_STATUS, make_declared(1, 2, run_id="run-a"))])
    publish(cli.settings, group_events()[0][:-1])
    unknown = cli("diagnose", "run-b")
    assert unknown.returncode == 1
    assert "no group of the run 'run-b'" in unknown.stderr
    done = cli("diagnose", "run-a", "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert found["facts"]["actions"] == {"no_reward": 2, "no_baseline": 2}
    names = [finding["name"] for finding in found["findings"]]
    assert names == [
        "without_signal",
        "reward_errors",
        "untrained_actions",
        "no_baseline",
        "no_reward",
        "broken_prefixes",
    ]
    publish(cli.settings, group_events()[0][-1:])
    everything = cli("diagnose", "--since", "7d")
    assert everything.returncode == 0, everything.stderr
    assert "2 of 4 actions trained" in everything.stdout


def test_rollouts_are_listed_exported_and_live_ones_told(cli: Cli, tmp_path: Path) -> None:
    cli("topics", "create")
    publish(cli.settings, group_events()[0])
    ends: list[tuple[Topic, Event]] = [
        (AGENT_STATUS, make_status(1, 0)),
        (AGENT_STATUS, make_status(1, 1)),
        (AGENT_REWARDS, make_reward(1, 0)),
    ]
    publish(cli.settings, [*ends, (LLM_CALLS, make_call(2, 0, mode=Mode.live))])
    rows = json.loads(cli("rollouts", "list", "--since", "all", "--json").stdout)
    said = sorted((row["mode"], row["answer"][:6]) for row in rows)
    assert said == [("live", "answer"), ("train", "answer"), ("train", "answer")]
    paid = json.loads(
        cli("rollouts", "list", "--since", "all", "--reward-above", "0.5", "--json").stdout
    )
    assert [row["reward"] for row in paid] == [1.0]
    table = cli("rollouts", "list", "--since", "all", "--text", "answer").stdout
    assert all(column in table for column in ("last answer", "version", "policy@0.0", "failure"))
    target = tmp_path / "out.jsonl"
    nothing = cli("export", "sft", str(target), "--min-reward", "99")
    assert (nothing.returncode, target.exists()) == (1, False)
    done = cli("export", "sft", str(target))
    assert "by mode" in done.stdout, done.stderr
    live = "1 actions are recorded and not trained: live"
    assert live in cli("ledger").stdout
    assert live in cli("status").stdout
    assert json.loads(cli("status", "--json").stdout)["untrained"] == {"live": 1}


def test_status_tells_what_does_not_answer_and_what_the_topics_hold(cli: Cli) -> None:
    missing = cli("status", "--json")
    assert missing.returncode == 1
    assert "is missing" in json.loads(missing.stdout)["layout"]
    cli("topics", "create")
    publish(cli.settings, group_events()[0])
    done = cli("status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1, "no gateway answers"
    assert "127.0.0.1:9" in found["endpoints"]["gateway"]
    assert (found["layout"], found["healthy"]) == ("ok", False)
    assert {one["topic"]: one["records"] for one in found["topics"]}["llm.calls"] == 4
    states = {one["service"]: one for one in found["services"]}
    assert states["aggregator"]["alive"] is False
    assert "never started" in states["learner"]["said"]
    assert found["actions"] == {"trained": 2, "filtered(no_reward)": 2}
    shown = cli("status").stdout
    assert "consumer groups: none yet" in shown
    assert "served: none yet" in shown
    assert "not running: its consumer group has no member" in shown


def test_a_route_is_set_shown_and_taken_back(cli: Cli) -> None:
    cli("topics", "create")
    assert "no routes" in cli("routes", "list").stdout
    unknown = cli("routes", "set", "policy", "policy@1.3")
    assert unknown.returncode == 1
    assert "never published" in unknown.stderr
    done = cli("routes", "set", "policy", "policy@0.0=0.9", "policy=0.1", "--reason", "a canary")
    assert done.returncode == 0, done.stderr
    assert "policy@0.0=0.9, policy (newest)=0.1" in done.stdout
    assert "a canary" in done.stdout
    mixed = cli("routes", "set", "policy", "policy=0.5", "upstream:gpt,temperature=0.5=0.5")
    assert mixed.returncode == 0, mixed.stderr
    assert "policy (newest)=0.5, upstream:gpt,temperature=0.5=0.5" in mixed.stdout
    other = cli("routes", "set", "policy", "upstream:gpt")
    assert (other.returncode, "gateways follow" in other.stdout) == (0, True)
    silent = cli("select", "try", "--alias", "policy", "--shares", "policy=0.5", "upstream:gpt=0.5")
    assert (silent.returncode, "no rewarded episode" in silent.stderr) == (1, True)
    assert "no routes" in cli("routes", "clear", "policy").stdout
    again = cli("routes", "clear", "policy")
    assert (again.returncode, "no route is set for 'policy'" in again.stderr) == (1, True)


def applied(
    version: str, outcome: ApplyOutcome, previous: str | None = None, error: str | None = None
) -> PolicyApplied:
    return PolicyApplied(
        event_id=f"{version}{outcome}{previous}", event_time=1, policy="policy", backend="vllm", engine_id="e", version=version,
        previous=previous, outcome=outcome, error=error, seconds=0.1,
    )  # fmt: skip


def test_a_route_says_whether_it_took_effect(cli: Cli) -> None:
    cli("topics", "create")
    claim = PolicyUpdate(
        event_id="c",
        event_time=1,
        policy="policy",
        kind=UpdateKind.claim,
        epoch=1,
        step=0,
        learner_id="l",
        trained_actions=0,
    )
    update = msgspec.structs.replace(
        claim, event_id="u", kind=UpdateKind.update, step=1, version="policy@1.1"
    )
    publish(cli.settings, [(POLICY_UPDATES, claim), (POLICY_UPDATES, update)])
    publish(cli.settings, [(POLICY_APPLIED, applied("policy@1.1", ApplyOutcome.applied))])
    done = cli("routes", "set", "policy", "policy@1.1")
    assert (done.returncode, "policy@1.1: served by vllm" in done.stdout) == (0, True)

    argv = [
        str(Path(sys.executable).with_name("fulgurite")),
        "routes",
        "set",
        "policy",
        "policy@0.0",
        "--wait",
        "60",
    ]
    waiting = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=cli.environment)
    assert waiting.stdout is not None
    assert "policy@0.0=1" in waiting.stdout.readline()
    refused = applied(
        "policy@0.0", ApplyOutcome.failed, "policy@1.1", "the base model's folder is not known"
    )
    publish(cli.settings, [(POLICY_APPLIED, refused)])
    told = waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 1
    assert (
        "vllm cannot serve policy@0.0: the base model's folder is not known. It still serves "
        "policy@1.1." in told
    )
    late = cli("routes", "set", "policy", "policy@0.0", "--wait", "0.2")
    assert (late.returncode, "still serves policy@1.1 after 0.2 s" in late.stdout) == (1, True)


def test_no_broker_is_said_plainly(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    worker = ("reward-worker", "--reward", "builtin:f1")
    commands = (
        ("topics", "create"),
        ("status",),
        ("ledger",),
        ("cost",),
        ("diagnose",),
        ("routes", "list"),
        ("rollouts", "list"),
        worker,
    )
    for command in commands:
        done = CliRunner().invoke(
            app,
            list(command),
            env=cli.environment | {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9,localhost:9"},
        )
        assert done.exit_code in (1, 2)
        # What libraries say past Python would be here.
        assert capfd.readouterr() == ("", "")
        [line] = (done.stdout + done.stderr).splitlines()
        assert (
            "no Kafka broker answers at 127.0.0.1:9,localhost:9 (KAFKA_BOOTSTRAP_SERVERS): "
            "[Errno 111] Connection refused" in line
        )


def test_topics_are_listed_with_what_they_hold(cli: Cli) -> None:
    missing = cli("topics", "list")
    assert (missing.returncode, missing.stdout.count("missing")) == (1, len(TOPICS))
    cli("topics", "create")
    publish(cli.settings, group_events()[0])
    create_topic(cli.settings, msgspec.structs.replace(TRAJECTORIES, name="trajectories.v2"))
    done = cli("topics", "list")
    assert done.returncode == 0, done.stdout
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in done.stdout.splitlines()
        if "│" in line
    }
    prefix = cli.settings.topic_prefix
    assert rows[f"{prefix}llm.calls"] == ["LlmCall", "group", "8", "4", "30 days"]
    assert rows[f"{prefix}policy.routes"][-1] == "the last of each key"
    assert f"{prefix}trajectories.v2" in rows


def test_a_model_and_a_topic_that_are_not_there_are_said_in_a_line(cli: Cli) -> None:
    cli("topics", "create")
    for name, argv in {
        "/nope": ("--model", "/nope", "--topic", "nonexisting"),
        "nonexisting": ("--model", str(tiny_model()), "--topic", "nonexisting"),
        "FULGURITE__POLICY__MODEL": (),
    }.items():
        done = cli("train", *argv)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, ""), done.stderr
        assert name in done.stderr
