"""`fulgurite replay` against what live processors wrote: to the byte, whatever happened; and under
other rules, the same tokens.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fulgurite.enums import LedgerTerm, Mode, StatusKind
from fulgurite.events import DeadLetter, LlmCall, Trajectory
from fulgurite.failures import FailureKind
from fulgurite.learning.batching import RowBatcher
from fulgurite.topics import DEAD_LETTERS, LLM_CALLS, TRAJECTORIES, Topic
from fulgurite.versions import base_version
from services.cli.main import app
from services.common.kafka.consumer import read_all
from services.learner.source import TrajectorySource, trainable
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_processors import (
    Deployment,
    Made,
    closings,
    overlapping,
    rows,
    wait_until,
)
from tests.synthetic import group_id, make_call, make_declared, make_group, make_reward, make_status

pytestmark = pytest.mark.engine


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


GROUPS = 12
QUICK = {
    "FULGURITE_REWARDER_GRACE_S": "1",
    "FULGURITE_REWARDER_AMEND_WAIT_S": "0.2",
    "FULGURITE_REWARDER_AMEND_EVERY_S": "0.5",
    "FULGURITE_AGGREGATOR_SILENCE_S": "2",
}


def amended(deployment: Deployment) -> set[str]:
    """Groups with more than one revision."""
    found: dict[str, set[str]] = {}
    for closed in closings(deployment):
        found.setdefault(closed.group_id, set()).add(closed.group_revision)
    return {group for group, revisions in found.items() if len(revisions) > 1}


def fulgurite(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In this process, which is quicker, but for commands that end it because a function of a
    user's might hang.
    """
    if arguments[0] == "try" or "--reward" in arguments:
        argv = [str(Path(sys.executable).with_name("fulgurite")), *arguments]
        return subprocess.run(
            argv, capture_output=True, text=True, env=deployment.environment, check=False
        )
    done = CliRunner().invoke(app, list(arguments), env=deployment.environment)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def replayed(deployment: Deployment, name: str, *arguments: str) -> dict[str, object]:
    done = fulgurite(deployment, "replay", "--into", name, "--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def called(name: str) -> Topic:
    return msgspec.structs.replace(TRAJECTORIES, name=name)


def values(deployment: Deployment, topic: Topic = TRAJECTORIES) -> set[tuple[int, bytes]]:
    """Every value with its partition."""
    return {
        (record.partition, record.value)
        for record in read_all(deployment.kafka, topic, deployment.codec)
    }


def troubled(now: int) -> tuple[list[Made], list[Made]]:
    """Groups as they go wrong, and what comes after they were closed."""
    early: list[Made] = [
        # 0 ends well, 1 is heard of and never ends, 2 fails and is tried again, 3 is never heard
        # of; only 0 is paid in time.
        make_declared(500, size=4, at=now, deadline=now + 3_000, max_attempts=2),
        make_call(500, 0, 0, at=now + 10),
        make_status(500, 0, at=now + 100),
        make_reward(500, 0, 1.0, at=now + 200),
        make_call(500, 1, 0, at=now + 10),
        make_call(500, 2, 0, at=now + 10),
        make_status(
            500,
            2,
            StatusKind.failed,
            at=now + 100,
            failure=FailureKind.infrastructure,
            will_retry=True,
        ),
        make_call(500, 2, 1, attempt=1, at=now + 110),
        make_status(500, 2, attempt=1, at=now + 200),
        # Undeclared traffic ends by silence.
        make_call(501, 0, 0, at=now, mode=Mode.live),
        make_reward(501, 0, 0.5, at=now + 10),
        # Held-out tasks give nothing.
        *make_group(502, at=now, mode=Mode.val),
        # A group that is still open.
        make_declared(503, size=2, at=now, deadline=now + 600_000),
        make_call(503, 0, 0, at=now + 10),
    ]
    late: list[Made] = [
        make_reward(500, 2, 1.0, at=now + 4_000),
        make_reward(500, 0, 0.25, at=now + 5_000),
        make_call(500, 0, 9, at=now + 20),
        make_status(500, 1, at=now + 9_000),
        make_call(0, 1, 7, at=now + 30, prompt=[9, 9]),
        make_reward(1, 2, 7.0, at=now + 60_000),
    ]
    return early, late


def test_a_replay_writes_what_the_live_processors_wrote_to_the_byte(
    deployment: Deployment, tmp_path: Path
) -> None:
    now = int(time.time() * 1000)
    early, late = troubled(now)
    normal = overlapping(groups=GROUPS, at=now, at_once=10)
    again = random.Random(3).sample(
        [event for event in normal if not isinstance(event, LlmCall)], 60
    )
    deployment.start("aggregator", "rewarder", **QUICK)
    deployment.publish([*normal, *early, *again, *random.Random(4).sample(normal, 40)])
    wait_until(lambda: len(rows(deployment)) >= GROUPS * 4 + 5, "all groups are closed")
    deployment.publish(late)
    wait_until(
        lambda: amended(deployment) >= {group_id(500), group_id(0), group_id(1)},
        "closed groups are re-closed",
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}

    report = replayed(deployment, "trajectories.v2", "--from-beginning")
    live = values(deployment)
    assert values(deployment, called("trajectories.v2")) == live
    assert (report["open"], report["unmet"], report["left_out"]) == (1, [], [])

    # Under another function: other rewards, the same tokens (and the late call's).
    function = tmp_path / "rewards.py"
    function.write_text("def fn(episode):\n    return 100.0 + len(episode.calls)\n")
    report = replayed(
        deployment, "trajectories.v3", "--from-beginning", "--reward", f"{function}:fn"
    )
    assert report["judged"] == GROUPS * 4 + 4 + 1 + 4, report
    before = tokens(deployment, TRAJECTORIES)
    after = tokens(deployment, called("trajectories.v3"))
    assert before.keys() <= after.keys()
    assert all(value >= 101 for value in after.values())
    assert not any(value >= 101 for value in before.values())

    # A rule and weights: ids of their own, and the live topics as they were.
    replayed(
        deployment,
        "trajectories.v4",
        "--from-beginning",
        "--credit",
        "step",
        "--weight",
        "reward=3",
    )
    weighed = tokens(deployment, called("trajectories.v4"))
    assert {round(value, 6) for key, value in weighed.items() if key in before} >= {3.0, 0.0}
    assert not {event.event_id for event in rows(deployment)} & set(
        ids(deployment, called("trajectories.v4"))
    )
    assert values(deployment) == live

    learned_from(deployment, "trajectories.v4", groups=GROUPS)
    refusals(deployment)
    archived(deployment, tmp_path, live)
    exported(deployment, tmp_path)
    shown(deployment, f"{function}:fn")
    redriven(deployment)


def tokens(deployment: Deployment, topic: Topic) -> dict[tuple[str, bytes], float]:
    """Episode reward of every row, by its rollout and tokens."""
    found = (record.event for record in read_all(deployment.kafka, topic, deployment.codec))
    return {
        (row.rollout_id, row.token_ids): row.episode_reward or 0.0
        for row in found
        if isinstance(row, Trajectory)
    }


def ids(deployment: Deployment, topic: Topic) -> list[str]:
    return [
        record.event.event_id
        for record in read_all(deployment.kafka, topic, deployment.codec)
        if record.event
    ]


def learned_from(deployment: Deployment, name: str, groups: int) -> None:
    """The learner's own reader and batcher, on a replayed topic: a new policy learns from the rows
    of the old one.
    """
    source = TrajectorySource(deployment.kafka, deployment.codec, name, "mine", rows_of="policy")
    batcher = RowBatcher("mine")
    source.start(())
    deadline = time.monotonic() + 30
    while batcher.complete() < groups and time.monotonic() < deadline:
        for record in source.read(0.2):
            event = trainable(record)
            assert event is not None
            batcher.add(record.partition, record.offset, event)
    source.close()
    assert batcher.complete() >= groups
    batch = batcher.next_batch(base_version("mine"))
    assert len(batch) == 8
    assert any(term is LedgerTerm.trained for group in batch for term, _ in group.outcomes.values())


def refusals(deployment: Deployment) -> None:
    for arguments, code, words in (
        (("--into", "trajectories", "--from-beginning"), 1, "never writes there"),
        (("--into", "trajectories.v2", "--from-beginning"), 1, "--append"),
    ):
        done = fulgurite(deployment, "replay", *arguments)
        assert (done.returncode, words in done.stderr) == (code, True), done.stdout + done.stderr


def archived(deployment: Deployment, tmp_path: Path, live: set[tuple[int, bytes]]) -> None:
    """Topics in Parquet are read like topics, alone or with the log; a second run adds nothing."""
    folder = str(tmp_path / "archive")
    first = json.loads(fulgurite(deployment, "archive", folder, "--json").stdout)
    assert (first["gaps"], first["records"]["trajectories"]) == (
        [],
        len(deployment.read(TRAJECTORIES)),
    )
    again = json.loads(fulgurite(deployment, "archive", folder, "--json").stdout)
    assert set(again["records"].values()) == {0}
    replayed(
        deployment, "trajectories.v5", "--from-beginning", "--archive", folder, "--archive-only"
    )
    assert values(deployment, called("trajectories.v5")) == live
    report = replayed(
        deployment, str(tmp_path / "rows.parquet"), "--from-beginning", "--archive", folder
    )
    assert (report["rows"], report["unmet"]) == (
        sum(isinstance(row, Trajectory) for row in rows(deployment)),
        [],
    )


def exported(deployment: Deployment, tmp_path: Path) -> None:
    """Each format, read back as its users do."""
    counts: dict[str, int] = {}
    for form in ("sft", "transitions"):
        done = fulgurite(
            deployment, "export", form, str(tmp_path / form), "--mode", "train", "--min-reward", "0"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        counts[form] = len(
            [json.loads(line) for line in (tmp_path / form).read_text().splitlines()]
        )
    # The synthetic calls have no messages, so there is no prompt that a pair could share.
    nothing = fulgurite(deployment, "export", "dpo", str(tmp_path / "dpo"))
    assert (
        nothing.returncode,
        "nothing was written" in nothing.stderr,
        (tmp_path / "dpo").exists(),
    ) == (1, True, False)
    assert counts["sft"] >= GROUPS * 4
    assert counts["transitions"] >= GROUPS * 20
    assert fulgurite(deployment, "export", "parquet", str(tmp_path / "rows")).returncode == 0
    assert fulgurite(deployment, "export", "parquet", str(tmp_path / "rows")).returncode == 1
    datasets: Any = importlib.import_module("datasets")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=[str(path) for path in (tmp_path / "rows").glob("*.parquet")],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert sum(action["loss"] for row in loaded for action in row["actions"]) >= GROUPS * 20
    again = datasets.load_dataset(
        "parquet",
        data_files=[str(path) for path in (tmp_path / "rows.parquet").glob("*.parquet")],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert {row["kind"] for row in again} == {"trajectory", "tombstone"}


def shown(deployment: Deployment, function: str) -> None:
    """What people look at."""
    found = json.loads(
        fulgurite(deployment, "rollouts", "list", "--json", "--limit", "1000").stdout
    )
    assert sum(row["outcome"] == "open" for row in found) == 2
    one = fulgurite(deployment, "rollouts", "show", make_call(500, 0, 0).call_id, "--tokens")
    assert one.returncode == 0, one.stderr
    assert "7:-0.5 9:-0.5" in one.stdout
    assert "reward = 0.25" in one.stdout
    assert fulgurite(deployment, "rollouts", "show", group_id(999)).returncode == 1
    tried = fulgurite(deployment, "try", function, "--since", "1h", "--json")
    assert tried.returncode == 0, tried.stderr
    assert json.loads(tried.stdout)["groups"] >= GROUPS + 2
    twice = fulgurite(
        deployment,
        "try",
        f"style={function}",
        "--reward",
        function,
        "--weight",
        "style=2",
        "--since",
        "1h",
        "--json",
    )
    before, after = (json.loads(done.stdout)["after"]["highest"] for done in (tried, twice))
    assert after == 3 * before
    assert fulgurite(deployment, "lineage", "policy@1.1").returncode == 1


def redriven(deployment: Deployment) -> None:
    """A call that was lost on its way comes back, late: its episode has another revision."""
    lost = make_call(2, 0, 8, at=int(time.time() * 1000), prompt=[4, 4])
    letter = DeadLetter(
        event_id="letter", event_time=1, stage="aggregator", error_type="BrokenDelta", error="its parent "
                                                                                             "is "
                                                                                             "gone",
        topic=deployment.kafka.topic(LLM_CALLS), partition=0, offset=0, key=lost.group_id.encode(), value=deployment.codec.encode(lost),
    )  # fmt: skip
    garbage = msgspec.structs.replace(letter, event_id="garbage", value=b"no frame")
    for one in (letter, garbage):
        deployment.producer.publish_sync(DEAD_LETTERS, lost.group_id, one)
    assert "garbage" in fulgurite(deployment, "dlq", "list", "--stage", "aggregator").stdout
    assert lost.call_id in fulgurite(deployment, "dlq", "show", "let").stdout
    done = fulgurite(deployment, "dlq", "redrive", "--all", "--json")
    assert done.returncode == 1
    assert [one["topic"] for one in json.loads(done.stdout)] == ["llm.calls", None]
    deployment.start("aggregator", "rewarder", **QUICK)
    wait_until(
        lambda: group_id(2) in amended(deployment),
        "the group is re-closed with the redriven call",
    )
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}
