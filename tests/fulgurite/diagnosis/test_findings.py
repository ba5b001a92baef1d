"""Each finding: the facts that make it, its words with the figures, and that it has a remedy."""

from __future__ import annotations

import math

import pytest

from fulgurite.diagnosis.facts import BrokenPrefix, Facts, LearnerFacts
from fulgurite.diagnosis.findings import FINDINGS, find, lines_of
from fulgurite.enums import PrefixBreak


def broken(kind: PrefixBreak) -> BrokenPrefix:
    return BrokenPrefix(kind=kind, rows=3, rollout_id="ro_1", call_id="chat-2", shared_tokens=40)


def learner(**facts: object) -> Facts:
    return Facts(learners=(LearnerFacts(policy="policy", **facts),))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("facts", "name", "words"),
    [
        (Facts(rollouts=3, live_rollouts=3), "live_only", ["all 3 rollouts are of mode `live`", "POST /v1/rollouts"]),
        (Facts(groups=4, groups_without_signal=3), "without_signal", ["3 of 4 groups gave no training signal (75%)"]),
        (Facts(rollouts=5, failures={"agent_timeout": 2, "unknown": 1}), "failed_rollouts", ["3 of 5 rollouts failed: 2 agent_timeout, 1 unknown"]),
        (Facts(rollouts=5, unscored=2, reward_errors={"KeyError:\n 'x'": 2}), "reward_errors", ["2 of 5 rollouts have no reward: 2 x KeyError: 'x'"]),
        (Facts(is_silent=True), "silent_agents", ["OPENAI_BASE_URL"]),
        (Facts(actions={"trained": 6, "no_signal": 2}, rewards=(1.0,)), "no_signal", ["no_signal (all rewards are 1): all rewards of the group are equal"]),
        (Facts(actions={"no_signal": 2}, rewards=(0.0, 1.0)), "no_signal", ["(all rewards of each group are equal)"]),
        (Facts(actions={"no_learner": 2}, policies_without_learner=("writer",)), "no_learner", ["no_learner (writer): no learner trains"]),
        (Facts(actions={"stale": 2}, max_staleness=8), "stale", ["stale (batch.max_staleness = 8): ", "--max-ahead"]),
        (Facts(actions={"stale": 2}), "stale", ["stale: "]),
        (Facts(actions={"oversized": 2}, max_row_tokens=9), "oversized", ["oversized (batch.max_row_tokens = 9): "]),
        (Facts(actions={"oversized": 2}), "oversized", ["oversized: "]),
        (Facts(actions={"new_word": 2}), "new_word", ["see docs/reference/ledger.md"]),
        (Facts(one_valued={"format": 1.0}), "one_valued_rewards", ["the reward 'format' is 1 for every rollout", "fulgurite try"]),
        (Facts(answers=10, cut_answers=1), "truncated_answers", ["1 of 10 answers were cut", "max_tokens"]),
        (Facts(oversized_rollouts=2, rollouts_with_actions=6, max_row_tokens=9), "oversized_rows", ["2 of 6 rollouts have rows longer than batch.max_row_tokens = 9"]),
        (Facts(rows=9, broken_prefixes=(broken(PrefixBreak.template),)), "broken_prefixes", ["3 of 9 rows broke the shared prefix (template); first in rollout ro_1 at call chat-2, after 40 shared tokens", "FULGURITE_CONTINUE_TOKENS"]),
        (Facts(without_episode=2), "unclosed_episodes", ["2 rollouts have ended and have no episode yet: is the aggregator running"]),
        (Facts(without_reward=2), "missing_rewards", ["2 rollouts have ended and wait for a reward"]),
        (learner(waiting_groups=9, waited_s=181.0, batch_groups=8), "waiting_groups", ["9 groups have waited 181 s for the learner of policy: is it running"]),
        (learner(waiting_groups=3, batch_groups=8, max_wait_s=60.0), "waiting_groups", ["has 3 groups and waits for 8 (batch.groups), or for 60 s (batch.max_wait_s)"]),
        (learner(waiting_share=0.7), "idle_learner", ["waited 70% of its time for groups", "--concurrency"]),
        (learner(version="policy@1.2", k3=0.1, alarm_k3=0.02, ess=0.9, alarm_ess=0.8), "drift", ["at policy@1.2: k3 0.1 (drift.alarm.k3 = 0.02), effective sample size 0.9", "optimizer.lr"]),
        (learner(k3=math.nan, alarm_k3=0.02), "drift", ["k3 nan", "effective sample size unknown"]),
        (learner(ess=0.1, alarm_ess=0.8), "drift", ["k3 unknown"]),
    ],
)  # fmt: skip
def test_a_finding_has_its_figures_and_a_remedy(facts: Facts, name: str, words: list[str]) -> None:
    finding = find(facts)[-1]
    assert finding.name == name
    for part in words:
        assert part in finding.line


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(rollouts=3, live_rollouts=2),
        Facts(groups=4, groups_without_signal=1),
        Facts(actions={"trained": 199, "no_signal": 1, "superseded": 20}),
        Facts(actions={"trained": 1, "waiting": 5}),
        Facts(answers=100, cut_answers=1),
        Facts(rows=9, broken_prefixes=(broken(PrefixBreak.branch),)),
        learner(waiting_groups=9, waited_s=10.0, batch_groups=8),
        learner(waiting_groups=1, waited_s=10.0),
        learner(waiting_share=0.1),
        learner(k3=0.01, alarm_k3=0.02, ess=0.9, alarm_ess=0.8),
        learner(k3=0.01, ess=0.9),
    ],
)
def test_what_is_usual_is_no_finding(facts: Facts) -> None:
    assert find(facts) == ()


def test_actions_that_all_wait_are_said_to_be_untrained() -> None:
    assert lines_of(Facts(actions={"waiting": 5})) == ["0 of 5 actions trained: 5 waiting"]


def test_equally_frequent_reasons_have_one_order() -> None:
    counts = {"stale": 2, "late": 2, "truncated": 3}
    given = [counts, dict(reversed(counts.items()))]
    names = [[finding.name for finding in find(Facts(actions=actions))] for actions in given]
    assert names == [["untrained_actions", "truncated", "late", "stale"]] * 2


def test_cut_answers_are_named_once() -> None:
    facts = Facts(answers=10, cut_answers=10, actions={"truncated": 10})
    assert [finding.name for finding in find(facts)] == ["untrained_actions", "truncated"]


def test_the_cause_comes_before_what_follows_from_it() -> None:
    facts = Facts(rollouts=2, failures={"agent_exception": 2}, without_reward=2, unscored=2)
    assert [f.name for f in find(facts)] == ["failed_rollouts", "reward_errors", "missing_rewards"]


def test_each_function_is_registered_once() -> None:
    assert len(set(FINDINGS)) == len(FINDINGS)
