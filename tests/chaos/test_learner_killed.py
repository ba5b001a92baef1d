"""kill -9 of the learner at random moments, with tensors in every tenth checkpoint: no version is
lost, no action is trained into two, and the steps between come out as they were.

`FULGURITE_CHAOS_KILLS` says how often it dies, `FULGURITE_CHAOS_SEED` when.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.ids import action_id
from services.local_stack.kafka_local import LocalKafka
from tests.integration.test_learner_resume import PER_STEP, Learner, row
from tests.synthetic import group_id

pytestmark = pytest.mark.engine

KILLS = int(os.environ.get("FULGURITE_CHAOS_KILLS", "3"))
SEED = int(os.environ.get("FULGURITE_CHAOS_SEED", "1"))
EVERY_STEPS = 10
LARGEST_STEPS = 7
"""That a learner makes before it is killed, so that some die between two checkpoints with tensors
and some behind one.
"""
SETTINGS = {"FULGURITE__BATCH__MAX_STALENESS": "1000000"}


@pytest.fixture
def learner(harmed: LocalKafka, tmp_path: Path) -> Iterator[Learner]:
    made = Learner(harmed.bootstrap_servers, f"killed-{SEED}.", tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()


def claims(learner: Learner) -> int:
    return sum(update.kind is UpdateKind.claim for update in learner.updates())


@pytest.mark.timeout(300 + 120 * KILLS)
def test_a_learner_that_is_killed_at_random_loses_and_doubles_nothing(learner: Learner) -> None:
    chance = random.Random(SEED)
    groups, again, told = 0, 0, list[str | None]()
    for kill in range(KILLS + 1):
        steps = chance.randint(0, LARGEST_STEPS)
        more = range(groups, groups + (steps + 1) * PER_STEP)
        groups = more.stop
        learner.publish(row(group, member) for group in more for member in (0, 1))
        learner.start("services.learner.main", every_steps=EVERY_STEPS, **SETTINGS)
        if kill == KILLS:
            break
        wanted = len(learner.versions()) + steps
        learner.wait(lambda kill=kill: claims(learner) > kill, "the next epoch acquired")
        learner.wait(lambda wanted=wanted: len(learner.versions()) >= wanted, "some steps made")
        # The moment is the point here.
        time.sleep(chance.uniform(0, 2))
        assert learner.end(signal.SIGKILL) == -signal.SIGKILL
        assert learner.process is not None
        again += learner.process.log.read_text().count("making a step again")
        versions = learner.versions()
        assert versions[: len(told)] == told
        told = versions
    learner.wait(
        lambda: {entry.group_id for entry in learner.entries()} >= {*map(group_id, range(groups))},
        "every group settled",
    )
    assert learner.end(signal.SIGTERM) == 0

    versions = learner.versions()
    assert versions[: len(told)] == told, "a published version is lost"
    trained = [update for update in learner.updates() if update.kind is UpdateKind.update]
    assert [update.parent_version for update in trained] == ["policy@0.0", *versions[:-1]]
    entries = learner.entries()
    assert {entry.term for entry in entries} == {LedgerTerm.trained}
    actions = {
        action_id(action.call_id, action.choice)
        for group in range(groups)
        for member in (0, 1)
        for action in row(group, member).actions
    }
    counted = Counter(action for entry in entries for action in entry.actions)
    assert counted == dict.fromkeys(actions, 1)
    assert {entry.version for entry in entries} == set(versions)
    assert sum(update.trained_actions for update in trained) == len(actions)
    print(  # noqa: T201 - what the page of these tests tells of a run
        f"{KILLS} kills, {len(versions)} versions, {again} steps made again, {len(actions)} actions"
    )
