"""`fulgurite run` in a process of its own against a real gateway and a real Kafka: statuses,
retries, rewards, and Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.avro.codec import Codec
from fulgurite.enums import Mode, StatusKind
from fulgurite.failures import FailureKind
from fulgurite.topics import AGENT_STATUS
from services.common.kafka.consumer import read_all
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import ADMIN, PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub
from tests.services.common.processes import programs

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]
# -P, as of an installed command: what lies in the working directory is none of ours.
RUN = (sys.executable, "-P", "-m", "services.runner.command", "--tasks", "tasks.jsonl")

ASKS = """
import json, os, sys, urllib.request
body = {"model": "policy", "messages": [{"role": "user", "content": json.loads(os.environ["TASK"])["question"]}]}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request))["id"])
assert json.loads(sys.stdin.read()) == json.loads(os.environ["TASK"]) and "reference" not in os.environ["TASK"]
"""

FAILS_ONCE = """
import os, sys
path = sys.argv[1] + "/" + json.loads(os.environ["TASK"])["question"]
if not os.path.exists(path):
    open(path, "w").close()
    sys.stderr.write("openai.APIConnectionError: Connection error.")
    sys.exit(1)
"""

REWARDS = """
from services.pricing import A_LETTER

def length(episode):
    return A_LETTER * len(episode.task["reference"])

def broken(episode):
    return 1 / 0

