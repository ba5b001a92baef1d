"""A new policy takes an older one's rows for those of its base model, and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, AgentStatus, PolicyUpdate, Trajectory
from fulgurite.groups.closing import close_group
from fulgurite.learning.batching import RowBatcher
from fulgurite.learning.relabel import learns_elsewhere, relabel
from fulgurite.versions import Version, base_version
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status


def closed() -> list[Trajectory]:
    declared = make_declared(1, 2)
    rewards: list[AgentReward] = [make_reward(1, 0, 1.0), make_reward(1, 1, 0.0)]
    episodes = [
        stitch([declared, make_call(1, 0, version="policy@1.7"), make_status(1, 0)]),
        stitch(
            [
                declared,
                make_call(1, 1, version=None),
                make_call(1, 1, 1, version="other@1.1", prompt=[5]),
                make_status(1, 1),
            ]
        ),
    ]
    assert isinstance(declared, AgentStatus)
    outputs = close_group(
        group_id(1), declared.declaration, [episode for episode in episodes if episode], rewards
    )
    return [output for output in outputs if isinstance(output, Trajectory)]


def test_rows_of_the_named_policy_become_rows_of_the_new_ones_base_model() -> None:
    rows = closed()
    mine = [relabel(row, "policy", "mine") for row in rows]
    versions = [
        action.version for row in mine if isinstance(row, Trajectory) for action in row.actions
    ]
    assert set(versions) == {"mine@0.0", None, "other@1.1"}
    assert all(isinstance(row, Trajectory) and row.policy == "mine" for row in mine)
    batcher = RowBatcher("mine")
    for offset, row in enumerate(mine):
        assert isinstance(row, Trajectory)
        batcher.add(0, offset, row)
    (group,) = batcher.next_batch(base_version("mine"), partial=True)
    assert [outcome for outcome, _ in group.outcomes.values()].count(LedgerTerm.trained) == 1


def test_after_so_many_steps_of_its_own_they_are_stale() -> None:
    batcher = RowBatcher("mine")
    for offset, row in enumerate(closed()):
        taken = relabel(row, "policy", "mine")
        assert isinstance(taken, Trajectory)
        batcher.add(0, offset, taken)
    (group,) = batcher.without_signal(Version("mine", 1, 9))
    assert LedgerTerm.trained not in {outcome for outcome, _ in group.outcomes.values()}


def test_everything_else_stays_as_it_is() -> None:
    (row, *_) = closed()
    reward = make_reward(1, 0)
    assert relabel(row, None, "mine") is row
    assert relabel(row, "third", "mine") is row
    assert relabel(reward, "policy", "mine") is reward
    assert relabel(None, "policy", "mine") is None


def test_tombstones_are_members_too() -> None:
    declared = make_declared(1, 2)
    episode = stitch([declared, make_call(1, 0), make_status(1, 0)])
    assert episode is not None
    outputs = close_group(group_id(1), declared.declaration, [episode], [])
    taken = [relabel(output, "policy", "mine") for output in outputs]
    assert {
        getattr(output, "policy", None) for output in taken if type(output).__name__ == "Tombstone"
    } == {"mine"}
    assert msgspec.structs.asdict(outputs[0])


@pytest.mark.parametrize(
    ("topic", "config", "elsewhere"),
    [
        (None, None, False),
        ("trajectories", None, False),
        ("trajectories.v2", None, True),
        (None, '{"topic": "trajectories.v2", "rows_of": "policy"}', True),
        (None, '{"topic": "trajectories"}', False),
        (None, '{"policy": {"topic": "trajectories.v2"}, "batch": {"groups": 8}}', True),
        (None, '{"policy": {"topic": "trajectories"}}', False),
        (None, "no JSON", False),
    ],
)
def test_a_learner_says_which_topic_it_learns_from(
    topic: str | None, config: str | None, elsewhere: bool
) -> None:
    update = PolicyUpdate(
        event_id="u", event_time=1, policy="mine", kind=UpdateKind.claim, epoch=1, step=0, learner_id="me", trained_actions=0,
        topic=topic, config=config,
    )  # fmt: skip
    assert learns_elsewhere(update) is elsewhere
    # Entries of offline training have a source of their own: the policy may be a live one.
    assert not learns_elsewhere(msgspec.structs.replace(update, offline_method="sft"))
