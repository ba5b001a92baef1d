"""The books: every successful train-mode action of `llm.calls`, and of live traffic that is opted
in, is in exactly one term, each counted from its own source.

    actions = trained + filtered(reason) + stale + amended     training.ledger
            + dead-lettered                                    dead.letters
            + open: no episode yet                             llm.calls and episodes
            + open: group not closed                           episodes, trajectories and training.ledger
            + open: group to be re-closed                      episodes and trajectories
            + open: waits for the learner                      trajectories, training.ledger and the positions in policy.updates

`open` is enumerated, never a difference, so an event that was lost shows: its actions are in no
term, or in two. The remainder counts those, and actions that a term names and no call has. These
rules make the terms disjoint: an amended action was trained before and counts as amended; what a
learner says of an action stands, whatever revision of its group comes later; what a closing says
stands as long as its revision is the group's newest whole one; a dead-lettered action waits for
nothing, and counts under the ledger's term if it was redriven; what was trained offline is counted
beside them, for it was accounted for when it was recorded. docs/reference/ledger.md says which
deletions cannot be seen.

On a live log read the sources in the order of `Sources`' fields: downstream first. An action that
moves on meanwhile is then found where it was or where it went, never nowhere.
"""  # noqa: E501 - a table

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from fulgurite.calls.training_use import is_counted, is_opted_in
from fulgurite.enums import FilterReason, LedgerTerm, Mode
from fulgurite.errors import CodecError
from fulgurite.events import (
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    EventStruct,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.group_revisions import RevisionLog
from fulgurite.ids import action_id, episode_id
from fulgurite.learning.batching import LEARNER
from fulgurite.learning.offline import OFFLINE
from fulgurite.learning.relabel import learns_elsewhere
from fulgurite.learning.target_version import TargetVersion
from fulgurite.ledger.model import Account, Balance, Discrepancy, Entry, Sources
from fulgurite.ledger.untrained import UntrainedActions
from fulgurite.trajectories.building import successful_actions

DEAD = "dead_lettered"
OPEN_EPISODE = "open(no_episode)"
OPEN_GROUP = "open(group_not_closed)"
OPEN_AMENDMENT = "open(group_to_be_closed_anew)"
OPEN_LEARNER = "open(waits_for_learner)"

GRACE_MS = 60_000
"""How long after its group's deadline an action may be open before it counts as overdue."""
LIVE_MS = 24 * 3_600_000
"""How long after its last call a live rollout may be open: it has no deadline, but ends by silence
and then waits for its reward, both for as long as the processors' settings say.
"""


def balance(
    sources: Sources,
    decode: Callable[[bytes], Event],
    now_ms: int,
    until: Mapping[int, int] | None = None,
    grace_ms: int = GRACE_MS,
) -> Balance:
    """Count both sides of the ledger.

    `decode` reads the bytes of dead letters and may raise CodecError. `until`: exclusive end offset
    per partition of `llm.calls`; by default, everything that was read.
    """
    books = _Books(decode)
    books.read_updates(sources.updates)
    books.read_dead_letters(sources.dead_letters)
    books.read_ledger(sources.ledger)
    books.read_trajectories(sources.trajectories)
    books.read_episodes(sources.episodes)
    books.read_statuses(sources.statuses)
    books.read_calls(sources.calls, until)
    return books.close(now_ms - grace_ms)


class _Member(EventStruct, frozen=True, kw_only=True):
    """A rollout of a closed group, in one revision of it."""

    attempt: int
    episode_revision: str | None
    """None if it has no row."""
    reason: FilterReason | None
    """The reason of its tombstone."""


class _Call(EventStruct, frozen=True, kw_only=True):
    """The part of a call that is kept for each of its actions."""

    policy: str
    partition: int
    group_id: str
    episode_id: str
    rollout_id: str
    attempt: int


def _actions_of(event: Event) -> tuple[str, ...]:
    match event:
        case LlmCall():
            return successful_actions(event)
        case Episode():
            return tuple(action for call in event.calls for action in successful_actions(call))
        case Trajectory():
            return tuple(
                action_id(action.call_id, action.choice) for action in event.actions if action.loss
            )
        case _:
            return ()


def dead_actions(letter: DeadLetter, decode: Callable[[bytes], Event]) -> set[str]:
    """The actions that were lost with a dead letter: those that it names, and those in its bytes.

    `decode` may raise CodecError: such bytes name no actions.
    """
    found = set(letter.actions)
    with contextlib.suppress(CodecError):
        found.update(_actions_of(decode(letter.value or b"")))
    return found


class _Books:
    def __init__(self, decode: Callable[[bytes], Event]) -> None:
        self._decode = decode
        self.positions: dict[str, dict[int, int]] = {}
        self.claimed: set[str] = set()
        """Policies that a learner was ever started for."""
        self.elsewhere: set[str] = set()
        """Policies that are trained on a replayed topic; their entries are not counted."""
        self.offline: set[str] = set()
        """Actions that were trained offline; that is no term."""
        self.dead: set[str] = set()
        self.settled: dict[str, set[tuple[str, str]]] = {}
        """Learners' entries by action: (term, version)."""
        self.settled_under: dict[str, set[str | None]] = {}
        self.left: dict[str, set[tuple[str, str | None]]] = {}
        """Closings' entries by action: (term, group revision)."""
        self.owners: dict[str, tuple[str, int, str]] = {}
        self.last_left: dict[str, str | None] = {}
        self.written: dict[str, RevisionLog] = {}
        self.unread: dict[tuple[str, str], set[str]] = {}
        """Actions with loss that the learner has not read yet, by group and revision."""
        self.members: dict[tuple[str, str], dict[str, _Member]] = {}
        self.attempts: set[str] = set()
        self.revisions: dict[str, int] = {}
        """Episode revisions with their place in the log."""
        self.first_in: dict[str, str] = {}
        """The first episode revision that has the action."""
        self.superseding: set[str] = set()
        self.deadlines: dict[str, int] = {}
        self.calls: dict[str, _Call] = {}
        self.live: set[str] = set()
        """Rollouts of mode `live` with calls that are not trained."""
        self.untrained = UntrainedActions()
        """Actions that are no term."""
        self.beyond: set[str] = set()
        self.until: dict[int, int] = {}
        self.began: dict[int, int] = {}

    def read_updates(self, entries: Iterable[Entry]) -> None:
        """Read how far each policy's learner has read."""
        folds: dict[str, TargetVersion] = {}
        for entry in entries:
            if isinstance(entry.event, PolicyUpdate):
                if learns_elsewhere(entry.event):
                    self.elsewhere.add(entry.event.policy)
                folds.setdefault(entry.event.policy, TargetVersion(entry.event.policy)).apply(
                    entry.event
                )
        self.claimed.update(folds)
        for policy, fold in folds.items():
            last = fold.updates.get(fold.version())
            if last is not None:
                self.positions[policy] = {
                    position.partition: position.offset for position in last.positions
                }

    def read_dead_letters(self, entries: Iterable[Entry]) -> None:
        """Read actions that were lost."""
        for entry in entries:
            if isinstance(entry.event, DeadLetter):
                self.dead.update(dead_actions(entry.event, self._decode))

    def read_ledger(self, entries: Iterable[Entry]) -> None:
        """Read the outcomes of actions. A repeated entry adds nothing; a second version does."""
        for entry in entries:
            event = entry.event
            if not isinstance(event, LedgerEntry) or (
                event.source == LEARNER and event.policy in self.elsewhere
            ):
                continue
            if event.source == OFFLINE:
                self.offline.update(event.actions)
                continue
            name = (
                f"filtered({event.reason})"
                if event.term is LedgerTerm.filtered
                else str(event.term)
            )
            detail = str(event.version) if event.term is LedgerTerm.trained else ""
            learner = event.source == LEARNER
            if not learner or event.group_id not in self.last_left:
                self.last_left[event.group_id] = event.group_revision
            for action in event.actions:
                self.owners[action] = (event.policy, entry.partition, event.group_id)
                if learner:
                    self.settled.setdefault(action, set()).add((name, detail))
                    # Under the revision of an amendment, the closing may have filtered an action
                    # that was trained before.
                    self.settled_under.setdefault(action, set()).update(
                        [event.group_revision] if event.term is not LedgerTerm.amended else []
                    )
                else:
                    self.left.setdefault(action, set()).add((name, event.group_revision))

    def read_trajectories(self, entries: Iterable[Entry]) -> None:
        """Read closed groups, their newest revisions, and actions that wait for the learner."""
        for entry in entries:
            event = entry.event
            if not isinstance(event, Tombstone | Trajectory | GroupClosed):
                continue
            self.written.setdefault(event.group_id, RevisionLog()).add(event)
            if isinstance(event, GroupClosed):
                continue
            place = (event.group_id, event.group_revision)
            row = isinstance(event, Trajectory)
            self.members.setdefault(place, {})[event.rollout_id] = _Member(
                attempt=event.attempt,
                episode_revision=event.episode_revision if row else None,
                reason=None if row else event.reason,
            )
            if (
                row
                and event.policy is not None
                and entry.offset >= self.positions.get(event.policy, {}).get(entry.partition, 0)
            ):
                self.unread.setdefault(place, set()).update(
                    action_id(a.call_id, a.choice) for a in event.actions if a.loss
                )

    def read_episodes(self, entries: Iterable[Entry]) -> None:
        """Read ended attempts and their actions."""
        for entry in entries:
            event = entry.event
            if isinstance(event, Episode):
                self.attempts.add(event.episode_id)
                self.revisions.setdefault(event.revision, len(self.revisions))
                if event.supersedes is not None:
                    self.superseding.add(event.revision)
                for call in event.calls:
                    for action in successful_actions(call):
                        self.first_in.setdefault(action, event.revision)
                if event.declaration is not None:
                    self.deadlines[event.group_id] = event.declaration.deadline

    def read_statuses(self, entries: Iterable[Entry]) -> None:
        """Read the deadlines of groups."""
        for entry in entries:
            if isinstance(entry.event, AgentStatus) and entry.event.declaration is not None:
                self.deadlines[entry.event.group_id] = entry.event.declaration.deadline

    def read_calls(self, entries: Iterable[Entry], until: Mapping[int, int] | None) -> None:
        """Read the calls: the left side of the balance."""
        for entry in entries:
            self.began[entry.partition] = min(
                self.began.get(entry.partition, entry.offset), entry.offset
            )
            beyond = until is not None and entry.offset >= until.get(entry.partition, 0)
            if not beyond:
                self.until[entry.partition] = max(
                    self.until.get(entry.partition, 0), entry.offset + 1
                )
            call = entry.event
            if not isinstance(call, LlmCall):
                continue
            if not is_counted(call) and call.mode is Mode.live:
                self.live.add(call.rollout_id)
            if is_opted_in(call):
                # Nobody declared it: what ends it is its processors' settings.
                self.deadlines[call.group_id] = max(
                    self.deadlines.get(call.group_id, 0), call.finished_at + LIVE_MS
                )
            if self.untrained.add(call) or call.policy is None:
                continue
            about = _Call(
                policy=call.policy,
                partition=entry.partition,
                group_id=call.group_id,
                episode_id=episode_id(call.rollout_id, call.attempt),
                rollout_id=call.rollout_id,
                attempt=call.attempt,
            )
            for action in successful_actions(call):
                if beyond:
                    self.beyond.add(action)
                else:
                    self.calls[action] = about

    def close(self, overdue_before: int) -> Balance:
        """Find the terms of every action."""
        found = {action: self._terms(action, about) for action, about in self.calls.items()}
        strangers = {
            a: owner
            for a, owner in self.owners.items()
            if a not in self.calls and a not in self.beyond
        }
        expired = {
            a for a, (_, partition, _) in strangers.items() if self.began.get(partition, 1) > 0
        }
        problems = [
            Discrepancy(
                action=a,
                policy=self.calls[a].policy,
                partition=self.calls[a].partition,
                terms=terms,
                has_call=True,
            )
            for a, terms in found.items()
            if len(terms) != 1
        ]
        problems += [
            Discrepancy(
                action=a,
                policy=policy,
                partition=partition,
                terms=self._settled_terms(a, group),
                has_call=False,
            )
            for a, (policy, partition, group) in strangers.items()
            if a not in expired
        ]
        upstream = {OPEN_EPISODE, OPEN_GROUP, OPEN_AMENDMENT}
        overdue = [
            action
            for action, terms in found.items()
            if upstream & set(terms)
            and self.deadlines.get(self.calls[action].group_id, 0) < overdue_before
        ]
        return Balance(
            accounts=self._accounts(found, problems),
            discrepancies=tuple(sorted(problems, key=lambda problem: problem.action)),
            overdue=tuple(sorted(overdue)),
            expired=len(expired),
            live_rollouts=len(self.live),
            untrained=self.untrained.counts(),
            without_learner=tuple(
                sorted(
                    {self.calls[a].policy for a, terms in found.items() if OPEN_LEARNER in terms}
                    - self.claimed
                )
            ),
            offline_actions=len(self.offline),
        )

    def _accounts(
        self, found: Mapping[str, tuple[str, ...]], problems: Iterable[Discrepancy]
    ) -> tuple[Account, ...]:
        actions: Counter[tuple[str, int]] = Counter()
        terms: dict[tuple[str, int], Counter[str]] = {}
        for action, names in found.items():
            key = (self.calls[action].policy, self.calls[action].partition)
            actions[key] += 1
            terms.setdefault(key, Counter()).update(names)
        remainders: Counter[tuple[str, int]] = Counter()
        for problem in problems:
            remainders[problem.policy, problem.partition] += max(
                1, len(problem.terms) - problem.has_call
            )
        return tuple(
            Account(
                policy=policy,
                partition=partition,
                until=self.until.get(partition, 0),
                actions=actions[policy, partition],
                terms=dict(sorted(terms.get((policy, partition), Counter[str]()).items())),
                remainder=remainders[policy, partition],
            )
            for policy, partition in sorted(actions.keys() | remainders.keys())
        )

    def _terms(self, action: str, about: _Call) -> tuple[str, ...]:
        settled = self._settled_terms(action, about.group_id)
        if action in self.dead:
            return settled or (DEAD,)
        revision = self._current(about.group_id)
        waits = (
            action not in self.settled
            and not settled
            and action in self.unread.get((about.group_id, revision or ""), ())
        )
        opened = [OPEN_LEARNER] if waits else []
        if about.episode_id not in self.attempts:
            opened.insert(0, OPEN_EPISODE)
        elif action in self.first_in and not self._is_closed(about.group_id):
            opened.insert(0, OPEN_GROUP)
        elif not settled and not waits and self._came_late(action, about, revision):
            opened.append(OPEN_AMENDMENT)
        return (*settled, *opened)

    def _settled_terms(self, action: str, group_id: str) -> tuple[str, ...]:
        pairs = self.settled.get(action, set())
        names = sorted(name for name, _ in pairs)
        if LedgerTerm.amended in names and LedgerTerm.trained in names:
            names.remove(LedgerTerm.trained)
        # A learner's entry is final; under the same revision a closing may not have another.
        standing = self.settled_under.get(action) or {self._current(group_id)}
        names += sorted(
            name
            for name, revision in self.left.get(action, set())
            if revision is None or revision in standing
        )
        return tuple(sorted(names))

    def _current(self, group_id: str) -> str | None:
        """The revision of a group that counts. Retention may have removed its rows; then the last
        one that the ledger names.
        """
        return (
            self.written[group_id].current
            if group_id in self.written
            else self.last_left.get(group_id)
        )

    def _is_closed(self, group_id: str) -> bool:
        return group_id in self.written or group_id in self.last_left

    def _came_late(self, action: str, about: _Call, revision: str | None) -> bool:
        """Whether the action's episode came after the closing that counts."""
        member = self.members.get((about.group_id, revision or ""), {}).get(about.rollout_id)
        first_in = self.first_in.get(action)
        if member is None or first_in is None:
            return False
        if member.reason is FilterReason.missing or about.attempt > member.attempt:
            return True
        if about.attempt < member.attempt:
            return False
        if member.episode_revision is None:
            return first_in in self.superseding
        return self.revisions[first_in] > self.revisions.get(
            member.episode_revision, len(self.revisions)
        )