def nothing(episode):
    return 0
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    async with running_gateway(settings, stub.url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@asynccontextmanager
async def running_aggregator(gateway: Gateway, folder: Path) -> AsyncGenerator[None]:
    """Turns statuses into episodes."""
    process = ChildProcess(
        [sys.executable, "-m", "services.aggregator.main"],
        folder / "aggregator.log",
        env=environment_of(gateway, FULGURITE_DATA_DIR=str(folder)),
        cwd=ROOT,
    )
    yield
    await asyncio.to_thread(process.end, 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aggregator(
    gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[None]:
    async with running_aggregator(gateway, tmp_path_factory.mktemp("aggregator")):
        yield


def _write_rewards(folder: Path) -> None:
    (folder / "rewards.py").write_text(REWARDS)
    # A project's own package, by the name of one of ours.
    (folder / "services").mkdir()
    (folder / "services" / "__init__.py").touch()
    (folder / "services" / "pricing.py").write_text("A_LETTER = 1.0")


def environment_of(gateway: Gateway, **more: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FULGURITE_", "KAFKA_", "REDIS_"))
    }
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "KAFKA_BOOTSTRAP_SERVERS": gateway.kafka.bootstrap_servers,
        "FULGURITE_TOPIC_PREFIX": gateway.kafka.topic_prefix,
        "FULGURITE_GATEWAY_URL": gateway.url,
        "FULGURITE_ADMIN_KEY": ADMIN,
        "FULGURITE_API_KEYS": PLAIN,
        **more,
    }


def _start(
    gateway: Gateway,
    folder: Path,
    agent: str,
    *options: str,
    tasks: int = 2,
    arguments: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    (folder / "agent.py").write_text(agent)
    lines = [
        json.dumps({"question": f"question {number}", "reference": "r" * (number + 1)})
        for number in range(tasks)
    ]
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    return subprocess.Popen(
        [*RUN, "--json", "--deadline", "60", *options, "--", "python", "agent.py", *arguments],
        cwd=folder,
        env=environment_of(gateway, FULGURITE_DATA_DIR=str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


async def _finish(process: subprocess.Popen[str], code: int = 0) -> list[dict[str, Any]]:
    output, errors = await asyncio.to_thread(process.communicate, None, 90)
    assert process.returncode == code, errors + output
    return [json.loads(line) for line in output.splitlines()]


async def test_agents_are_declared_started_reported_and_rewarded(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    _write_rewards(tmp_path)
    options = (
        "-n",
        "2",
        "--mode",
        "val",
        "--reward",
        "rewards.py:length",
        "--reward",
        "right=builtin:exact_match",
        "--weight",
        "right=10",
    )
    lines = await _finish(_start(gateway, tmp_path, ASKS, *options))
    attempts = [line for line in lines if line["event"] == "rollout"]
    assert [attempt["status"] for attempt in attempts] == ["finished"] * 4
    summary = lines[-1]
    assert summary["reward"]["mean"] == 1.5
    assert summary["counts"] == {"declared": 4, "finished": 4, "scored": 4, "calls": 4}
    assert sorted(rollout["reward"] for rollout in summary["rollouts"]) == [1.0, 1.0, 2.0, 2.0]
    assert all(
        rollout["rewards"] == {"reward": rollout["reward"], "right": 0.0}
        for rollout in summary["rollouts"]
    )
    assert summary["components"] == {"reward": 1.5, "right": 0.0}
    groups = {rollout["group_id"] for rollout in summary["rollouts"]}
    assert len(groups) == 2
    statuses = await gateway.statuses(groups.pop())
    assert [status.kind for status in statuses if status.rollout_id is None] == [
        StatusKind.declared
    ]
    assert all(status.mode is Mode.val for status in statuses)
    assert {status.kind for status in statuses if status.rollout_id} == {
        StatusKind.started,
        StatusKind.finished,
    }


async def test_a_model_ranks_the_groups(
    gateway: Gateway, stub: Stub, aggregator: None, tmp_path: Path
) -> None:
    scores = [
        {"trajectory_id": str(number), "explanation": "so", "score": score}
        for number, score in ((1, 0.25), (2, 1.0))
    ]
    stub.reset(words=[json.dumps({"scores": scores})])
    (tmp_path / "rubric.txt").write_text("Shorter is better.")
    options = (
        "-n",
        "2",
        "--mode",
        "val",
        "--reward",
        "rank=judge:policy",
        "--rubric",
        "rubric.txt",
    )
    summary = (await _finish(_start(gateway, tmp_path, ASKS, *options, tasks=1)))[-1]
    asked = [request for request in stub.requests if "response_format" in request]
    stub.reset()
    assert sorted(rollout["rewards"]["rank"] for rollout in summary["rollouts"]) == [0.25, 1.0]
    assert summary["reward"]["mean"] == 0.625
    assert ["Shorter is better." in request["messages"][0]["content"] for request in asked] == [
        True
    ]


@pytest.mark.parametrize("preload", [(), ("--preload", "json")], ids=["executed", "forked"])
async def test_exogenous_failures_are_tried_again_and_said_to_be(
    gateway: Gateway, aggregator: None, tmp_path: Path, preload: tuple[str, ...]
) -> None:
    process = _start(
        gateway,
        tmp_path,
        "import json\n" + FAILS_ONCE,
        "-n",
        "1",
        "--mode",
        "val",
        *preload,
        arguments=(str(tmp_path),),
        tasks=1,
    )
    lines = await _finish(process)
    [rollout] = lines[-1]["rollouts"]
    assert (rollout["attempt"], rollout["outcome"]) == (1, "finished")
    statuses = [
        status for status in await gateway.statuses(rollout["group_id"]) if status.rollout_id
    ]
    assert [
        (status.attempt, status.kind, status.failure, status.will_retry) for status in statuses
    ] == [
        (0, StatusKind.started, None, False),
        (0, StatusKind.failed, FailureKind.upstream_error, True),
        (1, StatusKind.started, None, False),
        (1, StatusKind.finished, None, False),
    ]


async def test_a_failed_agent_is_reported_with_exit_code_and_error_output(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    lines = await _finish(
        _start(
            gateway, tmp_path, programs.EXITS, "-n", "1", "--mode", "val", arguments=("3",), tasks=1
        ),
        3,
    )
    assert "1 of 1 rollouts failed: 1 agent_exception" in lines[-1]["problem"]
    [rollout] = lines[-1]["rollouts"]
    assert (rollout["outcome"], rollout["failure"]) == ("failed", "agent_exception")
    failed = [
        status
        for status in await gateway.statuses(rollout["group_id"])
        if status.kind is StatusKind.failed
    ]
    assert [(status.exit_code, status.message, status.source) for status in failed] == [
        (3, "last words", "runner")
    ]


@pytest.mark.parametrize("preload", [(), ("--preload", "json")], ids=["executed", "forked"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_stopped_run_leaves_no_process(
    gateway: Gateway, tmp_path: Path, preload: tuple[str, ...], number: signal.Signals
) -> None:
    _write_rewards(tmp_path)
    pids = tmp_path / "pids"
    options = ("-n", "1", "--reward", "rewards.py:length", "--results", "results.json", *preload)
    process = _start(gateway, tmp_path, programs.SLEEPS, *options, arguments=(str(pids),), tasks=1)
    try:
        running = [
            int(pid) for pid in (await asyncio.to_thread(programs.wait_for_line, pids)).split()
        ]
        below = programs.descendants(process.pid)
        assert len(below) >= 3, "fork server, agent and reward worker"
        process.send_signal(number)
        output, _ = await asyncio.to_thread(process.communicate, None, 30)
    finally:
        process.kill()
    assert process.returncode == (-number if number is signal.SIGKILL else 130)
    for pid in [*running, *below]:
        assert await asyncio.to_thread(programs.is_soon_dead, pid), f"process {pid} is still there"
    if number is not signal.SIGKILL:
        statuses = [
            status
            for status in await _all_statuses(gateway)
            if status.kind is StatusKind.failed and status.failure
        ]
        assert FailureKind.cancelled in {status.failure for status in statuses}
        assert json.loads(output.splitlines()[-1])["interrupted"]
        assert json.loads((tmp_path / "results.json").read_text())["counts"]["declared"] == 1


@pytest.mark.parametrize(
    ("options", "problem", "actions"),
    [
        (
            ("--reward", "rewards.py:broken"),
            "4 of 4 rollouts have no reward: 4 x ZeroDivisionError",
            {"reward_failed": 4},
        ),
        (
            ("--reward", "rewards.py:nothing"),
            "0 of 4 actions trained: 4 no_signal",
            {"no_signal": 4},
        ),
        (
            ("--reward", "rewards.py:length", "-n", "1"),
            "0 of 2 actions trained: 2 no_baseline",
            {"no_baseline": 2},
        ),
        (
            ("--reward", "rewards.py:broken", "--mode", "val"),
            "all 2 groups gave no measurement",
            {},
        ),
    ],
    ids=["reward raises", "equal rewards", "groups of one", "val"],
)
async def test_a_run_that_teaches_nothing_says_why_and_exits_with_3(
    gateway: Gateway,
    aggregator: None,
    tmp_path: Path,
    options: tuple[str, ...],
    problem: str,
    actions: dict[str, int],
) -> None:
    _write_rewards(tmp_path)
    lines = await _finish(_start(gateway, tmp_path, ASKS, "-n", "2", *options), 3)
    assert problem in lines[-1]["problem"]
    assert lines[-1]["actions"] == actions
    if "rewards.py:broken" in options:
        assert any(
            "ZeroDivisionError" in line["text"] for line in lines if line["event"] == "warning"
        )


async def test_a_run_gives_up_after_so_many_groups_without_use(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    _write_rewards(tmp_path)
    options = (
        "-n",
        "2",
        "--reward",
        "rewards.py:nothing",
        "--give-up-after",
        "2",
        "--concurrency",
        "2",
        "--max-ahead",
        "9",
        "--epochs",
        "99",
    )
    lines = await _finish(_start(gateway, tmp_path, ASKS, *options), 3)
    assert "useless groups in a row (--give-up-after)" in lines[-1]["problem"]
    assert lines[-1]["groups"] < 12, "far from the 198 that were asked for"


async def test_the_gateways_address_may_end_as_agents_have_it(
    gateway: Gateway, aggregator: None, tmp_path: Path
) -> None:
    (tmp_path / "agent.py").write_text(ASKS)
    (tmp_path / "tasks.jsonl").write_text('{"question": "?"}')
    environment = environment_of(
        gateway, FULGURITE_DATA_DIR=str(tmp_path), FULGURITE_GATEWAY_URL=f"{gateway.url}/v1/"
    )
    argv = [*RUN, "--mode", "val", "-n", "1", "--", "python", "agent.py"]
    done = await asyncio.to_thread(
        subprocess.run,
        argv,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 finished" in done.stderr


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        (("--preload", "no_such_module"), ("python", "agent.py"), "cannot import no_such_module"),
        ((), ("no-such-program",), "no such program"),
        (("--reward", "rewards.py:none"), ("python", "agent.py"), "has no function"),
        (
            ("--reward", "rewards.py:length", "--reward", "f1=builtin:f2"),
            ("python", "agent.py"),
            "no built-in reward 'f2'",
        ),
    ],
)
async def test_what_cannot_work_is_said(
    gateway: Gateway, tmp_path: Path, options: tuple[str, ...], command: tuple[str, ...], words: str
) -> None:
    (tmp_path / "agent.py").write_text("import time\ntime.sleep(60)")
    _write_rewards(tmp_path)
    (tmp_path / "tasks.jsonl").write_text("{}")
    argv = [*RUN, "-n", "1", *options, "--", *command]
    environment = environment_of(gateway, FULGURITE_DATA_DIR=str(tmp_path), COLUMNS="1000")
    done = await asyncio.to_thread(
        subprocess.run,
        argv,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr


async def _all_statuses(gateway: Gateway) -> list[Any]:
    return [
        record.event
        for record in await asyncio.to_thread(
            lambda: list(read_all(gateway.kafka, AGENT_STATUS, Codec()))
        )
    ]
