"""Builds rows from an episode: linear token streams with their actions marked.

Calls are merged by exact token prefix.

A call whose prompt begins with all tokens of a row (prompt and answer, end-of-turn token included)
extends the row; the tokens between are context without loss. A call that shares a row up to one of
its actions branches off it; any other call opens a row with a typed break. Sibling choices are
branches. An action carries loss in the first row that has it, and is context in the others. Choices
without token ids or log-probabilities, those of retried calls
(`fulgurite.trajectories.retried_calls`) and of excluded ones (`fulgurite.episodes.exclusions`) are
in no row; they are returned with the reason, so that every successful action is accounted for. The
other rows are those of an episode without excluded calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from fulgurite.enums import CallOutcome, FilterReason, LogprobsMode, PrefixBreak
from fulgurite.episodes.episode_deltas import EpisodeCalls
from fulgurite.episodes.exclusions import find_excluded_calls
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.events import Action, Choice, Episode, EventStruct, LlmCall, Sampling, Trajectory
from fulgurite.ids import action_id
from fulgurite.tokens import IntArray, token_count, unpack_ids
from fulgurite.trajectories.prefix_breaks import classify
from fulgurite.trajectories.retried_calls import find_retried_calls

GREEDY = 1e-5
"""Temperatures up to this are greedy, as in vLLM."""


class Row(EventStruct, frozen=True, kw_only=True):
    """One linear token stream; rewards are filled in later."""

    policy: str | None
    """The policy of all its calls."""
    agent: str
    """The role of the call that opened it."""
    token_ids: bytes
    """The stream, packed."""
    actions: tuple[Action, ...]
    """In order of `start`."""
    broke_from: int | None = None
    """Index of the row that it broke off from, if any."""
    break_kind: PrefixBreak | None = None
    """Why it does not extend that row."""


class BuiltTrajectories(EventStruct, frozen=True, kw_only=True):
    """The rows of an episode."""

    rows: tuple[Row, ...]
    left_out: tuple[LostAction, ...]
    """Successful actions that cannot be in a row."""


class LostAction(EventStruct, frozen=True, kw_only=True):
    """An action that is in no row."""

    action: str
    policy: str | None
    reason: FilterReason


class Transition(EventStruct, frozen=True, kw_only=True):
    """A step of a Markov decision process over token streams."""

    state: IntArray
    """Tokens before the action."""
    action: IntArray
    """Tokens of the action."""
    reward: float
    """The action's reward."""
    next_state: IntArray
    """Tokens before the next action; after the last, the whole stream."""
    done: bool
    """Whether it is the last action."""


def successful_actions(call: LlmCall) -> tuple[str, ...]:
    """The actions of a call that the ledger counts: all choices of a successful call."""
    return (
        tuple(action_id(call.call_id, choice.index) for choice in call.choices)
        if call.outcome is CallOutcome.success
        else ()
    )


def build_trajectories(episode: Episode, rules: FailureRules | None = None) -> BuiltTrajectories:
    """Build all rows of an episode, whose calls may be deltas. Deterministic.

    Every successful action carries loss in one row, or is left out with a reason.
    """
    calls, rules = EpisodeCalls(episode.calls), rules or FailureRules()
    builder = _TrajectoryBuilder(calls, rules)
    left_out: list[LostAction] = []
    excluded = find_excluded_calls(episode.calls, rules.exclusions)
    retried = find_retried_calls(calls, excluded)
    for index, call in enumerate(episode.calls):
        if call.outcome is not CallOutcome.success:
            continue
        prompt = calls.prompts[index]
        for choice in call.choices:
            if call.call_id in excluded:
                reason = FilterReason.excluded
            elif call.call_id in retried:
                reason = FilterReason.superseded
            elif prompt is None or not _has_tokens(choice):
                reason = FilterReason.no_tokens
            else:
                builder.place(index, call, prompt, choice)
                continue
            left_out.append(
                LostAction(
                    action=action_id(call.call_id, choice.index), policy=call.policy, reason=reason
                )
            )
    return BuiltTrajectories(rows=builder.rows(), left_out=tuple(left_out))


