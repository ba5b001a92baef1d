"""SFT and DPO on a recording, from the command line: what is chosen becomes likelier, versions are
published like others, and the ledger balances. The policy's learner trains before and after.
"""

# transformers is annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from fulgurite.avro.codec import Codec
from fulgurite.enums import UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import Event, LedgerEntry, PolicyUpdate, Trajectory
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import group_closed
from fulgurite.tokens import unpack_ids, unpack_logprobs
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    EPISODES,
    LLM_CALLS,
    POLICY_UPDATES,
    TRAINING_LEDGER,
    TRAJECTORIES,
)
from services.cli.ledger import read_books
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.process import ChildProcess
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from tests.integration.command_line import fulgurite_command, run_fulgurite
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

pytestmark = pytest.mark.engine

CODEC = Codec()
GROUPS = 4
REWARDS = [1.0, 0.5, 0.0]
WAIT_S = 240.0


class Deployment:
    """Topics with recorded groups, a data folder, and commands on them."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix)
        self.folder = folder
        create_topics(self.kafka)
        self.environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "FULGURITE_TOPIC_PREFIX": prefix,
            "FULGURITE_MODEL": str(tiny_model()),
            "FULGURITE_DATA_DIR": str(folder / "data"),
            "FULGURITE__BATCH__GROUPS": str(GROUPS),
            "FULGURITE__ENGINE__DEVICE": "cpu",
            "FULGURITE__ENGINE__DTYPE": "fp32",
            "FULGURITE__OPTIMIZER__LR": "1e-3",
            # The made-up log-probabilities are not those of the model.
            "FULGURITE__DRIFT__STOP__K3": "1e9",
            "FULGURITE__DRIFT__STOP__ESS": "0",
            "OMP_NUM_THREADS": "1",
        }

    def record(self, groups: Sequence[int]) -> list[Trajectory]:
        """Write groups as the services do; returns their rows."""
        producer = EventProducer(self.kafka, CODEC, "test")
        rows: list[Trajectory] = []
        for group in groups:
            declared = make_declared(group, len(REWARDS))
            calls = [
                make_call(group, index, prompt=[1, 2, 3 + group], answers=[[20 + index, 9, 30]])
                for index in range(len(REWARDS))
            ]
            statuses = [make_status(group, index) for index in range(len(REWARDS))]
            stitched = [
                stitch([declared, call, status])
                for call, status in zip(calls, statuses, strict=True)
            ]
            episodes = [episode for episode in stitched if episode is not None]
            rewards = [make_reward(group, index, value) for index, value in enumerate(REWARDS)]
            outputs = close_group(declared.group_id, declared.declaration, episodes, rewards)
            closed = group_closed(outputs, episodes, rewards, None)
            assert closed is not None
            written: list[tuple[Any, Sequence[Event]]] = [
                (LLM_CALLS, calls),
                (AGENT_STATUS, [declared, *statuses]),
                (AGENT_REWARDS, rewards),
                (EPISODES, episodes),
                (TRAJECTORIES, [*outputs, closed]),
            ]
            for topic, events in written:
                for event in events:
                    producer.publish_sync(topic, declared.group_id, event)
            rows += [output for output in outputs if isinstance(output, Trajectory)]
        producer.close()
        return rows

    def command(
        self, *words: str, code: int = 0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return run_fulgurite(
            *words, environment=self.environment | variables, code=code, timeout_s=WAIT_S
        )

    def entries(self) -> list[LedgerEntry]:
        return [
            record.event
            for record in read_all(self.kafka, TRAINING_LEDGER, CODEC)
            if isinstance(record.event, LedgerEntry)
        ]

    def updates(self) -> list[PolicyUpdate]:
        return [
            record.event
            for record in read_all(self.kafka, POLICY_UPDATES, CODEC)
            if isinstance(record.event, PolicyUpdate) and record.event.kind is UpdateKind.update
        ]

    def learn(self, until: Callable[[], bool]) -> None:
        """Run the policy's learner until then."""
        learner = ChildProcess(
            [sys.executable, "-m", "services.learner.main"],
            self.folder / f"learner-{len(self.updates())}.log",
            env=self.environment,
        )
        try:
            end = time.monotonic() + WAIT_S
            while not until():
                assert learner.is_running, learner.log.read_text()[-3000:]
                assert time.monotonic() < end, learner.log.read_text()[-3000:]
                time.sleep(0.2)
            learner.send_signal(signal.SIGTERM)
            assert learner.wait(60) == 0
        finally:
            learner.kill()


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Deployment:
    return Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)


