"""Finds why a policy does not learn: a registry of small functions over counted facts.

Each function yields what is wrong, with its figures, and what to do about it. The order of
`FINDINGS` is the way of a rollout: the first finding is the likely cause of later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from fulgurite.diagnosis.facts import NO_LEARNER, NO_POLICY, TRAINED, WAITING, Facts
from fulgurite.enums import FilterReason, LedgerTerm, PrefixBreak
from fulgurite.events import EventStruct
from fulgurite.ledger.balance import DEAD
from fulgurite.ledger.remedies import DRIFT_REMEDY, REMEDIES

LEARNER_SILENT_S = 180.0
"""Longer than a default batch.max_wait_s and a step together."""

_KINDS = 3
"""How many kinds of failures and errors are listed, the most frequent first."""
_ERROR_LENGTH = 200
"""Characters of an error that are shown."""
_FEW = 0.01
"""A reason with a smaller share of the actions is no finding."""
_MANY = 0.5
"""Share of groups without signal, and of a learner's time, that is a finding."""
_CUT = 0.1
"""Share of cut answers that is a finding."""

_REMEDIES: Mapping[str, str] = {
    **{str(reason): words for reason, words in REMEDIES.items()},
    NO_POLICY: "the model name is served by an upstream that is not trained: check "
    "FULGURITE_ALIASES, and `--model` of `fulgurite run`",
    NO_LEARNER: "no learner trains this policy: start one with this name in FULGURITE_POLICY, or "
    "route the model name to a policy that is trained",
    LedgerTerm.stale: "the versions that sampled it were too old when the learner came to it: "
    "lower `--max-ahead` of `fulgurite run`, or raise batch.max_staleness",
    LedgerTerm.amended: "its group changed after it had been trained: send rewards before the "
    "group's deadline, and only once",
    DEAD: "a service failed on it: `fulgurite dlq list` has the errors",
}
_EXPECTED = frozenset({TRAINED, WAITING, FilterReason.superseded})
"""Outcomes that are no finding."""

_CONTINUE = "continue from the recorded tokens with FULGURITE_CONTINUE_TOKENS=ALIAS"
_BREAK_REMEDIES: Mapping[PrefixBreak, str] = {
    PrefixBreak.retokenised: f"the same text came back as other tokens: {_CONTINUE}",
    PrefixBreak.template: "the chat template renders earlier turns differently, for example "
    f"without their reasoning: take a template that keeps them, or {_CONTINUE}",
    PrefixBreak.rewritten: "the agent changes earlier messages: append to them instead, if that is "
    "not intended",
    PrefixBreak.stop_string: "a stop string is in the tokens and not in the text: let the model "
    "end its turn instead",
}
"""A branch is intended."""


class Finding(EventStruct, frozen=True, kw_only=True):
    """One thing that keeps a policy from learning."""

    name: str
    """The name of the function that found it."""
    what: str
    """What is wrong, with the figures."""
    remedy: str = ""
    """What to do; empty if later findings say it."""
    figures: Mapping[str, float] = msgspec.field(default_factory=dict[str, float])

    @property
    def line(self) -> str:
        """The finding in one line."""
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


def live_only(facts: Facts) -> Iterator[Finding]:
    """All traffic is live, and not opted in to training."""
    if facts.live_rollouts and facts.live_rollouts == facts.rollouts:
        yield Finding(
            name="live_only",
            what=f"all {facts.rollouts} rollouts are of mode `live`, which is recorded and not "
            "trained",
            remedy="declare groups with `fulgurite run` or POST /v1/rollouts, name aliases in "
            "FULGURITE_TRAIN_LIVE, or train on the recording with `fulgurite sft`",
            figures={"live_rollouts": facts.live_rollouts},
        )


def without_signal(facts: Facts) -> Iterator[Finding]:
    """Most groups teach nothing."""
    count, groups = facts.groups_without_signal, facts.groups
    if count and count >= _MANY * groups:
        yield Finding(
            name="without_signal",
            what=f"{count} of {groups} groups gave no training signal ({count / groups:.0%})",
            figures={"groups_without_signal": count, "groups": groups},
        )


def failed_rollouts(facts: Facts) -> Iterator[Finding]:
    """Agents failed."""
    failed = sum(facts.failures.values())
    if failed:
        yield Finding(
            name="failed_rollouts",
            what=f"{failed} of {facts.rollouts} rollouts failed: {_counted(facts.failures)}",
            figures={"failed": failed, "rollouts": facts.rollouts},
        )


