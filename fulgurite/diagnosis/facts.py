"""Defines the counted facts that findings are made of.

`fulgurite run` counts them from its own rollouts, `fulgurite diagnose` from the log
(`fulgurite.diagnosis.log_facts`). What was not counted is empty, and gives no finding.
"""

from __future__ import annotations

from collections.abc import Mapping

from fulgurite.enums import PrefixBreak
from fulgurite.events import EventStruct

TRAINED = "trained"
WAITING = "waiting"
"""The action waits for its reward or for the learner."""
NO_POLICY = "no_policy"
"""The alias is served by an upstream that is not trained."""
NO_LEARNER = "no_learner"
"""No learner trains the action's policy."""


class BrokenPrefix(EventStruct, frozen=True, kw_only=True):
    """Rows that do not extend the row before them, for one reason."""

    kind: PrefixBreak
    rows: int
    rollout_id: str
    """The first of them: its rollout."""
    call_id: str
    """The call whose prompt broke the prefix."""
    shared_tokens: int
    """Tokens that it shares with an earlier row of the episode."""


class LearnerFacts(EventStruct, frozen=True, kw_only=True):
    """What is known of the learner of one policy; None if it is not."""

    policy: str
    waiting_groups: int = 0
    """Closed groups with actions that the learner has not settled."""
    waited_s: float = 0.0
    """Seconds since the oldest of them was closed."""
    batch_groups: int | None = None
    max_wait_s: float | None = None
    waiting_share: float | None = None
    """Share of its time in which its latest versions had nothing to read."""
    version: str | None = None
    """The latest version that has `k3` and `ess`."""
    k3: float | None = None
    ess: float | None = None
    alarm_k3: float | None = None
    alarm_ess: float | None = None


class Facts(EventStruct, frozen=True, kw_only=True):
    """Counts over some groups of rollouts."""

    groups: int = 0
    """Closed groups of mode `train`."""
    groups_without_signal: int = 0
    """Those of them of which no action is trained or waits."""
    rollouts: int = 0
    """Rollouts that are counted here; each has one final attempt at most."""
    live_rollouts: int = 0
    failures: Mapping[str, int] = {}
    """Failed rollouts by kind."""
    unscored: int = 0
    """Rollouts that lack a reward which was expected."""
    reward_errors: Mapping[str, int] = {}
    """Why they do, the error's text or `no value`."""
    is_silent: bool = False
    """Whether no rollout made a call that was recorded."""
    actions: Mapping[str, int] = {}
    """Actions by outcome: `trained`, `waiting`, or the reason why they are not trained."""
    rewards: tuple[float, ...] = ()
    """Different rewards of rollouts, at least two if there are two."""
    one_valued: Mapping[str, float] = {}
    """Named rewards that had one value, where others had several."""
    answers: int = 0
    cut_answers: int = 0
    """Answers that their length limit cut."""
    policies_without_learner: tuple[str, ...] = ()
    max_row_tokens: int | None = None
    max_staleness: int | None = None
    oversized_rollouts: int = 0
    """Rollouts with a row that is too long for the learner."""
    rollouts_with_actions: int = 0
    rows: int = 0
    broken_prefixes: tuple[BrokenPrefix, ...] = ()
    without_episode: int = 0
    """Rollouts that have ended and have no episode."""
    without_reward: int = 0
    """Rollouts that have ended and wait for a reward."""
    learners: tuple[LearnerFacts, ...] = ()
