"""A closed group: rows, tombstones and ledger entries, and that every action is accounted for once."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason, Mode, StatusKind
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.errors import UnknownRule
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Declaration,
    Episode,
    LedgerEntry,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.failures import FailureAction, FailureKind
from fulgurite.groups.closing import awaits_episodes, awaits_rewards, close_group, members
from fulgurite.groups.group_revisions import Output
from fulgurite.groups.group_state import GroupState
from fulgurite.ids import action_id
from fulgurite.trajectories.building import iter_transitions, successful_actions
from tests.synthetic import (
    group_id,
    make_call,
    make_declared,
    make_group,
    make_reward,
    make_status,
    rollout_id,
)

GROUP = group_id(0)


def made(*events: Input) -> Episode:
    episode = stitch(events)
    assert episode is not None
    return episode


def declaration(**changes: object) -> Declaration:
    found = make_declared(**changes).declaration  # type: ignore[arg-type]
    assert found is not None
    return found


def finished(
    index: int = 0,
    *calls: LlmCall,
    attempt: int = 0,
    failure: FailureKind | None = None,
    will_retry: bool = False,
) -> Episode:
    kind = StatusKind.finished if failure is None else StatusKind.failed
    calls = calls or (make_call(0, index, attempt=attempt),)
    return made(
        make_declared(max_attempts=2),
        *calls,
        make_status(0, index, kind, attempt=attempt, failure=failure, will_retry=will_retry),
    )


def rows(outputs: tuple[Output, ...]) -> list[Trajectory]:
    return [output for output in outputs if isinstance(output, Trajectory)]


def stones(outputs: tuple[Output, ...]) -> list[Tombstone]:
    return [output for output in outputs if isinstance(output, Tombstone)]


def entries(outputs: tuple[Output, ...]) -> list[LedgerEntry]:
    return [output for output in outputs if isinstance(output, LedgerEntry)]


def test_a_whole_group() -> None:
    group = make_declared(size=2)
    outputs = close_group(
        GROUP,
        group.declaration,
        [finished(1), finished(0)],
        [make_reward(value=1.0), make_reward(index=1, value=0.0)],
    )
    first, second = rows(outputs)
    assert (first.rollout_id, second.rollout_id) == (rollout_id(0, 0), rollout_id(0, 1))
    assert (
        first.group_size,
        first.group_members_scored,
        first.rows_in_episode,
        first.row_index,
    ) == (2, 2, 1, 0)
    assert first.group_revision == second.group_revision
    assert (first.episode_reward, second.episode_reward) == (1.0, 0.0)
    assert (first.actions[0].reward, first.actions[0].credit) == (1.0, 1.0)
    assert entries(outputs) == []


def test_what_is_paid_too_much_is_told_of_the_last_attempts() -> None:
    gathered = GroupState()
    for event in (finished(0), finished(1), finished(2, will_retry=True)):
        gathered.add(
            msgspec.structs.replace(event, declaration=declaration(size=3, max_attempts=2))
        )
    for index in range(3):
        gathered.add(make_reward(index=index, value=1e39 if index != 1 else 1.0))
    (told,) = gathered.excesses().items()
    assert told[0] == rollout_id(0, 0)
    assert "1e+39" in told[1]


def test_members_and_what_is_awaited() -> None:
    plan = declaration(size=2, max_attempts=2)
    retried = finished(0, failure=FailureKind.infrastructure, will_retry=True)
    again = finished(0, attempt=1)
    assert awaits_episodes(plan, [retried, finished(1)])
    assert not awaits_episodes(plan, [retried, again, finished(1)])
    first, _ = members(plan, [again, retried, finished(1)])
    assert (first.final, first.earlier) == (again, (retried,))
    exhausted = finished(0, attempt=1, failure=FailureKind.infrastructure, will_retry=True)
    assert not awaits_episodes(plan, [exhausted, finished(1)])
    assert awaits_rewards(plan, [again, finished(1)], [make_reward()])
    assert not awaits_rewards(plan, [again, finished(1)], [make_reward(), make_reward(index=1)])
    silent = made(make_status(0, 1, StatusKind.timed_out, failure=FailureKind.agent_silent))
    assert not awaits_rewards(plan, [again, silent], [make_reward()])
    assert not awaits_rewards(
        plan, [finished(0, failure=FailureKind.cancelled), finished(1)], [make_reward(index=1)]
    )
    assert not awaits_rewards(plan, [retried], [])


def test_missing_and_superseded_members() -> None:
    plan = declaration(size=3, max_attempts=2)
    dropped = finished(
        0, make_call(0, 0, turn=5), failure=FailureKind.infrastructure, will_retry=True
    )
    again = finished(0, attempt=1)
    waiting = finished(2, failure=FailureKind.rate_limited, will_retry=True)
    outputs = close_group(GROUP, plan, [dropped, again, waiting], [make_reward()])
    assert [
        (stone.rollout_id, stone.reason, stone.episode_reward) for stone in stones(outputs)
    ] == [
        (rollout_id(0, 1), FilterReason.missing, None),
        (rollout_id(0, 2), FilterReason.missing, None),
    ]
    (entry,) = entries(outputs)
    assert entry.reason is FilterReason.superseded
    expected = sorted(
        action
        for episode in (dropped, waiting)
        for call in episode.calls
        for action in successful_actions(call)
    )
    assert list(entry.actions) == expected
    assert outputs[0] is entry
    assert rows(outputs)[0].attempt == 1


@pytest.mark.parametrize(
    ("episode", "rewards", "reason"),
    [
        (finished(), [], FilterReason.no_reward),
        (finished(), [make_reward(value=None)], FilterReason.reward_failed),
        (
            finished(failure=FailureKind.infrastructure),
            [make_reward()],
            FilterReason.failure_dropped,
        ),
        (finished(0, make_call(answers=[None])), [make_reward()], FilterReason.no_tokens),
    ],
)
def test_members_without_rows(
    episode: Episode, rewards: list[AgentReward], reason: FilterReason
) -> None:
    outputs = close_group(GROUP, declaration(size=1), [episode], rewards)
    (stone,) = stones(outputs)
    (entry,) = entries(outputs)
    assert stone.reason is entry.reason is reason
    assert stone.episode_reward == (1.0 if reason is FilterReason.no_tokens else None)
    assert entry.actions == successful_actions(episode.calls[0])
    assert (stone.attempt, stone.failure) == (0, episode.failure)


def test_a_member_that_did_nothing_is_missing() -> None:
    silent = made(make_status(0, 0, StatusKind.timed_out, failure=FailureKind.agent_silent))
    (stone,) = close_group(GROUP, declaration(size=1), [silent], [make_reward()])
    assert isinstance(stone, Tombstone)
    assert (stone.reason, stone.failure) == (FilterReason.missing, FailureKind.agent_silent)


def test_failures_that_are_masked_or_penalised_stay_in_the_baseline() -> None:
    looping = finished(failure=FailureKind.loop_detected)
    masked = FailureRules(policies={FailureKind.loop_detected: FailureAction.mask})
    (row,) = rows(close_group(GROUP, declaration(size=1), [looping], [make_reward()], masked))
    assert (row.actions[0].mask, row.episode_reward, row.group_members_scored) == (
        FilterReason.failure_masked,
        1.0,
        1,
    )
    penalised = FailureRules(
        policies={FailureKind.loop_detected: FailureAction.penalise}, penalty=-1.0
    )
    (row,) = rows(close_group(GROUP, declaration(size=1), [looping], [], penalised))
    assert (row.actions[0].mask, row.episode_reward, row.rewards) == (None, -1.0, {})
    assert not awaits_rewards(declaration(size=1), [looping], [], penalised)


def test_actions_of_a_frozen_policy_are_filtered_and_their_rewards_compared() -> None:
    asked = make_call(turn=0, at=1_000, prompt=(1,), answers=[(7,)], policy="writer")
    critic = make_call(turn=1, at=1_100, prompt=(5,), answers=[(8,)], policy="critic")
    cut = make_call(turn=2, at=1_200, prompt=(6,), answers=[(9,)], policy="critic", finish="length")
    outputs = close_group(
        GROUP,
        declaration(size=1),
        [finished(0, asked, critic, cut)],
        [make_reward()],
        FailureRules(frozen=frozenset({"critic"})),
    )
    (entry,) = entries(outputs)
    assert (entry.policy, entry.reason, entry.source) == (
        "critic",
        FilterReason.frozen,
        "rewarder",
    )
    assert set(entry.actions) == {action_id(critic.call_id, 0), action_id(cut.call_id, 0)}
    found = {
        (row.policy, action.loss, action.mask, action.credit)
        for row in rows(outputs)
        for action in row.actions
    }
    assert found == {
        ("writer", True, None, 1.0),
        ("critic", False, FilterReason.frozen, 1.0),
    }


def test_undeclared_traffic_is_a_group_of_one() -> None:
    live = made(
        make_call(mode=Mode.live, policy=None, answers=[None]),
        make_status(kind=StatusKind.timed_out, mode=Mode.live),
    )
    outputs = close_group(GROUP, None, [live], [make_reward()])
    (stone,) = outputs
    assert isinstance(stone, Tombstone)
    assert (stone.group_size, stone.policy, stone.reason) == (1, None, FilterReason.no_tokens)
    assert members(None, [live])[0].final == live


def test_untrained_upstreams_have_no_ledger() -> None:
    foreign = made(make_call(policy=None, answers=[None]), make_status())
    assert entries(close_group(GROUP, declaration(size=1), [foreign], [make_reward()])) == []


def test_validation_gives_nothing_to_write() -> None:
    episode = made(make_call(mode=Mode.val), make_status(mode=Mode.val))
    assert close_group(GROUP, declaration(size=1), [episode], [make_reward()]) == ()
    assert close_group(GROUP, None, [], []) == ()


def test_unknown_credit_rule() -> None:
    with pytest.raises(UnknownRule):
        close_group(GROUP, declaration(size=1, credit="magic"), [finished()], [make_reward()])


def test_step_credit_is_the_mean_over_the_branches_through_an_action() -> None:
    root = make_call(turn=0, at=1_000, prompt=(1,), answers=[(7,)])
    pair = make_call(turn=1, at=1_100, prompt=(1, 7, 2), answers=[(8,), (9,)])
    rewards = [
        make_reward(value=1.0),
        make_reward(name="step", value=0.5, call_id=pair.call_id, choice=0),
        make_reward(name="step", value=0.25, call_id=pair.call_id, choice=1),
    ]
    outputs = close_group(
        GROUP, declaration(size=1, credit="step"), [finished(0, root, pair)], rewards
    )
    first, second = rows(outputs)
    assert [action.credit for action in first.actions] == [1.375, 1.5]
    assert [action.credit for action in second.actions] == [1.375, 1.25]
    # Paid once: the outcome at the end of the longest path, each action's own where it was done.
    paid = [action.reward for row in (first, second) for action in row.actions if action.loss]
    assert sum(paid) == first.episode_reward == 1.75


def test_transitions() -> None:
    calls = (
        make_call(turn=0, at=1_000, prompt=(1, 2), answers=[(7, 9)]),
        make_call(turn=1, at=1_100, prompt=(1, 2, 7, 9, 5), answers=[(8,)]),
    )
    (row,) = rows(close_group(GROUP, declaration(size=1), [finished(0, *calls)], [make_reward()]))
    steps = [
        (
            step.state.tolist(),
            step.action.tolist(),
            step.reward,
            step.next_state.tolist(),
            step.done,
        )
        for step in iter_transitions(row)
    ]
    assert steps == [
        ([1, 2], [7, 9], 0.0, [1, 2, 7, 9, 5], False),
        ([1, 2, 7, 9, 5], [8], 1.0, [1, 2, 7, 9, 5, 8], True),
    ]


KINDS = st.sampled_from(
    ["fine", "untokened", "failed", "dropped", "unrewarded", "retried", "absent"]
)


@given(st.lists(KINDS, min_size=1, max_size=4), st.randoms())
def test_every_action_is_in_one_row_with_loss_or_in_one_entry(
    kinds: list[str], random: Random
) -> None:
    plan = declaration(size=len(kinds), max_attempts=2)
    episodes: list[Episode] = []
    rewards: list[AgentReward] = []
    for index, kind in enumerate(kinds):
        calls = (
            make_call(0, index, 0, at=1),
            make_call(0, index, 1, at=2, answers=[None if kind == "untokened" else (4,), (5,)]),
        )
        failure = {
            "failed": FailureKind.agent_exception,
            "dropped": FailureKind.infrastructure,
        }.get(kind)
        if kind == "retried":
            episodes.append(
                finished(
                    index, make_call(0, index, 2), failure=FailureKind.cancelled, will_retry=True
                )
            )
            calls = (make_call(0, index, 0, attempt=1),)
        if kind != "absent":
            episodes.append(
                finished(index, *calls, attempt=int(kind == "retried"), failure=failure)
            )
        if kind != "unrewarded":
            rewards.append(make_reward(0, index, float(index)))
    outputs = close_group(GROUP, plan, episodes, rewards)
    trained = Counter(
        action_id(a.call_id, a.choice) for row in rows(outputs) for a in row.actions if a.loss
    )
    filtered = Counter(action for entry in entries(outputs) for action in entry.actions)
    assert trained + filtered == Counter(
        a for episode in episodes for call in episode.calls for a in successful_actions(call)
    )
    if not episodes:
        assert outputs == ()
        return
    assert {output.rollout_id for output in outputs if not isinstance(output, LedgerEntry)} == set(
        plan.rollout_ids
    )
    random.shuffle(episodes)
    random.shuffle(rewards)
    assert close_group(GROUP, plan, episodes, rewards) == outputs


def test_a_made_up_group_closes_into_one_row_each() -> None:
    events = list(make_group(3, size=4, turns=5))
    inputs = [event for event in events if not isinstance(event, AgentReward)]
    declared = events[0]
    assert isinstance(declared, AgentStatus)
    episodes = [
        made(declared, *(event for event in inputs if event.rollout_id == rollout_id(3, index)))
        for index in range(4)
    ]
    outputs = close_group(
        group_id(3),
        declared.declaration,
        episodes,
        [event for event in events if isinstance(event, AgentReward)],
    )
    assert [len(row.actions) for row in rows(outputs)] == [5, 5, 5, 5]
    assert msgspec.json.encode(outputs)
