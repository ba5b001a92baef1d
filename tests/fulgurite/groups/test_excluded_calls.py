"""A closing with exclusion rules: excluded actions are accounted for, and everything else is as if
their calls had not been made.
"""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.enums import FilterReason, Mode, StatusKind
from fulgurite.episodes.exclusions import ExclusionRule
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, Declaration, Episode, LedgerEntry, LlmCall, Tombstone
from fulgurite.failures import FailureAction, FailureKind
from fulgurite.groups.closing import awaits_rewards, close_group
from fulgurite.groups.credit import RULES
from fulgurite.groups.group_revisions import Output
from fulgurite.ids import action_id
from fulgurite.trajectories.building import successful_actions
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

CODEC = Codec()
GROUP = group_id(0)
EXCLUDING = FailureRules(
    exclusions=(ExclusionRule(agent="title"),),
    policies={FailureKind.loop_detected: FailureAction.mask},
)
KEEPING = msgspec.structs.replace(EXCLUDING, exclusions=())


def declaration(size: int = 1, credit: str = "identical") -> Declaration:
    found = make_declared(size=size, credit=credit, max_attempts=2).declaration
    assert found is not None
    return found


def episode(index: int, *calls: LlmCall, attempt: int = 0, **status: object) -> Episode:
    kind = StatusKind.failed if status.get("failure") else StatusKind.finished
    found = stitch(
        [make_declared(), *calls, make_status(0, index, kind, attempt=attempt, **status)]  # type: ignore[arg-type]
    )
    assert found is not None
    return found


def helper(index: int = 0, turn: int = 5, **more: object) -> LlmCall:
    return make_call(0, index, turn, agent="title", prompt=(5, 5), **more)  # type: ignore[arg-type]


def entries(outputs: tuple[Output, ...]) -> dict[FilterReason | None, tuple[str, ...]]:
    return {output.reason: output.actions for output in outputs if isinstance(output, LedgerEntry)}


def test_an_excluded_call_opens_no_row_and_takes_no_credit() -> None:
    first = make_call(turn=0, at=1_000, prompt=(1,), answers=[(7,)])
    titled = helper(at=1_001)
    second = make_call(turn=1, at=1_100, prompt=(1, 7, 2), answers=[(8,)])
    rewards = [make_reward(value=1.0)]
    done = episode(0, first, titled, second)
    outputs = close_group(GROUP, declaration(), [done], rewards, EXCLUDING)
    entry, row = outputs
    assert isinstance(entry, LedgerEntry)
    assert (entry.reason, entry.source) == (FilterReason.excluded, "rewarder")
    assert entry.actions == (action_id(titled.call_id, 0),)
    assert not isinstance(row, LedgerEntry | Tombstone)
    assert [action.call_id for action in row.actions] == [first.call_id, second.call_id]
    assert (row.rows_in_episode, row.episode_reward) == (1, 1.0)
    assert len(close_group(GROUP, declaration(), [done], rewards, KEEPING)) == 2


def test_a_call_that_builds_on_an_excluded_one_keeps_its_prompt_as_context() -> None:
    titled = helper(at=1_000, answers=[(7,)])
    later = make_call(turn=1, at=1_100, prompt=(5, 5, 7, 2), answers=[(8,)])
    _, row = close_group(
        GROUP, declaration(), [episode(0, titled, later)], [make_reward()], EXCLUDING
    )
    assert not isinstance(row, LedgerEntry | Tombstone)
    (action,) = row.actions
    assert (action.call_id, action.start, action.turn) == (later.call_id, 4, 0)


def test_its_reward_stays_in_that_of_the_episode() -> None:
    titled = helper()
    rewards = [make_reward(), make_reward(value=0.5, name="style", call_id=titled.call_id)]
    _, row = close_group(
        GROUP, declaration(), [episode(0, make_call(), titled)], rewards, EXCLUDING
    )
    assert not isinstance(row, LedgerEntry | Tombstone)
    assert (row.episode_reward, row.rewards) == (1.5, {"reward": 1.0, "style": 0.5})
    assert [action.reward for action in row.actions] == [1.0]


def test_a_rollout_of_nothing_else_is_no_member_of_the_comparison() -> None:
    plan = declaration(size=2)
    only = episode(0, helper())
    other = episode(1, make_call(0, 1))
    rewards = [make_reward(index=1)]
    assert awaits_rewards(plan, [only, other], rewards, KEEPING)
    assert not awaits_rewards(plan, [only, other], rewards, EXCLUDING)
    outputs = close_group(GROUP, plan, [only, other], [*rewards, make_reward()], EXCLUDING)
    (stone,) = [output for output in outputs if isinstance(output, Tombstone)]
    assert (stone.reason, stone.episode_reward) == (FilterReason.excluded, None)
    assert stone.group_members_scored == 1
    assert entries(outputs) == {FilterReason.excluded: (action_id(only.calls[0].call_id, 0),)}


