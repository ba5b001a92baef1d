"""Rewards that come after their group was closed, on a real broker: one newer revision, over kill
-9 and a long memory's end too; the learner trains nothing again and tells the ledger once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgurite.enums import FilterReason
from fulgurite.events import AgentReward, Episode, GroupClosed, LedgerEntry, Tombstone, Trajectory
from fulgurite.groups.closing import close_group
from fulgurite.ids import mint_group
from fulgurite.topics import AGENT_REWARDS, EPISODES, TRAINING_LEDGER, TRAJECTORIES
from services.cli.ledger import read_books
from services.local_stack.kafka_local import LocalKafka
from tests import synthetic
from tests.integration.test_processors import Deployment, Made, wait_until
from tests.synthetic import make_group, make_reward

pytestmark = pytest.mark.engine

GROUPS = 6


@pytest.fixture
def deployment(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(kafka.bootstrap_servers, topic_prefix, tmp_path)
    yield made
    made.close()


def closings(deployment: Deployment, group: str) -> list[str]:
    """The group's revisions, in the order of the log."""
    events = [
        event
        for event in deployment.read(TRAJECTORIES)
        if isinstance(event, GroupClosed) and event.group_id == group
    ]
    return list(dict.fromkeys(event.group_revision for event in events))


def expected(deployment: Deployment, number: int) -> set[str]:
    """Ids of what an undisturbed run would have written with all that the log holds."""
    episodes = [
        e
        for e in deployment.read(EPISODES)
        if isinstance(e, Episode) and e.group_id == synthetic.group_id(number)
    ]
    rewards = [
        e
        for e in deployment.read(AGENT_REWARDS)
        if isinstance(e, AgentReward) and e.group_id == synthetic.group_id(number)
    ]
    return {
        output.event_id
        for output in close_group(
            synthetic.group_id(number), episodes[0].declaration, episodes, rewards
        )
    }


def in_newest(deployment: Deployment, number: int) -> set[str]:
    newest = closings(deployment, synthetic.group_id(number))[-1:]
    events = [*deployment.read(TRAJECTORIES), *deployment.read(TRAINING_LEDGER)]
    return {
        e.event_id
        for e in events
        if isinstance(e, Trajectory | Tombstone | LedgerEntry) and e.group_revision in newest
    }


def test_late_rewards_amend_over_kills_and_forgetting(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time() * 1000)
    # Ids as the gateway mints them: from their time the rewarder tells how far back to read.

    def minted(number: int) -> str:
        return mint_group(now + number, number.to_bytes(10, "big"))

    monkeypatch.setattr(synthetic, "group_id", minted)
    times = {"FULGURITE_REWARDER_AMEND_WAIT_S": "5", "FULGURITE_REWARDER_AMEND_EVERY_S": "0"}
    # Nothing is kept: what comes late is read from the log again.
    forgetful = {
        **times,
        "FULGURITE_REWARDER_AMEND_WAIT_S": "0.5",
        "FULGURITE_REWARDER_KEEP_S": "0",
        "FULGURITE_REWARDER_HISTORY_S": "0",
    }
    events: list[Made] = [event for number in range(GROUPS) for event in make_group(number, at=now)]
    deployment.start("aggregator", "rewarder", **times)
    deployment.publish(events)
    wait_until(
        lambda: all(closings(deployment, synthetic.group_id(n)) for n in range(GROUPS)),
        "every group is closed",
    )

    # In memory; two that come together make one revision, one that is told twice or says nothing
    # new makes none.
    deployment.publish(
        [make_reward(0, 0, 0.25, at=now + 90_000), make_reward(0, 1, 0.5, at=now + 90_000)]
    )
    deployment.publish(
        [make_reward(1, 0, 1.0, at=now + 70), make_reward(1, 0, 1.0, at=now + 90_000)]
    )
    wait_until(
        lambda: len(closings(deployment, synthetic.group_id(0))) == 2, "group 0 is re-closed"
    )

    # Killed between the closing and what comes late, started without any memory.
    deployment.kill("rewarder")
    deployment.publish(
        [make_reward(2, 0, 0.25, at=now + 90_000), make_reward(3, 1, None, at=now + 90_000)]
    )
    deployment.start("rewarder", **forgetful)
    wait_until(
        lambda: all(len(closings(deployment, synthetic.group_id(n))) == 2 for n in (2, 3)),
        "groups 2 and 3 are re-closed",
    )

    # Killed as soon as the next revision is begun.
    rows = len(deployment.read(TRAJECTORIES))
    deployment.publish([make_reward(n, 2, 0.125, at=now + 95_000) for n in (3, 4, 5)])
    wait_until(lambda: len(deployment.read(TRAJECTORIES)) > rows, "a revision is begun")
    deployment.kill("rewarder")
    deployment.start("rewarder", **forgetful)
    wait_until(
        lambda: [len(closings(deployment, synthetic.group_id(n))) for n in (3, 4, 5)] == [3, 2, 2],
        "what was begun is whole",
    )
    time.sleep(1)
    assert deployment.stop() == {"aggregator": 0, "rewarder": 0}

    assert [len(closings(deployment, synthetic.group_id(n))) for n in range(GROUPS)] == [
        2,
        1,
        2,
        3,
        2,
        2,
    ]
    for number in range(GROUPS):
        assert in_newest(deployment, number) == expected(deployment, number)
    deployment.contents(TRAJECTORIES)
    books = read_books(deployment.kafka)
    assert (books.remainder, books.actions) == (0, GROUPS * 20)
    failed = [
        e
        for e in deployment.read(TRAINING_LEDGER)
        if isinstance(e, LedgerEntry) and e.reason is FilterReason.reward_failed
    ]
    assert {len(entry.actions) for entry in failed} == {5}
