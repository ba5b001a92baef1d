"""Keeps what `fulgurite watch` shows of a run: the state of its rollouts, its curve, its newest
samples. No I/O.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from enum import StrEnum

import msgspec

from fulgurite.enums import EpisodeOutcome, FilterReason, LedgerTerm, Mode, StatusKind, UpdateKind
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Declaration,
    Episode,
    Event,
    LedgerEntry,
    PolicyUpdate,
)
from fulgurite.ids import MalformedId, parse_completion
from fulgurite.learning.offline import OFFLINE
from services.cli.event_lines import last_answer
from services.runner.scoreboard import CurvePoint, Scoreboard

RECENT = 48
"""How many rollouts of a mode its shown reward averages, as in the line of `fulgurite run`."""

_SAMPLES = 5
_EARLY = 10_000
"""Events that are kept until the declaration of their group is read."""

_WITHOUT_SIGNAL = frozenset({FilterReason.no_signal, FilterReason.no_baseline})
_ENDS = frozenset({StatusKind.finished, StatusKind.failed, StatusKind.timed_out})


class RolloutState(StrEnum):
    """What a rollout is doing, or what became of it."""

    rolling_out = "rolling out"
    """Declared or running."""
    waiting = "waiting"
    """Ended; it waits for its rewards, its group or the learner."""
    trained = "trained"
    """At least one of its actions was trained."""
    stale = "stale"
    """Its actions were too old."""
    without_signal = "without signal"
    """The rewards of its group were equal."""
    errored = "errored"
    """It failed, or a reward function did."""
    left_out = "left out"
    """It is not trained for another reason, which `fulgurite ledger` names."""


_MODES = (Mode.train, Mode.val, Mode.live)
"""In the order in which they are shown."""

_FIRST = (
    RolloutState.trained,
    RolloutState.errored,
    RolloutState.stale,
    RolloutState.without_signal,
    RolloutState.left_out,
)
"""Which state counts if the actions of a rollout have different ones."""


class Sample(msgspec.Struct, frozen=True):
    """A rollout that has its reward."""

    rollout_id: str
    task: str
    answer: str
    """Text of its last call."""
    reward: float | None
    """None while a reward is missing, or if there is none."""
    version: str | None


class ModeScores(msgspec.Struct, frozen=True):
    """The rewards of a run's rollouts of one mode: training and held-out tasks are never mixed."""

    reward: float | None
    """Mean of the newest rollouts with a reward."""
    curve: list[CurvePoint]


class WatchedRun(msgspec.Struct, frozen=True):
    """What is shown of a run."""

    run_id: str | None
    rollouts: int
    states: dict[str, int]
    """Rollouts by state; every state is there."""
    version: str | None
    """The policy's newest version."""
    scores: dict[str, ModeScores]
    """By mode: `train`, `val`, `live`, those of which groups were declared."""
    samples: list[Sample]


class _Rollout:
    """What is kept of a rollout besides its score."""

    def __init__(self) -> None:
        self.has_ended = False
        self.failed_rewards: set[str] = set()
        self.states: set[RolloutState] = set()
        self.sample: tuple[str, str] | None = None


