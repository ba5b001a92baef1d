"""Counts facts from the log: from trajectories, ledger, episodes, rewards, statuses and updates.

Of a group, the revision that stands counts. What the ledger does not say yet is predicted by the
learner's own rules.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from fulgurite.calls.training_use import is_counted
from fulgurite.diagnosis.closings import ClosedRow, Closing, broken_prefixes, one_valued_rewards
from fulgurite.diagnosis.facts import NO_LEARNER, NO_POLICY, TRAINED, WAITING, Facts, LearnerFacts
from fulgurite.enums import EpisodeOutcome, FilterReason, LedgerTerm, Mode, StatusKind, UpdateKind
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Declaration,
    Episode,
    Event,
    EventStruct,
    GroupClosed,
    LedgerEntry,
    PolicyUpdate,
    Tombstone,
    Trajectory,
)
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.comparison import compare
from fulgurite.learning.learners import Learners
from fulgurite.ledger.balance import DEAD, dead_actions
from fulgurite.ledger.outcomes import ActionOutcomes, word_of

LATEST = 8
"""How many of a policy's latest versions say how long its learner waited."""

_ENDS = frozenset({StatusKind.finished, StatusKind.failed, StatusKind.timed_out})
_TAUGHT = frozenset({TRAINED, WAITING, str(LedgerTerm.amended)})
_SECONDS = "seconds/"
_NO_VALUE = "no value"


class _Attempt(EventStruct, frozen=True, kw_only=True):
    """What is kept of the last attempt of a rollout."""

    group_id: str
    attempt: int
    is_only_live: bool
    """Whether it is live traffic of which nothing is trained."""
    failure: str | None
    calls: int
    endings: tuple[str | None, ...]
    """Why each answer ended."""


