"""Closes a group: makes its trajectories, tombstones and ledger entries under one revision.

Deterministic: the same episodes and rewards, in any order, give the same events with the same ids
(`fulgurite.groups.group_revisions`). Every member has rows or a tombstone with a reason. Every
successful train-mode action carries loss in exactly one row, or is `filtered` with a reason in a
ledger entry. Actions of an excluded call (`fulgurite.episodes.exclusions`) are
`filtered(excluded)`, whatever became of its episode; the rest is closed as if the call had not been
made. Actions of a frozen policy are in a row and `filtered(frozen)`; the learner accounts for
others with a `mask`. A group with live traffic that is opted in
(`fulgurite.calls.training_use`) is closed like one of mode `train`. Ledger entries are written
first, so a group whose rows are complete in the log has all its entries too. When an episode or a
reward comes late, the whole group is closed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from fulgurite.calls.training_use import find_uncounted_calls, is_opted_in, is_over_quota
from fulgurite.enums import FilterReason, LedgerTerm, Mode
from fulgurite.episodes.exclusions import find_excluded_calls
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.events import (
    Action,
    AgentReward,
    Declaration,
    Episode,
    EventStruct,
    LedgerEntry,
    Tombstone,
    Trajectory,
)
from fulgurite.failures import FailureAction
from fulgurite.groups.credit import credit_rule
from fulgurite.groups.credit.steps import steps_of
from fulgurite.groups.credit.types import Path, Scored
from fulgurite.groups.group_revisions import SOURCE, UNASSIGNED, Output, with_revision
from fulgurite.groups.rewards import EpisodeRewards, combine, counted, is_complete
from fulgurite.ids import action_id
from fulgurite.trajectories.building import (
    BuiltTrajectories,
    LostAction,
    build_trajectories,
    paths,
    successful_actions,
    turns_of,
)

DEFAULT_CREDIT = "identical"
"""The credit rule of undeclared traffic."""


class Member(EventStruct, frozen=True, kw_only=True):
    """One rollout of a group, with its known attempts."""

    rollout_id: str
    final: Episode | None
    """Its last attempt, unless another one follows."""
    earlier: tuple[Episode, ...]
    """Attempts that another one follows."""


def members(declaration: Declaration | None, episodes: Iterable[Episode]) -> tuple[Member, ...]:
    """The rollouts of a group: the declared ones in order, else those that have episodes.

    `episodes`: one revision per attempt.
    """
    attempts: dict[str, list[Episode]] = {}
    for episode in sorted(episodes, key=lambda episode: (episode.rollout_id, episode.attempt)):
        attempts.setdefault(episode.rollout_id, []).append(episode)
    most = declaration.max_attempts if declaration else 1
    found: list[Member] = []
    for rollout_id in declaration.rollout_ids if declaration else sorted(attempts):
        tried = attempts.get(rollout_id, [])
        ended = bool(tried) and (not tried[-1].will_retry or tried[-1].attempt + 1 >= most)
        found.append(
            Member(
                rollout_id=rollout_id,
                final=tried[-1] if ended else None,
                earlier=tuple(tried[:-1] if ended else tried),
            )
        )
    return tuple(found)


def awaits_episodes(declaration: Declaration | None, episodes: Iterable[Episode]) -> bool:
    """Whether any rollout's final attempt is missing."""
    return any(member.final is None for member in members(declaration, episodes))


def awaits_rewards(
    declaration: Declaration | None,
    episodes: Iterable[Episode],
    rewards: Sequence[AgentReward],
    rules: FailureRules | None = None,
) -> bool:
    """Whether any final attempt lacks a reward that it waits for.

    An attempt that is dropped or penalised, or has no successful call of its task, waits for none.
    """
    return any(
        _wants_reward(member.final, rules or FailureRules())
        and not is_complete(declaration, counted(member.final, rewards))
        for member in members(declaration, episodes)
        if member.final is not None
    )


def close_group(
    group_id: str,
    declaration: Declaration | None,
    episodes: Iterable[Episode],
    rewards: Sequence[AgentReward],
    rules: FailureRules | None = None,
) -> tuple[Output, ...]:
    """Make everything to write for a closed group: ledger entries, then rows and tombstones.

    Rows are ordered by rollout and row index. A group of mode `val` gives nothing.

    Raises UnknownRule.
    """
    episodes = sorted(episodes, key=lambda episode: (episode.rollout_id, episode.attempt))
    if not episodes or any(episode.mode is Mode.val for episode in episodes):
        return ()
    closing = _Closing(group_id, declaration, episodes, rewards, rules or FailureRules())
    outputs = [output for member in closing.members for output in closing.outputs_of(member)]
    return with_revision((*closing.entries(), *outputs))


def _wants_reward(episode: Episode, rules: FailureRules) -> bool:
    if rules.action_for(episode.failure) not in (FailureAction.train, FailureAction.mask):
        return False
    excluded = find_excluded_calls(episode.calls, rules.exclusions)
    return _reason_without_actions(episode, excluded) is None