def test_live_traffic_has_no_ledger_and_loses_the_row_all_the_same() -> None:
    live = stitch([helper(mode=Mode.live), make_status(kind=StatusKind.timed_out, mode=Mode.live)])
    assert live is not None
    (stone,) = close_group(GROUP, None, [live], [make_reward()], EXCLUDING)
    assert isinstance(stone, Tombstone)
    assert stone.reason is FilterReason.excluded


@st.composite
def groups(draw: st.DrawFn) -> tuple[Declaration, list[Episode], list[AgentReward]]:
    """Rollouts that take turns, branch, are tried again, fail, with helper calls among them."""
    size = draw(st.integers(1, 3))
    episodes: list[Episode] = []
    rewards: list[AgentReward] = []
    for index in range(size):
        attempts = draw(st.integers(1, 2))
        for attempt in range(attempts):
            calls: list[LlmCall] = []
            stream: tuple[int, ...] = (1,)
            for turn in range(draw(st.integers(0, 4))):
                token = draw(st.integers(7, 9))
                calls.append(
                    make_call(
                        0,
                        index,
                        turn,
                        attempt=attempt,
                        at=1_000 + 10 * turn,
                        prompt=stream,
                        answers=draw(st.sampled_from([[(token,)], [(token,), (6,)], [None]])),
                        agent=draw(st.sampled_from(["", "", "title"])),
                    )
                )
                stream = draw(st.sampled_from([stream, (*stream, token, 2), (3,), (5, turn)]))
            again = attempt + 1 < attempts
            failure = draw(
                st.sampled_from(
                    [None, FailureKind.infrastructure, FailureKind.loop_detected]
                    if not again
                    else [FailureKind.infrastructure]
                )
            )
            episodes.append(
                episode(index, *calls, attempt=attempt, failure=failure, will_retry=again)
            )
        if draw(st.booleans()):
            rewards.append(make_reward(0, index, draw(st.floats(-1, 1, width=16))))
    return declaration(size, draw(st.sampled_from(sorted(RULES)))), episodes, rewards


def without_helpers(one: Episode) -> Episode:
    """The same record of an attempt that made none of the calls that a rule excludes."""
    return msgspec.structs.replace(
        one, calls=tuple(call for call in one.calls if call.agent != "title")
    )


def said_apart_from_exclusions(outputs: tuple[Output, ...]) -> list[bytes]:
    """The bytes of what is not about excluded calls, without the ids that hash the whole closing."""
    unnamed = {"event_id": "", "group_revision": ""}
    found: list[bytes] = []
    for output in outputs:
        if isinstance(output, LedgerEntry) and output.reason is FilterReason.excluded:
            continue
        bare = msgspec.structs.replace(output, **unnamed)
        if isinstance(bare, Tombstone) and bare.reason is FilterReason.excluded:
            bare = msgspec.structs.replace(bare, reason=FilterReason.missing)
        if not isinstance(bare, LedgerEntry | Tombstone):
            bare = msgspec.structs.replace(bare, trajectory_id="")
        found.append(CODEC.encode(bare))
    return found


@given(groups())
def test_a_rule_leaves_every_other_byte_as_it_was(
    group: tuple[Declaration, list[Episode], list[AgentReward]],
) -> None:
    plan, episodes, rewards = group
    with_rule = close_group(GROUP, plan, episodes, rewards, EXCLUDING)
    never_made = close_group(GROUP, plan, [*map(without_helpers, episodes)], rewards, KEEPING)
    assert said_apart_from_exclusions(with_rule) == said_apart_from_exclusions(never_made)
    assert awaits_rewards(plan, episodes, rewards, EXCLUDING) == awaits_rewards(
        plan, [*map(without_helpers, episodes)], rewards, KEEPING
    )
    helpless = [one for one in episodes if without_helpers(one) == one]
    assert close_group(GROUP, plan, helpless, rewards, EXCLUDING) == close_group(
        GROUP, plan, helpless, rewards, KEEPING
    )


@given(groups())
def test_every_action_is_accounted_for_once(
    group: tuple[Declaration, list[Episode], list[AgentReward]],
) -> None:
    plan, episodes, rewards = group
    outputs = close_group(GROUP, plan, episodes, rewards, EXCLUDING)
    found = Counter[str]()
    for output in outputs:
        if isinstance(output, LedgerEntry):
            found.update(output.actions)
        elif not isinstance(output, Tombstone):
            found.update(
                action_id(action.call_id, action.choice) for action in output.actions if action.loss
            )
    calls = [call for one in episodes for call in one.calls]
    assert found == Counter(action for call in calls for action in successful_actions(call))
    assert set(entries(outputs).get(FilterReason.excluded, ())) == {
        action for call in calls if call.agent == "title" for action in successful_actions(call)
    }