class LogFacts:
    """Adds up the events of some groups. Add the updates before the ledger."""

    def __init__(self, decode: Callable[[bytes], Event]) -> None:
        """`decode` reads the bytes of dead letters and may raise CodecError."""
        self._decode = decode
        self._learners = Learners()
        self._updates: defaultdict[str, deque[PolicyUpdate]] = defaultdict(
            lambda: deque[PolicyUpdate](maxlen=LATEST)
        )
        self._outcomes = ActionOutcomes()
        self._entered: defaultdict[str, set[str]] = defaultdict(set)
        """Actions of the ledger, by group."""
        self._dead: set[str] = set()
        self._closings: dict[str, Closing] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._declared: dict[str, Declaration] = {}
        self._ended: set[str] = set()
        """Rollouts whose last attempt has ended."""
        self._rewards: defaultdict[str, dict[str, AgentReward]] = defaultdict(dict)

    def add(self, event: Event | None) -> None:
        """Add an event of any topic; those that say nothing of the facts change nothing."""
        match event:
            case PolicyUpdate():
                self._add_update(event)
            case DeadLetter():
                self._dead |= dead_actions(event, self._decode)
            case LedgerEntry():
                if self._outcomes.add(event):
                    self._entered[event.group_id].update(event.actions)
            case Trajectory() | Tombstone() | GroupClosed():
                self._closings.setdefault(event.group_id, Closing()).add(event)
            case Episode():
                self._add_episode(event)
            case AgentStatus():
                self._add_status(event)
            case AgentReward() if event.final:
                self._rewards[event.rollout_id][event.name] = event
            case _:
                pass

    def facts(self, now_ms: int) -> Facts:
        """The facts of all events so far. `now_ms`: the time now, Unix milliseconds."""
        closed = {name: one for name, one in self._closings.items() if one.mode is Mode.train}
        words = {name: self._words(name) for name in sorted(closed.keys() | self._entered.keys())}
        rows = [one for closing in closed.values() for one in closing.rows]
        rewards = {value for closing in closed.values() for value in closing.rewards.values()}
        errors = dict(self._unscored())
        policies = self._policies(rows)
        config = self._learners.config(policies[0] if len(policies) == 1 else "")
        attempts = self._attempts.values()
        endings = [ending for attempt in attempts for ending in attempt.endings]
        return Facts(
            groups=len(closed),
            groups_without_signal=sum(not _TAUGHT & words[name].keys() for name in closed),
            rollouts=len(self._rollouts()),
            live_rollouts=sum(attempt.is_only_live for attempt in attempts),
            failures=Counter(attempt.failure for attempt in attempts if attempt.failure),
            unscored=len(errors),
            reward_errors=Counter(errors.values()),
            is_silent=bool(attempts) and not any(attempt.calls for attempt in attempts),
            actions=sum(words.values(), Counter[str]()),
            rewards=tuple(sorted(rewards)),
            one_valued=one_valued_rewards(rows),
            answers=len(endings),
            cut_answers=endings.count("length"),
            policies_without_learner=tuple(p for p in policies if not self._learners.train(p)),
            max_row_tokens=config.max_row_tokens,
            max_staleness=config.max_staleness,
            rows=len(rows),
            broken_prefixes=tuple(broken_prefixes(rows)),
            without_episode=len(self._ended - self._attempts.keys()),
            without_reward=sum(
                attempt.group_id not in self._closings and self._lacks_reward(rollout_id)
                for rollout_id, attempt in self._attempts.items()
            ),
            learners=tuple(
                self._learner(policy, words, now_ms)
                for policy in policies
                if self._learners.train(policy)
            ),
        )

    def _add_update(self, update: PolicyUpdate) -> None:
        self._outcomes.on_update(update)
        self._learners.on_update(update)
        if update.kind is UpdateKind.update:
            self._updates[update.policy].append(update)

    def _add_episode(self, episode: Episode) -> None:
        known = self._attempts.get(episode.rollout_id)
        if episode.will_retry or (known is not None and known.attempt > episode.attempt):
            return
        has_failed = episode.outcome is not EpisodeOutcome.finished
        self._attempts[episode.rollout_id] = _Attempt(
            group_id=episode.group_id,
            attempt=episode.attempt,
            is_only_live=episode.mode is Mode.live and not any(map(is_counted, episode.calls)),
            failure=str(episode.failure or episode.outcome) if has_failed else None,
            calls=len(episode.calls),
            endings=tuple(c.finish_reason for call in episode.calls for c in call.choices),
        )

    def _add_status(self, status: AgentStatus) -> None:
        if status.declaration is not None:
            self._declared[status.group_id] = status.declaration
        elif status.kind in _ENDS and status.rollout_id is not None and not status.will_retry:
            self._ended.add(status.rollout_id)

    def _rollouts(self) -> set[str]:
        declared = {r for one in self._declared.values() for r in one.rollout_ids}
        return declared | self._attempts.keys() | self._ended

    def _policies(self, rows: Iterable[ClosedRow]) -> tuple[str, ...]:
        answered = {one.row.policy for one in rows if one.row.policy}
        return tuple(sorted(answered | {d.policy for d in self._declared.values() if d.policy}))

    def _unscored(self) -> Iterator[tuple[str, str]]:
        """Rollouts without an expected reward, and why, once that is final."""
        for rollout_id, attempt in self._attempts.items():
            failed = [r for r in self._rewards[rollout_id].values() if r.value is None]
            if failed:
                yield rollout_id, failed[0].error or _NO_VALUE
            elif attempt.group_id in self._closings and self._lacks_reward(rollout_id):
                yield rollout_id, _NO_VALUE

    def _lacks_reward(self, rollout_id: str) -> bool:
        declared = self._declared.get(self._attempts[rollout_id].group_id)
        expected = declared.expected_rewards if declared else ()
        return not set(expected) <= self._rewards[rollout_id].keys()

    def _words(self, group_id: str) -> Counter[str]:
        """Count the actions of a group by outcome."""
        closing = self._closings.get(group_id) or Closing()
        rows = {action: one for one in closing.rows for action in one.actions}
        reasons = self._group_reasons(closing)
        counted: Counter[str] = Counter()
        for action in rows.keys() | self._entered[group_id]:
            entry = self._outcomes.of(action)
            if entry is not None and _stands(entry, closing.revision):
                counted[word_of(entry)] += 1
            elif action in self._dead:
                counted[DEAD] += 1
            elif action in rows:
                counted[self._predicted(rows[action], action, reasons)] += 1
        return counted

    def _group_reasons(self, closing: Closing) -> dict[str, FilterReason | None]:
        """By policy, why the group is not worth a step; None if it is."""
        reasons: dict[str, FilterReason | None] = {}
        for policy in {one.row.policy for one in closing.rows if one.row.policy}:
            rows = [one.row for one in closing.rows if one.row.policy == policy]
            reason = compare(rows, tuple(closing.rewards.values())).teaches_nothing
            is_lone = reason is FilterReason.no_baseline
            trains = is_lone and self._learners.config(policy).trains_groups_of_one
            reasons[policy] = None if trains else reason
        return reasons

    def _predicted(
        self, one: ClosedRow, action: str, reasons: Mapping[str, FilterReason | None]
    ) -> str:
        policy, mask = one.row.policy, one.actions[action].mask
        if policy is None:
            return NO_POLICY
        limit = self._learners.config(policy).max_row_tokens
        is_oversized = limit is not None and one.tokens > limit
        reason = mask or reasons[policy] or (FilterReason.oversized if is_oversized else None)
        if reason is not None:
            return str(reason)
        return WAITING if self._learners.train(policy) else NO_LEARNER

    def _learner(self, policy: str, words: Mapping[str, Counter[str]], now_ms: int) -> LearnerFacts:
        waiting = [
            closing.closed_at
            for name, closing in self._closings.items()
            if name in words
            and words[name][WAITING]
            and any(one.row.policy == policy for one in closing.rows)
        ]
        config, alarm = self._learners.config(policy), self._learners.alarm(policy)
        updates = self._updates[policy]
        measured = next((update for update in reversed(updates) if "k3" in update.metrics), None)
        metrics = measured.metrics if measured else {}
        return LearnerFacts(
            policy=policy,
            waiting_groups=len(waiting),
            waited_s=max(0, now_ms - min(waiting, default=now_ms)) / 1000,
            batch_groups=config.groups,
            max_wait_s=config.max_wait_s,
            waiting_share=_waiting_share(updates),
            version=measured.version if measured else None,
            k3=metrics.get("k3"),
            ess=metrics.get("ess"),
            alarm_k3=alarm.k3,
            alarm_ess=alarm.ess,
        )


def _stands(entry: LedgerEntry, revision: str | None) -> bool:
    """Whether an entry is final, or its closing is the one that stands."""
    is_final = entry.source == LEARNER or revision is None
    return is_final or entry.group_revision in (None, revision)


def _waiting_share(updates: Iterable[PolicyUpdate]) -> float | None:
    """The share of a learner's time in which it had nothing to read; None if it does not say."""
    phases = [
        (name, value)
        for update in updates
        for name, value in update.metrics.items()
        if name.startswith(_SECONDS)
    ]
    total = sum(value for _, value in phases)
    waited = sum(value for name, value in phases if name == f"{_SECONDS}wait")
    return waited / total if total else None