def _reason_without_actions(episode: Episode, excluded: Collection[str]) -> FilterReason | None:
    """Why an episode has no action to train: no successful call at all, only excluded ones, or
    beyond a quota; None if it has one.
    """
    acted = [call.call_id for call in episode.calls if successful_actions(call)]
    if not acted:
        return FilterReason.missing
    if all(call in excluded for call in acted):
        return FilterReason.excluded
    return FilterReason.quota if is_over_quota(episode.calls) else None


class _Closing:
    """Makes one closing."""

    def __init__(
        self,
        group_id: str,
        declaration: Declaration | None,
        episodes: Sequence[Episode],
        rewards: Sequence[AgentReward],
        rules: FailureRules,
    ) -> None:
        self.group_id = group_id
        self.declaration = declaration
        self.rules = rules
        self.rule = credit_rule(declaration.credit_rule if declaration else DEFAULT_CREDIT)
        self.is_opted_in = any(is_opted_in(call) for e in episodes for call in e.calls)
        self.mode = Mode.train if self.is_opted_in else episodes[0].mode
        self.policy = (
            declaration.policy
            if declaration
            else next((c.policy for e in episodes for c in e.calls if c.policy), None)
        )
        self.alias = (
            declaration.alias
            if declaration
            else next((c.alias for e in episodes for c in e.calls if c.policy), None)
        )
        self.members = members(declaration, episodes)
        self.excluded = {
            episode.episode_id: find_excluded_calls(episode.calls, rules.exclusions)
            for episode in episodes
        }
        self.uncounted = {
            call for episode in episodes for call in find_uncounted_calls(episode.calls)
        }
        finals = [member.final for member in self.members if member.final is not None]
        used = {episode.rollout_id: counted(episode, rewards) for episode in finals}
        self.combined = {
            episode.rollout_id: self._combine(episode, used[episode.rollout_id])
            for episode in finals
        }
        self.scored = sum(
            isinstance(combined, EpisodeRewards) for combined in self.combined.values()
        )
        self.started_at = min(episode.started_at for episode in episodes)
        # Of the episodes only: the same rewards must give the same bytes, whenever they came.
        self.event_time = max(episode.event_time for episode in episodes)
        self.lost: list[LostAction] = []
        self.built = {
            episode.rollout_id: build_trajectories(episode, self.rules)
            for episode in finals
            if isinstance(self.combined[episode.rollout_id], EpisodeRewards)
        }
        self.chains = {rollout_id: paths(built.rows) for rollout_id, built in self.built.items()}
        self.turns = {rollout_id: turns_of(chains) for rollout_id, chains in self.chains.items()}
        self.credits = self._credits()

    def outputs_of(self, member: Member) -> tuple[Trajectory | Tombstone, ...]:
        """The rows or the tombstone of one member; notes its actions that are in no row."""
        for episode in member.earlier:
            self._lose(episode, FilterReason.superseded)
        if member.final is None:
            return (self._tombstone(member.rollout_id, None, FilterReason.missing, None),)
        combined = self.combined[member.rollout_id]
        if not isinstance(combined, EpisodeRewards):
            self._lose(member.final, combined)
            return (self._tombstone(member.rollout_id, member.final, combined, None),)
        built = self.built[member.rollout_id]
        self.lost.extend(built.left_out)
        self.lost.extend(self._frozen(built))
        if not built.rows:
            return (
                self._tombstone(
                    member.rollout_id, member.final, FilterReason.no_tokens, combined.total
                ),
            )
        return self._rows(member.final, built, combined)

    def entries(self) -> tuple[LedgerEntry, ...]:
        """The ledger entries of actions that no learner accounts for."""
        if self.mode is not Mode.train:
            return ()
        lost = (one for one in self.lost if one.action.partition("#")[0] not in self.uncounted)
        return _entries(self.group_id, self.event_time, lost)

    def _combine(
        self, episode: Episode, rewards: Sequence[AgentReward]
    ) -> EpisodeRewards | FilterReason:
        """The combined rewards of an episode, or why it gets a tombstone."""
        action = self.rules.action_for(episode.failure)
        reason = _reason_without_actions(episode, self.excluded[episode.episode_id])
        if reason is not None:
            return reason
        if action in (FailureAction.drop, FailureAction.retry):
            return FilterReason.failure_dropped
        if action is FailureAction.penalise:
            return EpisodeRewards(
                total=self.rules.penalty, outcome=self.rules.penalty, actions={}, named={}
            )
        return combine(self.declaration, rewards)

    def _rows(
        self, episode: Episode, built: BuiltTrajectories, rewards: EpisodeRewards
    ) -> tuple[Trajectory, ...]:
        credit_of, turn_of = self.credits[episode.rollout_id], self.turns[episode.rollout_id]
        chain = max(self.chains[episode.rollout_id], key=len)
        masked = FilterReason.failure_masked if self.rules.masks(episode.failure) else None

        def paid(action: Action, policy: str | None) -> Action:
            name = action_id(action.call_id, action.choice)
            reward = rewards.actions.get(name, 0.0) + (
                rewards.outcome if name == chain[-1] else 0.0
            )
            is_frozen = policy in self.rules.frozen
            return replace(
                action,
                reward=reward,
                credit=credit_of[name],
                loss=action.loss and not is_frozen,
                mask=FilterReason.frozen if is_frozen else action.mask or masked,
                turn=turn_of[name],
            )

        return tuple(
            Trajectory(
                event_id=UNASSIGNED,
                event_time=self.event_time,
                trajectory_id=UNASSIGNED,
                group_id=self.group_id,
                rollout_id=episode.rollout_id,
                attempt=episode.attempt,
                mode=self.mode if self.is_opted_in else episode.mode,
                policy=row.policy,
                episode_revision=episode.revision,
                group_revision=UNASSIGNED,
                row_index=index,
                rows_in_episode=len(built.rows),
                group_size=len(self.members),
                group_members_scored=self.scored,
                group_started_at=self.started_at,
                token_ids=row.token_ids,
                actions=tuple(paid(action, row.policy) for action in row.actions),
                episode_reward=rewards.total,
                rewards=dict(sorted(rewards.named.items())),
                credit_rule=self.rule.name,
                break_kind=row.break_kind,
                failure=episode.failure,
                subject=episode.subject,
                payload_key_id=episode.payload_key_id,
                alias=self.alias,
            )
            for index, row in enumerate(built.rows)
        )

    def _credits(self) -> Mapping[str, Mapping[str, float]]:
        """Compute credit by rollout and action."""
        weights = self.declaration.reward_weights if self.declaration else {}
        scored = {
            rollout_id: self._scored(rollout_id, rewards, weights)
            for rollout_id, rewards in self._paid()
        }
        return dict(zip(scored, self.rule(list(scored.values())), strict=True))

    def _scored(
        self, rollout_id: str, rewards: EpisodeRewards, weights: Mapping[str, float]
    ) -> Scored:
        """Make the view of an episode that credit rules get."""
        steps = steps_of(self.built[rollout_id].rows, anchored=self.rule.rule.anchored)
        for action in rewards.actions.keys() & steps.keys():
            steps[action] = replace(steps[action], reward=rewards.actions[action])
        chains = [tuple(steps[action] for action in path) for path in self.chains[rollout_id]]
        return Scored(
            total=rewards.total,
            paths=tuple(
                Path(steps=chain, outcome=rewards.outcome, total=rewards.total) for chain in chains
            ),
            by_name={name: weights.get(name, 1.0) * value for name, value in rewards.named.items()},
        )

    def _paid(self) -> Iterator[tuple[str, EpisodeRewards]]:
        for rollout_id, combined in self.combined.items():
            if isinstance(combined, EpisodeRewards):
                yield rollout_id, combined

    def _frozen(self, built: BuiltTrajectories) -> Iterator[LostAction]:
        """The actions of frozen policies: no learner accounts for them."""
        return (
            LostAction(
                action=action_id(action.call_id, action.choice),
                policy=row.policy,
                reason=FilterReason.frozen,
            )
            for row in built.rows
            if row.policy in self.rules.frozen
            for action in row.actions
            if action.loss
        )

    def _lose(self, episode: Episode, reason: FilterReason) -> None:
        excluded = self.excluded[episode.episode_id]
        self.lost.extend(
            LostAction(
                action=action,
                policy=call.policy,
                reason=FilterReason.excluded if call.call_id in excluded else reason,
            )
            for call in episode.calls
            for action in successful_actions(call)
        )

    def _tombstone(
        self, rollout_id: str, episode: Episode | None, reason: FilterReason, reward: float | None
    ) -> Tombstone:
        return Tombstone(
            event_id=UNASSIGNED,
            event_time=self.event_time,
            group_id=self.group_id,
            rollout_id=rollout_id,
            attempt=episode.attempt if episode else 0,
            mode=self.mode,
            policy=self.policy,
            group_revision=UNASSIGNED,
            group_size=len(self.members),
            group_members_scored=self.scored,
            group_started_at=self.started_at,
            reason=reason,
            episode_reward=reward,
            failure=episode.failure if episode else None,
            alias=self.alias,
        )


def _entries(group_id: str, event_time: int, lost: Iterable[LostAction]) -> tuple[LedgerEntry, ...]:
    """Make one entry per policy and reason. Actions of untrained upstreams are in no ledger."""
    by_reason: dict[tuple[str, FilterReason], set[str]] = {}
    for action in lost:
        if action.policy is not None:
            by_reason.setdefault((action.policy, action.reason), set()).add(action.action)
    return tuple(
        LedgerEntry(
            event_id=UNASSIGNED,
            event_time=event_time,
            policy=policy,
            group_id=group_id,
            group_revision=UNASSIGNED,
            term=LedgerTerm.filtered,
            reason=reason,
            actions=tuple(sorted(actions)),
            source=SOURCE,
        )
        for (policy, reason), actions in sorted(by_reason.items())
    )