def paths(rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """The episode's branches as chains of action ids, each from the first action to a leaf.

    A row that broke off for another reason than a branch continues the other row's chain.
    """
    chains: list[tuple[str, ...]] = []
    continued: set[int] = set()
    for row in rows:
        own = tuple(action_id(action.call_id, action.choice) for action in row.actions)
        if row.broke_from is not None and row.break_kind is not PrefixBreak.branch:
            continued.add(row.broke_from)
            own = chains[row.broke_from] + own
        chains.append(own)
    return tuple(chain for index, chain in enumerate(chains) if index not in continued)


def turns_of(chains: Iterable[Sequence[str]]) -> dict[str, int]:
    """The place of each action on its path, from 0."""
    turns: dict[str, int] = {}
    for chain in chains:
        for turn, action in enumerate(chain):
            turns.setdefault(action, turn)
    return turns


def iter_transitions(trajectory: Trajectory) -> Iterator[Transition]:
    """Yield (state, action, reward, next_state, done) for every action of a row."""
    token_ids = unpack_ids(trajectory.token_ids)
    starts = [action.start for action in trajectory.actions[1:]] + [len(token_ids)]
    for index, (action, next_start) in enumerate(zip(trajectory.actions, starts, strict=True)):
        yield Transition(
            state=token_ids[: action.start],
            action=token_ids[action.start : action.end],
            reward=action.reward,
            next_state=token_ids[:next_start],
            done=index == len(trajectory.actions) - 1,
        )


def sampling_trainable(sampling: Sampling, logprobs_mode: LogprobsMode) -> bool:
    """Whether the recorded log-probabilities are the policy's at the sampling temperature."""
    plain = (
        sampling.temperature > GREEDY
        and sampling.top_p >= 1
        and sampling.top_k <= 0
        and sampling.min_p <= 0
        and sampling.presence_penalty == 0
        and sampling.frequency_penalty == 0
        and sampling.repetition_penalty == 1
        and not sampling.logit_bias
        and not sampling.grammar
    )
    return plain and (logprobs_mode is LogprobsMode.processed or sampling.temperature == 1)


def _has_tokens(choice: Choice) -> bool:
    return bool(choice.token_ids) and len(choice.logprobs or b"") == len(choice.token_ids or b"")


@dataclass(slots=True)
class _GrowingRow:
    """A row that is being built."""

    policy: str | None
    agent: str
    token_ids: bytes
    actions: list[Action]
    broke_from: int | None
    break_kind: PrefixBreak | None

    def row(self) -> Row:
        return Row(
            policy=self.policy,
            agent=self.agent,
            token_ids=self.token_ids,
            actions=tuple(self.actions),
            broke_from=self.broke_from,
            break_kind=self.break_kind,
        )


class _TrajectoryBuilder:
    """Builds rows from calls in order."""

    def __init__(self, calls: EpisodeCalls, rules: FailureRules) -> None:
        self._calls = calls
        self._rules = rules
        self._rows: list[_GrowingRow] = []
        self._tips: dict[tuple[str, str | None], tuple[int, Choice]] = {}
        """The last placed call (index) and its choice, by role and policy."""

    def rows(self) -> tuple[Row, ...]:
        """The rows built so far."""
        return tuple(row.row() for row in self._rows)

    def place(self, index: int, call: LlmCall, prompt: bytes, choice: Choice) -> None:
        """Append an action to the longest row that its prompt begins with, or open a new row."""
        answer = choice.token_ids or b""
        action = _action(call, choice, token_count(prompt), token_count(answer), self._rules)
        longest: _GrowingRow | None = None
        for row in self._rows:
            longer = longest is None or len(row.token_ids) > len(longest.token_ids)
            if longer and row.policy == call.policy and prompt.startswith(row.token_ids):
                longest = row
        if longest is None:
            self._rows.append(self._opened(index, call, prompt, answer, action))
        else:
            longest.token_ids = prompt + answer
            longest.actions.append(action)
        self._tips[call.agent, call.policy] = (index, choice)

    def _opened(
        self, index: int, call: LlmCall, prompt: bytes, answer: bytes, action: Action
    ) -> _GrowingRow:
        """Open a row with an action, and with the context that it shares with the row it left."""
        rows = self._rows
        tip = self._tips.get((call.agent, call.policy))
        origin, shared = self._branching_point(call.policy, prompt)
        kind: PrefixBreak | None = PrefixBreak.branch
        if shared is None:
            shared = []
            kind = (
                None
                if not rows
                else PrefixBreak.branch
                if tip is None
                else self._break(*tip, index)
            )
            origin = len(rows) - 1 if tip is None else self._row_of(*tip)
        return _GrowingRow(
            call.policy,
            call.agent,
            prompt + answer,
            [*shared, action],
            origin if rows else None,
            kind,
        )

    def _break(self, tip: int, choice: Choice, index: int) -> PrefixBreak:
        calls = self._calls.expanded
        return classify(calls[tip], choice, calls[index])

    def _branching_point(
        self, policy: str | None, prompt: bytes
    ) -> tuple[int, list[Action] | None]:
        """Find the row that shares the longest prefix with a prompt, up to an action's boundary.

        Returns its index, and its leading actions as context; None without a shared prefix.
        """
        best: tuple[int, int, list[Action] | None] = (0, 0, None)
        for index, row in enumerate(self._rows):
            if row.policy != policy:
                continue
            for place, action in enumerate(row.actions):
                if action.start * 4 > best[0] and prompt.startswith(
                    row.token_ids[: action.start * 4]
                ):
                    best = (action.start * 4, index, row.actions[:place])
                if action.end * 4 > best[0] and prompt.startswith(row.token_ids[: action.end * 4]):
                    best = (action.end * 4, index, row.actions[: place + 1])
        _, index, shared = best
        return index, None if shared is None else [_context(action) for action in shared]

    def _row_of(self, tip: int, choice: Choice) -> int:
        """Index of the row in which an action carries loss."""
        call_id = self._calls.calls[tip].call_id
        return next(
            index
            for index, row in enumerate(self._rows)
            for action in row.actions
            if action.loss and (action.call_id, action.choice) == (call_id, choice.index)
        )


def _context(action: Action) -> Action:
    return msgspec.structs.replace(action, loss=False)


def _action(call: LlmCall, choice: Choice, start: int, length: int, rules: FailureRules) -> Action:
    mask = None
    if call.version_first is None:
        mask = FilterReason.unknown_version
    elif not sampling_trainable(call.sampling, call.logprobs_mode):
        mask = FilterReason.untrainable_sampling
    elif choice.finish_reason == "length" and rules.masks_cut_answers():
        mask = FilterReason.truncated
    return Action(
        call_id=call.call_id,
        choice=choice.index,
        start=start,
        end=start + length,
        logprobs=choice.logprobs,
        reward=0.0,
        credit=0.0,
        loss=True,
        mask=mask,
        version=call.version_first,
        agent=call.agent,
        finish_reason=choice.finish_reason,
        temperature=call.sampling.temperature,
    )