class Weights:
    """The weights of a version, or of the base model, in transformers."""

    def __init__(self, update: PolicyUpdate | None) -> None:
        folder = tiny_model()
        if update is not None:
            assert update.artifact is not None
            folder = Path(unquote(urlparse(update.artifact.uri).path)).parent
        self._model = cast("Any", AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))

    def logprobs(self, token_ids: bytes) -> torch.Tensor:
        """Of each token but the first."""
        tokens = torch.tensor(unpack_ids(token_ids).astype(np.int64))
        with torch.no_grad():
            found = log_softmax(self._model(tokens[None]).logits[0, :-1], dim=-1)
        return found.gather(1, tokens[1:, None])[:, 0]

    def answer(self, row: Trajectory) -> float:
        (action,) = row.actions
        return float(self.logprobs(row.token_ids)[action.start - 1 : action.end - 1].sum())

    def preference(self, rows: Sequence[Trajectory]) -> float:
        """How much likelier the best answers are than the worst, in nats."""
        return sum(
            self.answer(row) * {1.0: 1, 0.5: 0, 0.0: -1}[row.episode_reward or 0.0] for row in rows
        )


def test_a_recording_is_trained_by_sft_and_dpo_beside_the_learner(deployment: Deployment) -> None:
    rows = deployment.record(range(GROUPS))
    deployment.learn(lambda: len({entry.group_id for entry in deployment.entries()}) == GROUPS)
    (online,) = deployment.updates()
    before = read_books(deployment.kafka)
    assert (before.remainder, before.terms) == (0, {"trained": GROUPS * len(REWARDS)})

    shown = deployment.command("sft", "--dry-run")
    assert f"{GROUPS} episodes of {GROUPS} groups, {GROUPS} actions" in shown.stdout
    assert "8 episodes left out: their reward is not among the best" in shown.stdout
    assert deployment.updates() == [online]

    tuned = deployment.command("sft", FULGURITE__SFT__EPOCHS="2", FULGURITE__SFT__BATCH_SIZE="2")
    assert "policy@2.3 from policy@1.1" in tuned.stdout
    _, first, second = deployment.updates()
    assert [update.version for update in (first, second)] == ["policy@2.3", "policy@2.5"]
    best = [row for row in rows if row.episode_reward == 1.0]
    likelihoods = [
        sum(Weights(update).answer(row) for row in best) for update in (online, first, second)
    ]
    assert likelihoods == sorted(likelihoods)

    preferred = deployment.command(
        "dpo", FULGURITE__DPO__BETA="0.5", FULGURITE__DPO__REFERENCE="base"
    )
    assert f"{GROUPS} pairs of {GROUPS} groups" in preferred.stdout
    last = deployment.updates()[-1]
    assert (last.version, last.offline_method) == ("policy@3.6", "dpo")
    assert Weights(last).preference(rows) > Weights(second).preference(rows)

    for update in (first, second, last):
        assert update.topic == "trajectories"
        assert update.positions == online.positions
        assert update.probe is not None
        served = Weights(update).logprobs(update.probe.token_ids).numpy()
        # Where the learner computes in bf16, what is published is rounded to it.
        assert np.allclose(served, unpack_logprobs(update.probe.logprobs), atol=0.1)
    offline = [entry for entry in deployment.entries() if entry.source == "offline"]
    assert {entry.version for entry in offline} == {"policy@2.3", "policy@2.5", "policy@3.6"}
    after = read_books(deployment.kafka)
    assert (after.remainder, after.terms) == (0, before.terms)
    assert after.offline_actions == GROUPS * 2

    deployment.record([GROUPS, GROUPS + 1, GROUPS + 2, GROUPS + 3])
    deployment.learn(lambda: len(deployment.updates()) == 5)
    assert deployment.updates()[-1].parent_version == "policy@3.6"
    assert read_books(deployment.kafka).remainder == 0


def test_an_export_is_trained_on_as_a_policy_of_its_own(
    deployment: Deployment, tmp_path: Path
) -> None:
    deployment.record(range(GROUPS))
    empty = deployment.command("sft", "--since", "1h", code=1)
    assert "there is nothing to train on" in empty.stderr
    deployment.command("export", "parquet", str(tmp_path / "rows"), "--min-reward", "0.4")
    deployment.command(
        *("sft", "--from", str(tmp_path / "rows"), "--policy", "tuned", "--rows-of", "policy"),
        FULGURITE__SFT__TOP_K="3",
        FULGURITE__SFT__MIN_REWARD="0.5",
    )
    (update,) = deployment.updates()
    assert (update.version, update.topic, update.trained_actions) == ("tuned@1.1", None, 8)
    books = read_books(deployment.kafka)
    assert (books.remainder, books.offline_actions) == (0, 8)
    lineage = deployment.command("lineage", "tuned@1.1")
    assert "trained offline (sft) on an export" in lineage.stdout
    assert group_id(0) in lineage.stdout


def test_an_interrupted_run_says_so_and_publishes_nothing(deployment: Deployment) -> None:
    deployment.record(range(GROUPS))
    process = ChildProcess(
        fulgurite_command("sft"),
        deployment.folder / "sft.log",
        env=deployment.environment
        | {"FULGURITE__SFT__EPOCHS": "1", "FULGURITE__SFT__BATCH_SIZE": "1"},
    )
    try:
        end = time.monotonic() + WAIT_S
        while '"event": "step"' not in process.log.read_text(errors="replace"):
            assert process.is_running, process.log.read_text()
            assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
        stopped = process.returncode == 130
    finally:
        process.kill()
    assert len(deployment.updates()) == (0 if stopped else 1)
