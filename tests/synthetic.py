"""Made-up groups of rollouts as the gateway would log them: fixed ids, fixed times, everything a
function of its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from fulgurite.enums import CallOutcome, Identity, LogprobsMode, Mode, StatusKind, TrainingUse
from fulgurite.events import AgentReward, AgentStatus, Choice, Declaration, LlmCall, Sampling
from fulgurite.failures import FailureKind
from fulgurite.ids import completion_of, derive_id, mint_group, rollout_of
from fulgurite.tokens import pack_ids, pack_logprobs

SECRET = b"synthetic"
SAMPLING = Sampling(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
    logit_bias=False,
    grammar=False,
)


def group_id(number: int) -> str:
    """The id of group `number`."""
    return mint_group(1_000 + number, number.to_bytes(10, "big"))


def rollout_id(group: int, index: int) -> str:
    """The id of a group's rollout."""
    return rollout_of(group_id(group), index, SECRET)


def make_call(
    group: int = 0,
    index: int = 0,
    turn: int = 0,
    *,
    attempt: int = 0,
    at: int = 1_000,
    prompt: Sequence[int] | None = (1, 2, 3),
    answers: Sequence[Sequence[int] | None] = ((7, 9),),
    messages: Sequence[dict[str, object]] = (),
    replies: Sequence[dict[str, object]] | None = None,
    finish: str = "stop",
    stop_reason: str | None = None,
    outcome: CallOutcome = CallOutcome.success,
    mode: Mode = Mode.train,
    agent: str = "",
    policy: str | None = "policy",
    version: str | None = "policy@0.0",
    sampling: Sampling = SAMPLING,
    logprobs_mode: LogprobsMode = LogprobsMode.processed,
    salt: int = 0,
    use: TrainingUse = TrainingUse.by_mode,
) -> LlmCall:
    """A call; `answers` has the token ids of each choice, None for a choice without."""
    rollout = rollout_id(group, index)
    call_id = completion_of(rollout, attempt, derive_chance(group, index, turn, salt), SECRET)
    replies = replies or [{"role": "assistant", "content": f"answer {turn}"} for _ in answers]
    choices = tuple(
        Choice(
            index=number,
            message=json.dumps(reply),
            token_ids=None if answer is None else pack_ids(answer),
            logprobs=None if answer is None else pack_logprobs([-0.5] * len(answer)),
            finish_reason=finish,
            stop_reason=stop_reason,
        )
        for number, (answer, reply) in enumerate(zip(answers, replies, strict=True))
    )
    return LlmCall(
        event_id=call_id,
        event_time=at,
        call_id=call_id,
        group_id=group_id(group),
        rollout_id=rollout,
        attempt=attempt,
        mode=mode,
        agent=agent,
        identity=Identity.scoped_key,
        api="chat.completions",
        alias="policy",
        policy=policy,
        backend="local",
        version_first=version,
        version_last=version,
        stream=False,
        outcome=outcome,
        status_code=200,
        request=json.dumps({"messages": list(messages)}),
        prompt_token_ids=None if prompt is None else pack_ids(prompt),
        choices=choices,
        sampling=sampling,
        logprobs_mode=logprobs_mode,
        started_at=at,
        finished_at=at + 5,
        training_use=use,
    )


def derive_chance(*parts: int) -> bytes:
    """Eight bytes that depend on all parts."""
    return derive_id("chance", *parts).encode()[:8]


def make_status(
    group: int = 0,
    index: int = 0,
    kind: StatusKind = StatusKind.finished,
    *,
    attempt: int = 0,
    at: int = 2_000,
    failure: FailureKind | None = None,
    will_retry: bool = False,
    mode: Mode = Mode.train,
    message: str | None = None,
) -> AgentStatus:
    """A status of an attempt."""
    return AgentStatus(
        event_id=derive_id("status", group, index, attempt, kind, at),
        event_time=at,
        group_id=group_id(group),
        rollout_id=rollout_id(group, index),
        attempt=attempt,
        mode=mode,
        kind=kind,
        source="runner",
        failure=failure,
        message=message,
        will_retry=will_retry,
    )


def make_declared(
    group: int = 0,
    size: int = 2,
    *,
    at: int = 900,
    deadline: int = 10_000,
    expected: tuple[str, ...] = ("reward",),
    weights: dict[str, float] | None = None,
    credit: str = "identical",
    mode: Mode = Mode.train,
    max_attempts: int = 1,
    task: str = '{"question": "1+1"}',
    run_id: str | None = None,
    prompt_version: str | None = None,
) -> AgentStatus:
    """The declaration of a group."""
    return AgentStatus(
        event_id=derive_id("declared", group),
        event_time=at,
        group_id=group_id(group),
        attempt=0,
        mode=mode,
        kind=StatusKind.declared,
        source="gateway",
        will_retry=False,
        declaration=Declaration(
            rollout_ids=tuple(rollout_id(group, index) for index in range(size)),
            deadline=deadline,
            expected_rewards=expected,
            reward_weights=weights or {},
            credit_rule=credit,
            alias="policy",
            policy="policy",
            task=task,
            run_id=run_id,
            max_attempts=max_attempts,
            prompt_version=prompt_version,
        ),
    )


def make_reward(
    group: int = 0,
    index: int = 0,
    value: float | None = 1.0,
    *,
    name: str = "reward",
    call_id: str | None = None,
    choice: int | None = None,
    attempt: int | None = None,
    final: bool = True,
    at: int = 3_000,
    fallback: bool = False,
) -> AgentReward:
    """A reward of a rollout or of one of its actions."""
    return AgentReward(
        event_id=derive_id(
            "reward",
            group,
            index,
            name,
            call_id or "",
            choice or 0,
            at,
            *(["f"] if fallback else []),
        ),
        event_time=at,
        group_id=group_id(group),
        rollout_id=rollout_id(group, index),
        attempt=attempt,
        call_id=call_id,
        choice=choice,
        name=name,
        value=value,
        final=final,
        source="judge" if fallback else "rest",
        error=None if value is not None else "it failed",
        fallback=fallback,
    )


def make_group(
    group: int,
    *,
    size: int = 4,
    turns: int = 5,
    at: int = 1_000,
    lasts_ms: int = 600_000,
    mode: Mode = Mode.train,
) -> Iterator[LlmCall | AgentStatus | AgentReward]:
    """A whole group in the order of the log: declared, started, calls that extend one another,
    finished, rewards.
    """
    yield make_declared(group, size, at=at, deadline=at + lasts_ms, mode=mode)
    for index in range(size):
        yield make_status(group, index, StatusKind.started, at=at + 1, mode=mode)
    prompts = {index: [1, 2, 3, group % 97] for index in range(size)}
    for turn in range(turns):
        for index in range(size):
            answer = [10 + (group + index + turn * step) % 50 for step in range(1, 9)]
            yield make_call(
                group,
                index,
                turn,
                at=at + 10 * turn + index,
                prompt=prompts[index],
                answers=[answer],
                mode=mode,
            )
            prompts[index] = [*prompts[index], *answer, 5, 6]
    for index in range(size):
        yield make_status(group, index, at=at + 10 * turns + 10 + index, mode=mode)
    for index in range(size):
        yield make_reward(group, index, float((group + index) % 2), at=at + 10 * turns + 20 + index)
