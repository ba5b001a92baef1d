"""A learner killed with -9 at any point of a step goes on where the log says: nothing is lost, no
action is trained into two versions.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.enums import ArtifactFormat, LedgerTerm, Mode, UpdateKind
from fulgurite.events import Action, DeadLetter, LedgerEntry, PolicyUpdate, Trajectory
from fulgurite.ids import action_id
from fulgurite.tokens import pack_ids, pack_logprobs, token_count
from fulgurite.topics import DEAD_LETTERS, POLICY_UPDATES, TRAINING_LEDGER, TRAJECTORIES
from services.applier.artifacts import fetch_adapter
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import create_topics
from services.common.processes.process import ChildProcess
from services.learner.checkpoint import CheckpointStore
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.model import tiny_model
from tests.synthetic import group_id, rollout_id

pytestmark = pytest.mark.engine

GROUPS = 6
PER_STEP = 2
WAIT_S = 240.0
CODEC = Codec()


def row(group: int, member: int) -> Trajectory:
    """One short row of one action; the members of a group are rewarded 0 and 1."""
    action = Action(
        call_id=f"call-{group}-{member}",
        choice=0,
        start=3,
        end=6,
        logprobs=pack_logprobs([-5.0] * 3),
        reward=float(member),
        credit=float(member),
        loss=True,
        version="policy@0.0",
        agent="",
        temperature=1.0,
    )
    name = f"row-{group}-{member}"
    return Trajectory(
        event_id=name,
        event_time=1_000 + group,
        trajectory_id=name,
        group_id=group_id(group),
        rollout_id=rollout_id(group, member),
        attempt=0,
        mode=Mode.train,
        policy="policy",
        episode_revision=name,
        group_revision=f"revision-{group}",
        row_index=0,
        rows_in_episode=1,
        group_size=2,
        group_members_scored=2,
        group_started_at=1_000 + group,
        token_ids=pack_ids([1, 2, 3, 10 + group, 20 + member, 30]),
        actions=(action,),
        episode_reward=float(member),
        credit_rule="identical",
    )


ROWS = [row(group, member) for group in range(GROUPS) for member in (0, 1)]
ACTIONS = {action_id(action.call_id, action.choice) for made in ROWS for action in made.actions}


class Learner:
    """A topic prefix, a data folder and the learner's process on them."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path) -> None:
        self.kafka = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix)
        self.folder = folder
        self.process: ChildProcess | None = None
        self._starts = 0
        create_topics(self.kafka)

    def publish(self, rows: Iterable[Trajectory]) -> None:
        producer = EventProducer(self.kafka, CODEC, "test")
        for made in rows:
            producer.publish_sync(TRAJECTORIES, made.group_id, made)
        producer.close()

    def start(self, *command: str, every_steps: int = 1, **settings: str) -> None:
        self._starts += 1
        environment = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": self.kafka.topic_prefix,
            "FULGURITE_MODEL": str(tiny_model()),
            "FULGURITE_DATA_DIR": str(self.folder),
            "FULGURITE__BATCH__GROUPS": str(PER_STEP),
            "FULGURITE__ENGINE__DEVICE": os.environ.get("FULGURITE_TEST_DEVICE", "cpu"),
            # The made-up log-probabilities are not those of the model.
            "FULGURITE__DRIFT__STOP__K3": "1e9",
            "FULGURITE__DRIFT__STOP__ESS": "0",
            "OMP_NUM_THREADS": "1",
            "FULGURITE__CHECKPOINT__EVERY_STEPS": str(every_steps),
            **settings,
        }
        self.process = ChildProcess(
            [sys.executable, "-m", *command],
            self.folder / f"learner-{self._starts}.log",
            env=environment,
        )

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Until it is so. Fails with the process's log if the process ends before."""
        assert self.process is not None
        until = time.monotonic() + WAIT_S
        while not reached():
            if not self.process.is_running or time.monotonic() > until:
                log = self.process.log.read_text(errors="replace")
                raise AssertionError(
                    f"{what}: not reached, exit status {self.process.returncode}\n{log[-3000:]}"
                )
            time.sleep(0.2)

    def end(self, number: int) -> int | None:
        """Send the signal; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def entries(self) -> list[LedgerEntry]:
        return [
            r.event
            for r in read_all(self.kafka, TRAINING_LEDGER, CODEC)
            if isinstance(r.event, LedgerEntry)
        ]

    def updates(self) -> list[PolicyUpdate]:
        return [
            r.event
            for r in read_all(self.kafka, POLICY_UPDATES, CODEC)
            if isinstance(r.event, PolicyUpdate)
        ]

    def versions(self) -> list[str | None]:
        return [update.version for update in self.updates() if update.kind is UpdateKind.update]


@pytest.fixture
def learner(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Learner]:
    made = Learner(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()


@pytest.mark.parametrize(
    ("point", "in_log_when_killed", "versions", "every_steps"),
    [
        # The second step is lost, and was never told: it is taken again, under the new epoch.
        ("before_checkpoint", ["policy@1.1"], ["policy@1.1", "policy@2.2", "policy@2.3"], 1),
        # It is in the checkpoint: published as it is, not trained again.
        ("before_publish", ["policy@1.1"], ["policy@1.1", "policy@1.2", "policy@2.3"], 1),
        ("before_publish", ["policy@1.1"], ["policy@1.1", "policy@1.2", "policy@2.3"], 3),
        (
            "after_publish",
            ["policy@1.1", "policy@1.2"],
            ["policy@1.1", "policy@1.2", "policy@2.3"],
            3,
        ),
    ],
)
def test_a_killed_learner_resumes(
    learner: Learner,
    point: str,
    in_log_when_killed: list[str],
    versions: list[str],
    every_steps: int,
) -> None:
    marker = learner.folder / "reached"
    learner.publish(ROWS)
    learner.start("tests.integration.paused_learner", point, str(marker), every_steps=every_steps)
    learner.wait(marker.exists, point)
    assert learner.end(signal.SIGKILL) == -signal.SIGKILL
    assert learner.versions() == in_log_when_killed
    killed_at = 1_000 * time.time()

    learner.start("services.learner.main", every_steps=every_steps)
    learner.wait(
        lambda: (
            {entry.group_id for entry in learner.entries()} == {group_id(n) for n in range(GROUPS)}
        ),
        "every group settled",
    )
    assert learner.end(signal.SIGTERM) == 0

    assert learner.versions() == versions
    entries = learner.entries()
    assert {entry.term for entry in entries} == {LedgerTerm.trained}
    assert Counter(action for entry in entries for action in entry.actions) == dict.fromkeys(
        ACTIONS, 1
    )
    assert Counter(entry.version for entry in entries) == dict.fromkeys(versions, PER_STEP)

    updates = learner.updates()
    assert [update.epoch for update in updates if update.kind is UpdateKind.claim] == [1, 2]
    trained = [update for update in updates if update.kind is UpdateKind.update]
    assert [update.parent_version for update in trained] == ["policy@0.0", *versions[:-1]]
    assert sum(update.trained_actions for update in trained) == len(ACTIONS)
    for update in trained:
        was_in_log = update.version in in_log_when_killed
        assert (update.event_time < killed_at) == was_in_log, "the time is that of publication"
        assert update.artifact is not None
        assert update.probe is not None
        path = Path(unquote(urlparse(update.artifact.uri).path))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == update.artifact.sha256
        assert token_count(update.probe.logprobs) == token_count(update.probe.token_ids) - 1

    ends = {
        record.partition: record.offset + 1
        for record in read_all(learner.kafka, TRAJECTORIES, CODEC)
    }
    found = CheckpointStore(learner.folder, "policy").latest()
    assert found is not None
    assert {position.partition: position.offset for position in found[0].positions} == ends
    assert (found[0].version, found[0].step) == (versions[-1], 3)
    assert learner.process is not None
    again = learner.process.log.read_text().count("making a step again")
    in_checkpoint = 1 if point == "before_checkpoint" else 2
    # Tensors after each step are written beside the loop, and may be complete or not.
    assert again in (range(in_checkpoint + 1) if every_steps == 1 else [in_checkpoint])


def test_a_learner_killed_before_its_tensors_are_complete_makes_its_steps_again(
    learner: Learner,
) -> None:
    marker = learner.folder / "reached"
    learner.publish(ROWS)
    learner.start("tests.integration.paused_learner", "before_tensors", str(marker))
    learner.wait(marker.exists, "the first tensors are written")
    assert learner.end(signal.SIGKILL) == -signal.SIGKILL
    before = learner.versions()
    assert before == [f"policy@1.{step}" for step in range(1, len(before) + 1)]
    assert len(before) > 0, "a version is published before its tensors are in a checkpoint"
    stored = CheckpointStore(learner.folder, "policy")
    found = stored.latest()
    assert found is not None
    assert (found[1], len(stored.batches())) == (None, len(before))

    learner.start("services.learner.main")
    learner.wait(
        lambda: len({entry.group_id for entry in learner.entries()}) == GROUPS,
        "every group settled",
    )
    assert learner.end(signal.SIGTERM) == 0
    assert learner.versions() == [*before, *(f"policy@2.{n}" for n in range(len(before) + 1, 4))]
    trained = Counter(action for entry in learner.entries() for action in entry.actions)
    assert trained == dict.fromkeys(ACTIONS, 1)
    assert learner.process is not None
    assert learner.process.log.read_text().count("making a step again") == len(before)
    assert stored.batches() == []


def test_a_killed_learner_of_an_adapter_resumes(learner: Learner) -> None:
    marker = learner.folder / "reached"
    learner.publish(ROWS)
    learner.start(
        "tests.integration.paused_learner",
        "before_publish",
        str(marker),
        FULGURITE__POLICY__WEIGHTS__TRAIN="lora",
    )
    learner.wait(marker.exists, "before_publish")
    assert learner.end(signal.SIGKILL) == -signal.SIGKILL
    learner.start("services.learner.main", FULGURITE__POLICY__WEIGHTS__TRAIN="lora")
    learner.wait(lambda: len(learner.versions()) == 3, "every batch trained")
    assert learner.end(signal.SIGTERM) == 0

    assert learner.versions() == ["policy@1.1", "policy@1.2", "policy@2.3"]
    digests: set[str] = set()
    for update in learner.updates():
        if update.artifact is not None:
            digests.add(update.artifact.sha256)
            assert update.artifact.format is ArtifactFormat.lora
            assert (fetch_adapter(update.artifact) / "adapter_config.json").is_file()
    assert len(digests) == 3, "every step changed the adapter"


@pytest.mark.xdist_group("ray")
def test_a_worker_killed_in_a_step_is_replaced_and_nothing_is_lost(learner: Learner) -> None:
    marker = learner.folder / "reached"
    learner.publish(ROWS)
    learner.start(
        "tests.integration.paused_learner",
        "in_step",
        str(marker),
        FULGURITE__ENGINE__PLACEMENT="ray",
        FULGURITE__ENGINE__WORKERS_PER_NODE="2",
    )
    learner.wait(lambda: marker.exists() and marker.read_text() != "", "a worker stands still")
    os.kill(int(marker.read_text()), signal.SIGKILL)
    learner.wait(
        lambda: len({entry.group_id for entry in learner.entries()}) == GROUPS,
        "every group settled",
    )
    assert learner.end(signal.SIGTERM) == 0
    assert learner.versions() == ["policy@1.1", "policy@2.2", "policy@2.3"]
    trained = Counter(action for entry in learner.entries() for action in entry.actions)
    assert trained == dict.fromkeys(ACTIONS, 1)
    assert learner.process is not None
    assert "workers lost" in learner.process.log.read_text()


def test_a_third_start_trains_nothing_again(learner: Learner) -> None:
    def settled() -> bool:
        return len({entry.group_id for entry in learner.entries()}) == GROUPS

    learner.publish(ROWS)
    learner.start("services.learner.main")
    learner.wait(settled, "every group settled")
    learner.end(signal.SIGKILL)
    before = (learner.versions(), len(learner.entries()))

    learner.start("services.learner.main")
    learner.wait(
        lambda: len([u for u in learner.updates() if u.kind is UpdateKind.claim]) == 2,
        "the next epoch claimed",
    )
    time.sleep(2)
    assert learner.end(signal.SIGTERM) == 0
    assert (learner.versions(), len(learner.entries())) == before


def test_a_group_that_the_trainer_fails_on_is_a_dead_letter_over_a_kill(learner: Learner) -> None:
    def poisoned(made: Trajectory) -> Trajectory:
        (action,) = made.actions
        # The gradient's norm leaves float32.
        return msgspec.structs.replace(
            made, actions=(msgspec.structs.replace(action, credit=1e30),)
        )

    def letters() -> dict[str, DeadLetter]:
        return {
            record.event.event_id: record.event
            for record in read_all(learner.kafka, DEAD_LETTERS, CODEC)
            if isinstance(record.event, DeadLetter)
        }

    def settled() -> bool:
        return len({entry.group_id for entry in learner.entries()}) == GROUPS

    learner.publish(poisoned(made) if made.group_id == group_id(1) else made for made in ROWS)
    learner.start("services.learner.main")
    learner.wait(settled, "every group settled")
    assert learner.end(signal.SIGKILL) == -signal.SIGKILL
    versions = ["policy@1.1", "policy@1.2", "policy@1.3"]
    assert learner.versions() == versions
    learner.start("services.learner.main")
    learner.wait(
        lambda: len([u for u in learner.updates() if u.kind is UpdateKind.claim]) == 2,
        "the next epoch claimed",
    )
    assert learner.end(signal.SIGTERM) == 0
    assert learner.versions() == versions
    lost = Counter(action for letter in letters().values() for action in letter.actions)
    kept = Counter(action for entry in learner.entries() for action in entry.actions)
    assert set(lost) == {f"call-1-{member}#0" for member in (0, 1)}
    assert lost + kept == dict.fromkeys(ACTIONS, 1)
    assert {(letter.stage, letter.error_type) for letter in letters().values()} == {
        ("learner.step", "StepNotFinite")
    }


def test_a_group_that_is_closed_anew_is_amended_once_over_a_kill(learner: Learner) -> None:
    def settled(*groups: int) -> bool:
        return {group_id(number) for number in groups} <= {
            entry.group_id for entry in learner.entries()
        }

    def anew(made: Trajectory) -> Trajectory:
        name = f"{made.event_id}-anew"
        return msgspec.structs.replace(
            made, event_id=name, trajectory_id=name, group_revision="anew", episode_reward=0.5
        )

    marker = learner.folder / "reached"
    learner.publish(ROWS[:4])
    # The amendment is in the checkpoint and not yet in the ledger.
    learner.start("tests.integration.paused_learner", "before_publish", str(marker))
    learner.wait(lambda: settled(0, 1), "the first step")
    learner.publish([*map(anew, ROWS[:2]), *ROWS[4:8]])
    learner.wait(marker.exists, "the second step")
    learner.end(signal.SIGKILL)
    assert not any(entry.term is LedgerTerm.amended for entry in learner.entries())

    learner.start("services.learner.main")
    learner.wait(lambda: settled(2, 3), "the second step")
    learner.publish([*map(anew, ROWS[:2]), *ROWS[8:]])
    learner.wait(lambda: settled(4, 5), "the third step")
    assert learner.end(signal.SIGTERM) == 0
    entries = learner.entries()
    (amended,) = [entry for entry in entries if entry.term is LedgerTerm.amended]
    assert (amended.group_revision, set(amended.actions)) == ("anew", {"call-0-0#0", "call-0-1#0"})
    trained = Counter(
        action for entry in entries if entry.term is LedgerTerm.trained for action in entry.actions
    )
    assert trained == dict.fromkeys(ACTIONS, 1)