def reward_errors(facts: Facts) -> Iterator[Finding]:
    """Rewards that were expected did not come, or could not be computed."""
    if facts.unscored:
        errors = ", ".join(
            f"{count} x {' '.join(error.split())[:_ERROR_LENGTH]}"
            for error, count in _ranked(facts.reward_errors)[:_KINDS]
        )
        yield Finding(
            name="reward_errors",
            what=f"{facts.unscored} of {facts.rollouts} rollouts have no reward: {errors}",
            figures={"unscored": facts.unscored, "rollouts": facts.rollouts},
        )


def silent_agents(facts: Facts) -> Iterator[Finding]:
    """Agents called another server than the gateway."""
    if facts.is_silent:
        yield Finding(
            name="silent_agents",
            what="their agents made no call that was recorded",
            remedy="does the agent use OPENAI_BASE_URL and OPENAI_API_KEY?",
        )


def untrained_actions(facts: Facts) -> Iterator[Finding]:
    """How many actions were trained, and the reasons of the others with a remedy each."""
    total, trained = sum(facts.actions.values()), facts.actions.get(TRAINED, 0)
    ranked = _ranked(facts.actions)
    reasons = {
        word: count for word, count in ranked if word not in _EXPECTED and count >= _FEW * total
    }
    if not reasons and (trained or not total):
        return
    listed = ", ".join(f"{count} {word}" for word, count in ranked)
    yield Finding(
        name="untrained_actions",
        what=f"{trained} of {total} actions trained: {listed}",
        figures={"trained": trained, "actions": total},
    )
    for word, count in reasons.items():
        yield Finding(
            name=word,
            what=f"{word}{_detail(word, facts)}",
            remedy=_REMEDIES.get(word, "see docs/reference/ledger.md"),
            figures={"actions": count},
        )


def one_valued_rewards(facts: Facts) -> Iterator[Finding]:
    """A named reward is always the same."""
    for name, value in facts.one_valued.items():
        yield Finding(
            name="one_valued_rewards",
            what=f"the reward {name!r} is {value:g} for every rollout, so it tells none apart",
            remedy="give parts of it for parts of the answer, or leave it out; `fulgurite try` "
            "shows what a change would do",
            figures={"value": value},
        )


def truncated_answers(facts: Facts) -> Iterator[Finding]:
    """Many answers are cut, and are trained all the same."""
    is_named = FilterReason.truncated in facts.actions
    if facts.answers and facts.cut_answers >= _CUT * facts.answers and not is_named:
        yield Finding(
            name="truncated_answers",
            what=f"{facts.cut_answers} of {facts.answers} answers were cut by their length limit",
            remedy="raise max_tokens, or ask for shorter answers",
            figures={"cut_answers": facts.cut_answers, "answers": facts.answers},
        )


def oversized_rows(facts: Facts) -> Iterator[Finding]:
    """Rows are too long for the learner."""
    count, limit = facts.oversized_rollouts, facts.max_row_tokens
    if count:
        yield Finding(
            name="oversized_rows",
            what=f"{count} of {facts.rollouts_with_actions} rollouts have rows longer than "
            f"batch.max_row_tokens = {limit}, which are not trained (oversized)",
            remedy="raise it for the learner, or keep conversations shorter",
            figures={"oversized_rollouts": count, "rollouts": facts.rollouts_with_actions},
        )


def broken_prefixes(facts: Facts) -> Iterator[Finding]:
    """Prompts do not extend the tokens before them, so prefixes are computed again."""
    for broken in facts.broken_prefixes:
        remedy = _BREAK_REMEDIES.get(broken.kind)
        if remedy is not None:
            yield Finding(
                name="broken_prefixes",
                what=f"{broken.rows} of {facts.rows} rows broke the shared prefix ({broken.kind}); "
                f"first in rollout {broken.rollout_id} at call {broken.call_id}, after "
                f"{broken.shared_tokens} shared tokens",
                remedy=remedy,
                figures={"rows": broken.rows, "shared_tokens": broken.shared_tokens},
            )


def unclosed_episodes(facts: Facts) -> Iterator[Finding]:
    """The aggregator does not keep up."""
    if facts.without_episode:
        yield Finding(
            name="unclosed_episodes",
            what=f"{facts.without_episode} rollouts have ended and have no episode yet",
            remedy="is the aggregator running? See `fulgurite status`.",
            figures={"without_episode": facts.without_episode},
        )


