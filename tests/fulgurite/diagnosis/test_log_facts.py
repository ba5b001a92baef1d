"""Facts that are counted from a log as the services write it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.diagnosis.facts import Facts
from fulgurite.diagnosis.log_facts import LogFacts
from fulgurite.enums import (
    FilterReason,
    LedgerTerm,
    Mode,
    PrefixBreak,
    StatusKind,
    TrainingUse,
    UpdateKind,
)
from fulgurite.episodes.stitching import stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import group_closed
from fulgurite.ids import action_id
from tests.synthetic import make_call, make_declared, make_reward, make_status

NOW = 1_000_000
CODEC = Codec()


def claim(policy: str = "policy", **config: object) -> PolicyUpdate:
    return PolicyUpdate(
        event_id="claim", event_time=1, policy=policy, kind=UpdateKind.claim, epoch=1, step=0, learner_id="l", trained_actions=0,
        config=json.dumps({"batch": {"groups": 8, "max_row_tokens": 4096, "max_wait_s": 120, **config}}),
    )  # fmt: skip


def update(step: int, **metrics: float) -> PolicyUpdate:
    return msgspec.structs.replace(
        claim(), kind=UpdateKind.update, step=step, version=f"policy@1.{step}", metrics=metrics
    )


def entry(
    actions: Sequence[str], number: int, term: LedgerTerm, reason: FilterReason | None = None
) -> LedgerEntry:
    return LedgerEntry(
        event_id=f"{number}{term}", event_time=1, policy="policy", group_id=make_call(number).group_id, term=term, reason=reason,
        actions=tuple(actions), source="learner",
    )  # fmt: skip


class Group:
    """A group of two rollouts, as it is in the log; None is a reward that failed."""

    def __init__(
        self,
        number: int,
        rewards: Sequence[float | None] = (),
        *,
        mode: Mode = Mode.train,
        policy: str | None = "policy",
        failure: FailureKind | None = None,
        calls: int = 1,
        finish: str = "stop",
        closes: bool = True,
        names: Sequence[str] = ("reward",),
    ) -> None:
        self.declared = make_declared(number, 2, mode=mode, expected=tuple(names))
        kind = StatusKind.failed if failure else StatusKind.finished
        self.statuses = [
            make_status(number, index, kind, failure=failure, mode=mode) for index in (0, 1)
        ]
        self.calls = [
            make_call(
                number, index, turn, mode=mode, policy=policy, finish=finish, at=1_000 + turn, prompt=(1, 2, 9) if turn else (1, 2, 3),
            )
            for index in (0, 1)
            for turn in range(calls)
        ]  # fmt: skip
        self.rewards = [
            make_reward(number, index, value, name=name)
            for index, value in enumerate(rewards)
            for name in names
        ]
        self.episodes = [self.episode(index, mode) for index in (0, 1)]
        self.closing = self.close(self.rewards, None) if closes else []

    def episode(self, index: int, mode: Mode) -> Episode:
        rollout = self.statuses[index].rollout_id
        mine: list[LlmCall | AgentStatus] = [c for c in self.calls if c.rollout_id == rollout]
        found = stitch(
            [*([self.declared] if mode is Mode.train else []), *mine, self.statuses[index]]
        )
        assert found is not None
        return found  # fmt: skip

    def close(self, rewards: Sequence[AgentReward], supersedes: str | None) -> list[Event]:
        outputs = close_group(
            self.declared.group_id, self.declared.declaration, self.episodes, rewards
        )
        closed = group_closed(outputs, self.episodes, rewards, supersedes)
        return [*outputs, *([closed] if closed else [])]

    @property
    def actions(self) -> list[str]:
        return [action_id(call.call_id, 0) for call in self.calls]

    @property
    def events(self) -> list[Event]:
        return [*self.closing, *self.episodes, *self.rewards, self.declared, *self.statuses]


def count(*events: Event | None, now: int = NOW) -> Facts:
    counted = LogFacts(CODEC.decode)
    for event in events:
        counted.add(event)
    return counted.facts(now)


def test_an_empty_log_has_no_facts() -> None:
    assert count(None) == Facts()


@pytest.mark.parametrize(
    ("group", "actions"),
    [
        (Group(1, (0.0, 1.0)), {"waiting": 2}),
        (Group(1, (1.0, 1.0)), {"no_signal": 2}),
        (Group(1, (1.0,)), {"no_baseline": 1, "no_reward": 1}),
        (Group(1, (None, None)), {"reward_failed": 2}),
        (Group(1, (0.0, 1.0), finish="length"), {"truncated": 2}),
        (Group(1, (0.0, 1.0), policy=None), {"no_policy": 2}),
        (Group(1, (0.0, 1.0), policy="writer"), {"no_learner": 2}),
        (Group(1, (0.0, 1.0), failure=FailureKind.infrastructure), {"failure_dropped": 2}),
        (Group(1, (0.0, 1.0), mode=Mode.val), {}),
    ],
)
def test_what_the_ledger_does_not_say_yet_is_predicted(
    group: Group, actions: dict[str, int]
) -> None:
    facts = count(claim(), *group.events)
    assert facts.actions == actions
    is_train = group.declared.mode is Mode.train
    assert facts.groups == is_train
    assert facts.groups_without_signal == (is_train and "waiting" not in actions)


def test_rows_that_are_too_long_are_predicted_by_the_learners_limit() -> None:
    group = Group(1, (0.0, 1.0))
    facts = count(claim(max_row_tokens=4), *group.events)
    assert (facts.actions, facts.max_row_tokens) == ({"oversized": 2}, 4)


def test_a_single_reward_may_be_compared_with_those_of_other_groups() -> None:
    group = Group(1, (1.0,))
    facts = count(claim(baseline="batch"), *group.events)
    assert facts.actions == {"waiting": 1, "no_reward": 1}


def test_the_ledgers_word_counts_when_it_comes() -> None:
    group, lost, earlier = Group(1, (0.0, 1.0)), Group(2, (0.0, 1.0)), Group(3)
    letter = DeadLetter(
        event_id="letter", event_time=1, stage="learner", error_type="E", error="e", topic="trajectories", partition=0, offset=0,
        actions=tuple(lost.actions),
    )  # fmt: skip
    facts = count(
        claim(),
        letter,
        entry(group.actions[:1], 1, LedgerTerm.trained),
        entry(group.actions[1:], 1, LedgerTerm.filtered, FilterReason.late),
        msgspec.structs.replace(
            entry(group.actions, 1, LedgerTerm.stale), event_id="x", source="offline"
        ),
        entry(earlier.actions, 3, LedgerTerm.amended),
        *group.events,
        *lost.events,
    )
    assert facts.actions == {"trained": 1, "late": 1, "dead_lettered": 2, "amended": 2}
    assert (facts.groups, facts.groups_without_signal) == (2, 1)


def test_what_an_earlier_closing_said_no_longer_counts() -> None:
    group = Group(1, ())
    assert count(claim(), *group.events).actions == {"no_reward": 2}
    rewards = [make_reward(1, 0, 0.0), make_reward(1, 1, 1.0)]
    again = group.close(rewards, None)
    assert count(claim(), *group.events, *again).actions == {"waiting": 2}
    gone = [event for event in again if not isinstance(event, Trajectory)]
    assert count(claim(), *group.closing, *gone).actions == {}


def test_rollouts_and_their_failures_are_counted_once() -> None:
    group = Group(1, (0.0, 1.0), failure=FailureKind.agent_exception)
    first = msgspec.structs.replace(group.episodes[0], attempt=0, failure=FailureKind.cancelled)
    last = msgspec.structs.replace(group.episodes[0], attempt=1)
    retried = msgspec.structs.replace(last, attempt=2, will_retry=True)
    facts = count(last, first, retried, group.episodes[1], group.declared)
    assert (facts.rollouts, facts.failures) == (2, {"agent_exception": 2})
    assert (facts.is_silent, facts.answers) == (False, 2)
    overdue = msgspec.structs.replace(last, failure=None)
    assert count(overdue).failures == {"failed": 1}


def test_agents_that_called_another_server_are_silent() -> None:
    assert count(*Group(1, calls=0).events).is_silent


def test_live_rollouts_are_counted_apart() -> None:
    facts = count(*Group(1, mode=Mode.live).episodes)
    assert (facts.rollouts, facts.live_rollouts, facts.groups) == (2, 2, 0)
    first, second = Group(1, mode=Mode.live).episodes
    opted_in = msgspec.structs.replace(first.calls[0], training_use=TrainingUse.live)
    facts = count(msgspec.structs.replace(first, calls=(opted_in,)), second)
    assert (facts.rollouts, facts.live_rollouts) == (2, 1)


def test_rewards_that_failed_or_never_came_are_counted_with_the_reason() -> None:
    failed = Group(1, (None, 1.0))
    silent = msgspec.structs.replace(make_reward(2, 0, None), error=None)
    facts = count(*failed.events, *Group(2).events, silent)
    assert facts.unscored == 3
    assert facts.reward_errors == {"it failed": 1, "no value": 2}
    provisional = make_reward(3, 0, None, final=False)
    assert count(*Group(3, closes=False).episodes, provisional).unscored == 0


def test_open_groups_wait_for_episodes_or_rewards() -> None:
    group = Group(1, (1.0,), closes=False)
    retry = msgspec.structs.replace(
        make_status(2, 0, StatusKind.failed), event_id="r", will_retry=True
    )
    started = make_status(2, 1, StatusKind.started)
    ended = make_status(2, 1)
    facts = count(*group.events, retry, started, ended)
    assert (facts.without_episode, facts.without_reward, facts.unscored) == (1, 1, 0)


def test_rewards_and_names_that_never_differ_are_told() -> None:
    groups = [Group(number, (0.0, 1.0), names=("f1", "format")) for number in range(4)]
    flat = [
        msgspec.structs.replace(event, rewards={**event.rewards, "format": 1.0})
        if isinstance(event, Trajectory)
        else event
        for group in groups
        for event in group.events
    ]
    assert count(*flat).one_valued == {"format": 1.0}
    assert count(*groups[0].events).one_valued == {}
    same = [e for number in range(4) for e in Group(number, (1.0, 1.0)).events]
    assert (count(*same).one_valued, count(*same).rewards) == ({}, (1.0,))


def test_a_broken_prefix_is_told_with_its_place() -> None:
    group = Group(1, (0.0, 1.0), calls=2)
    facts = count(*group.events)
    (broken,) = facts.broken_prefixes
    assert (facts.rows, broken.rows, broken.kind) == (4, 2, PrefixBreak.rewritten)
    assert (broken.call_id, broken.shared_tokens) == (group.calls[1].call_id, 2)
    bare = [
        msgspec.structs.replace(event, actions=()) if isinstance(event, Trajectory) else event
        for event in group.events
    ]
    assert count(*bare).broken_prefixes[0].call_id == ""


def test_a_learner_is_known_by_its_claim_and_its_latest_versions() -> None:
    waits = Group(1, (0.0, 1.0))
    facts = count(
        claim(),
        update(1, k3=9.0, ess=0.1),
        update(2, k3=0.5, ess=0.7, **{"seconds/wait": 30.0, "seconds/train": 10.0}),
        update(3, loss=1.0),
        *waits.events,
        now=92_000,
    )
    (learner,) = facts.learners
    assert (learner.waiting_groups, learner.waited_s > 80, learner.batch_groups) == (1, True, 8)
    assert (learner.version, learner.k3, learner.ess) == ("policy@1.2", 0.5, 0.7)
    assert (learner.waiting_share, learner.alarm_k3) == (0.75, None)


def test_groups_that_another_policy_answered_wait_for_its_learner() -> None:
    facts = count(claim(), claim("writer"), *Group(1, (0.0, 1.0), policy="writer").events)
    assert [(one.policy, one.waiting_groups) for one in facts.learners] == [
        ("policy", 0),
        ("writer", 1),
    ]
    assert facts.max_row_tokens is None


def test_events_that_say_nothing_change_nothing() -> None:
    assert count(make_call(1)) == Facts()