class _Run:
    """One run, or the groups that name none."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.boards: dict[Mode, Scoreboard] = {}
        self.rollouts: dict[str, _Rollout] = {}
        self.newest: deque[str] = deque(maxlen=_SAMPLES)
        """Rollouts by the end of their episodes."""

    def declare(self, mode: Mode, group_id: str, declaration: Declaration) -> None:
        """Add a group."""
        board = self.boards.setdefault(
            mode,
            Scoreboard(declaration.expected_rewards, declaration.reward_weights, self.policy),
        )
        for rollout_id in declaration.rollout_ids:
            board.expect(group_id, rollout_id)
            self.rollouts[rollout_id] = _Rollout()

    def scores(self) -> dict[str, ModeScores]:
        """Rewards by mode."""
        return {
            mode.value: ModeScores(board.recent(RECENT), board.curve())
            for mode in _MODES
            if (board := self.boards.get(mode)) is not None
        }


class WatchState:
    """Adds up events, whatever their order, run by run. Groups without a declaration are left out.

    A run is known by the id in its declarations; groups without such an id count as one run.
    """

    def __init__(self) -> None:
        self._runs: dict[str | None, _Run] = {}
        self._groups: dict[str, str | None] = {}
        """The run of each declared group."""
        self._early: dict[str, list[Event]] = defaultdict(list)
        self._early_order: deque[str] = deque()
        self._versions: dict[str, str] = {}

    @property
    def newest_run(self) -> str | None:
        """Id of the run that was declared last; None without one."""
        return next((name for name in reversed(self._runs) if name is not None), None)

    def __contains__(self, run_id: str) -> bool:
        """Whether a group of this run was declared."""
        return run_id in self._runs

    def add(self, event: Event | None) -> None:
        """Add an event of any topic."""
        if isinstance(event, PolicyUpdate):
            if event.kind is UpdateKind.update and event.version is not None:
                self._versions[event.policy] = event.version
            return
        if not isinstance(event, AgentStatus | Episode | AgentReward | LedgerEntry):
            return
        if (
            isinstance(event, AgentStatus | Episode)
            and (declaration := event.declaration) is not None
            and event.group_id not in self._groups
        ):
            self._declare(event.mode, event.group_id, declaration)
        if event.group_id in self._groups:
            self._apply(self._runs[self._groups[event.group_id]], event)
        elif not isinstance(event, Episode):
            # An episode brings its declaration.
            self._keep_early(event.group_id, event)

    def shown(self, run_id: str | None) -> WatchedRun:
        """What to show of a run; of None, the groups that name no run."""
        run = self._runs.get(run_id)
        if run is None:
            states = dict.fromkeys(map(str, RolloutState), 0)
            return WatchedRun(run_id, 0, states, None, {}, [])
        counted = Counter(str(_state(one)) for one in run.rollouts.values())
        scores = {
            score.rollout_id: score
            for board in run.boards.values()
            for group in board.groups()
            for score in board.scores(group)
        }
        samples: list[Sample] = []
        for rollout_id in run.newest:
            task, answer = run.rollouts[rollout_id].sample or ("", "")
            score = scores[rollout_id]
            samples.append(Sample(rollout_id, task, answer, score.reward, score.version))
        return WatchedRun(
            run_id=run_id,
            rollouts=len(run.rollouts),
            states={str(state): counted[str(state)] for state in RolloutState},
            version=self._versions.get(run.policy),
            scores=run.scores(),
            samples=samples,
        )

    def _declare(self, mode: Mode, group_id: str, declaration: Declaration) -> None:
        run_id = declaration.run_id
        run = self._runs.get(run_id) or _Run(declaration.policy or "")
        # The run that was declared last is the last of the dictionary.
        self._runs.pop(run_id, None)
        self._runs[run_id] = run
        self._groups[group_id] = run_id
        run.declare(mode, group_id, declaration)
        for event in self._early.pop(group_id, ()):
            self._apply(run, event)

    def _keep_early(self, group_id: str, event: Event) -> None:
        self._early[group_id].append(event)
        self._early_order.append(group_id)
        if len(self._early_order) > _EARLY:
            self._early.pop(self._early_order.popleft(), None)

    def _apply(self, run: _Run, event: Event) -> None:
        match event:
            case AgentStatus():
                rollout = run.rollouts.get(event.rollout_id or "")
                if rollout is not None and event.kind in _ENDS and not event.will_retry:
                    rollout.has_ended = True
            case Episode():
                self._apply_episode(run, event)
            case AgentReward():
                # Each keeps those of its own rollouts.
                for board in run.boards.values():
                    board.on_reward(event)
                rollout = run.rollouts.get(event.rollout_id)
                if rollout is not None and event.value is None and event.error is not None:
                    rollout.failed_rewards.add(event.name)
                elif rollout is not None:
                    rollout.failed_rewards.discard(event.name)
            case LedgerEntry():
                if event.source != OFFLINE:
                    for name in {_rollout_of(action) for action in event.actions}:
                        if name in run.rollouts:
                            run.rollouts[name].states.add(_state_of(event))
            case _:
                pass

    def _apply_episode(self, run: _Run, episode: Episode) -> None:
        for board in run.boards.values():
            board.on_episode(episode)
        rollout = run.rollouts.get(episode.rollout_id)
        if rollout is None or episode.will_retry:
            return
        rollout.has_ended = True
        if episode.outcome is not EpisodeOutcome.finished:
            rollout.states.add(RolloutState.errored)
        task = episode.declaration.task if episode.declaration is not None else ""
        answer = last_answer(episode.calls[-1]) if episode.calls else ""
        if rollout.sample is None:
            run.newest.append(episode.rollout_id)
        rollout.sample = (task, answer)


def _state(rollout: _Rollout) -> RolloutState:
    states = set(rollout.states)
    if rollout.failed_rewards:
        states.add(RolloutState.errored)
    for state in _FIRST:
        if state in states:
            return state
    return RolloutState.waiting if rollout.has_ended else RolloutState.rolling_out


def _state_of(entry: LedgerEntry) -> RolloutState:
    if entry.term in (LedgerTerm.trained, LedgerTerm.amended):
        return RolloutState.trained
    if entry.term is LedgerTerm.stale:
        return RolloutState.stale
    has_no_signal = entry.reason in _WITHOUT_SIGNAL
    return RolloutState.without_signal if has_no_signal else RolloutState.left_out


def _rollout_of(action: str) -> str:
    try:
        return parse_completion(action.partition("#")[0]).rollout.rollout_id
    except MalformedId:
        return ""