def missing_rewards(facts: Facts) -> Iterator[Finding]:
    """Groups are open because rewards are missing."""
    if facts.without_reward:
        yield Finding(
            name="missing_rewards",
            what=f"{facts.without_reward} rollouts have ended and wait for a reward. A function "
            "that returns None gives no reward; the group then waits until its deadline.",
            figures={"without_reward": facts.without_reward},
        )


def waiting_groups(facts: Facts) -> Iterator[Finding]:
    """Groups wait for the learner, or the learner for more groups."""
    for learner in facts.learners:
        count, batch = learner.waiting_groups, learner.batch_groups
        figures = {"groups": count, "seconds": learner.waited_s}
        limit = LEARNER_SILENT_S if learner.max_wait_s is None else learner.max_wait_s
        if count and learner.waited_s >= max(limit, LEARNER_SILENT_S):
            yield Finding(
                name="waiting_groups",
                what=f"{count} groups have waited {learner.waited_s:.0f} s for the learner of "
                f"{learner.policy}",
                remedy="is it running? See `fulgurite status`.",
                figures=figures,
            )
        elif batch is not None and 0 < count < batch:
            yield Finding(
                name="waiting_groups",
                what=f"the learner of {learner.policy} has {count} groups and waits for {batch} "
                f"(batch.groups), or for {limit:g} s (batch.max_wait_s)",
                remedy="run more groups at once, or lower batch.groups",
                figures=figures,
            )


def idle_learner(facts: Facts) -> Iterator[Finding]:
    """The agents are the bottleneck."""
    for learner in facts.learners:
        share = learner.waiting_share
        if share is not None and share >= _MANY:
            yield Finding(
                name="idle_learner",
                what=f"the learner of {learner.policy} waited {share:.0%} of its time for groups",
                remedy="the agents or the rewards are the bottleneck: raise `--concurrency` of "
                "`fulgurite run`, or add engines",
                figures={"waiting_share": share},
            )


def drift(facts: Facts) -> Iterator[Finding]:
    """Engine and trainer disagree."""
    for learner in facts.learners:
        k3, ess = learner.k3, learner.ess
        is_far = k3 is not None and learner.alarm_k3 is not None and not k3 <= learner.alarm_k3
        is_few = ess is not None and learner.alarm_ess is not None and not ess >= learner.alarm_ess
        if is_far or is_few:
            yield Finding(
                name="drift",
                what="the log-probabilities of engine and trainer differ more than usual at "
                f"{learner.version}: k3 {_shown(k3)} (drift.alarm.k3 = "
                f"{_shown(learner.alarm_k3)}), effective sample size {_shown(ess)} "
                f"(drift.alarm.ess = {_shown(learner.alarm_ess)})",
                remedy=DRIFT_REMEDY,
                figures={
                    name: value for name, value in (("k3", k3), ("ess", ess)) if value is not None
                },
            )


FINDINGS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    live_only,
    without_signal,
    failed_rollouts,
    reward_errors,
    silent_agents,
    untrained_actions,
    one_valued_rewards,
    truncated_answers,
    oversized_rows,
    broken_prefixes,
    unclosed_episodes,
    missing_rewards,
    waiting_groups,
    idle_learner,
    drift,
)


def find(facts: Facts) -> tuple[Finding, ...]:
    """All findings, the likely causes first."""
    return tuple(finding for function in FINDINGS for finding in function(facts))


def lines_of(facts: Facts) -> list[str]:
    """All findings, a line each."""
    return [finding.line for finding in find(facts)]


def _detail(word: str, facts: Facts) -> str:
    if word == FilterReason.no_signal:
        return (
            f" (all rewards are {facts.rewards[0]:g})"
            if len(facts.rewards) == 1
            else " (all rewards of each group are equal)"
        )
    if word == NO_LEARNER:
        return f" ({', '.join(facts.policies_without_learner)})"
    if word == LedgerTerm.stale and facts.max_staleness is not None:
        return f" (batch.max_staleness = {facts.max_staleness})"
    if word == FilterReason.oversized and facts.max_row_tokens is not None:
        return f" (batch.max_row_tokens = {facts.max_row_tokens})"
    return ""


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in _ranked(counts)[:_KINDS])


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first, equally frequent ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
