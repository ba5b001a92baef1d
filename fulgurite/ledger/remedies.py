"""Explains why an action was not trained, and what a person can do about it.

Commands and logs use these words (docs/how-to/troubleshooting.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fulgurite.enums import FilterReason

REMEDIES: Mapping[FilterReason, str] = {
    FilterReason.unknown: "a newer version of Fulgurite gave another reason: update this one "
    "to read it",
    FilterReason.no_reward: "no reward came before the group was closed: is a reward worker "
    "running, and does its function return a number and not None?",
    FilterReason.no_baseline: "fewer than two rollouts of the group have a reward: run groups "
    "of `-n 2` or more, or set batch.baseline in the learner's run, as live traffic needs",
    FilterReason.no_signal: "all rewards of the group are equal, so there is nothing to "
    "compare: take tasks that the policy solves "
    "sometimes, a reward with more steps, or more rollouts a group (`-n`)",
    FilterReason.no_tokens: "the upstream gave no token ids or log-probabilities: train what "
    "Fulgurite's vLLM serves",
    FilterReason.untrainable_sampling: "sampling was greedy or restricted (temperature 0, top_p, "
    "top_k, penalties, a bias, a JSON schema): sample at temperature 1 without them",
    FilterReason.truncated: "the answer was cut by its length limit: raise max_tokens, or train "
    "cut answers too (FULGURITE_REWARDER_FAILURE_POLICIES)",
    FilterReason.failure_masked: "the action for its failure kind is `mask`: see `fulgurite "
    "rollouts list --failure KIND`",
    FilterReason.failure_dropped: "the attempt failed for a cause outside the policy (model "
    "server, network, infrastructure): repair it",
    FilterReason.superseded: "a later attempt took its place",
    FilterReason.reward_failed: "the reward function failed: `fulgurite rollouts show ID` has "
    "its error, `fulgurite try` repeats it",
    FilterReason.missing: "the rollout made no successful call: does the agent use "
    "OPENAI_BASE_URL and OPENAI_API_KEY?",
    FilterReason.unknown_version: "the engine did not say which version answered: serve the "
    "policy with Fulgurite's vLLM plug-in",
    FilterReason.late: "it came after its group was closed: give the group a longer deadline",
    FilterReason.oversized: "its row has more tokens than batch.max_row_tokens of the "
    "learner: raise it, or keep conversations shorter",
    FilterReason.not_trained_mode: "its group was written for offline use only",
    FilterReason.not_finite: "the loss, the gradient or a log-probability of its batch was not "
    "finite, and no step was made: the learner's log has the groups",
    FilterReason.drifted: "the engine's log-probabilities and the trainer's disagreed beyond "
    "drift.stop, so no step was made and the learner stopped: its log says what to do",
    FilterReason.collapsed: "the policy's entropy was below algorithm.entropy_stop_below, so no "
    "step was made and the learner stopped: its log says what to do",
    FilterReason.frozen: "its policy is frozen: remove `frozen` in the run's file to train it",
    FilterReason.excluded: "a rule of FULGURITE_REWARDER_EXCLUDED_CALLS matches its call "
    "(`fulgurite replay --exclude` tries other rules), or its request, key or person is left "
    "out of training",
    FilterReason.quota: "its owner had more live episodes in that hour than "
    "FULGURITE_TRAIN_LIVE_QUOTA",
}
"""A remedy for every reason."""

DRIFT_REMEDY = (
    "two causes are likely. (1) The batch has old calls and each step changes the policy much: "
    "lower batch.max_staleness to 1 or 2, so that old calls are skipped as stale after the "
    "restart, and lower optimizer.lr or raise batch.groups. (2) The engine serves other weights, "
    "or runs without `--logprobs-mode processed_logprobs`: check what it serves with `fulgurite "
    "status`, and its options"
)
"""What to do when the engine's log-probabilities and the trainer's differ."""


def frequent_remedies(terms: Mapping[str, int], most: int) -> list[tuple[str, str]]:
    """The most frequent reasons for which actions were filtered, with their remedies.

    `terms`: actions by term, such as `filtered(no_signal)`; other terms are passed by.
    """
    known = {
        f"filtered({reason})": (str(reason), words)
        for reason, words in REMEDIES.items()
        if reason is not FilterReason.superseded
    }
    return [known[term] for term, count in Counter(terms).most_common() if term in known and count][
        :most
    ]
