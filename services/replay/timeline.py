"""Shows a rollout as a timeline: statuses, calls, messages, rewards, and each action's credit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from fulgurite.calls.claim_checks import described
from fulgurite.calls.transcript import answer_of, messages_of
from fulgurite.enums import StatusKind
from fulgurite.errors import UnknownRule
from fulgurite.events import Action, AgentReward, AgentStatus, LlmCall, Trajectory
from fulgurite.groups.closing import close_group
from fulgurite.groups.credit import credit_rule
from fulgurite.ids import action_id
from fulgurite.tokens import token_count, unpack_ids, unpack_logprobs
from fulgurite.untrusted_json import Json, called_functions
from services.common.blobs.blob_store import readable
from services.replay.groups import Group
from services.rewarder.closing_settings import ClosingSettings


def timeline(
    group: Group, rollout_id: str, settings: ClosingSettings, *, tokens: bool = False
) -> Json:
    """Return everything in the log about one rollout, in order of time, as JSON values."""
    actions = _actions(group, settings)
    events = [
        _status(status)
        for status in group.statuses
        if status.rollout_id in (None, rollout_id) and status.kind is not StatusKind.heartbeat
    ]
    calls = [
        event
        for key, inputs in group.inputs.items()
        if key[0] == rollout_id
        for event in inputs.values()
    ]
    said = 0
    for call in sorted(
        (call for call in calls if isinstance(call, LlmCall)),
        key=lambda call: (call.started_at, call.call_id),
    ):
        call = readable(call)
        messages = messages_of(call)
        events.append(
            _call(
                call, messages[said:] if len(messages) > said else messages, actions, tokens=tokens
            )
        )
        said = len(messages)
    events += [_reward(reward) for reward in group.rewards if reward.rollout_id == rollout_id]
    episodes = [episode for episode in group.episodes() if episode.rollout_id == rollout_id]
    return {
        "rollout_id": rollout_id,
        "group_id": group.group_id,
        "task": group.declaration.task if group.declaration else None,
        "began_at": group.began_at,
        "attempts": [
            {
                "attempt": e.attempt,
                "outcome": str(e.outcome),
                "failure": _text(e.failure),
                "calls": len(e.calls),
            }
            for e in episodes
        ],
        "events": sorted(events, key=lambda event: event["at"]),
    }


def rollout_ids(group: Group) -> list[str]:
    """The group's rollouts: declared ones first, in their order."""
    declared = list(group.declaration.rollout_ids) if group.declaration else []
    return list(dict.fromkeys([*declared, *(key[0] for key in group.inputs)]))


def shortened(text: object, width: int = 160) -> str:
    """Shorten a text to one line of `width` characters; payloads elsewhere are shown by size."""
    line = " ".join(
        described(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)).split()
    )
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _actions(group: Group, settings: ClosingSettings) -> Mapping[str, Action]:
    """Actions by id, with the rewards and credits of a closing; none if it cannot be closed yet."""
    try:
        credit_rule(group.declaration.credit_rule if group.declaration else "identical")
        outputs = close_group(
            group.group_id, group.declaration, group.episodes(), group.rewards, settings.rules()
        )
    except UnknownRule:
        return {}
    rows = [output for output in outputs if isinstance(output, Trajectory)]
    return {action_id(a.call_id, a.choice): a for row in rows for a in row.actions if a.loss}


def _status(status: AgentStatus) -> Json:
    about = {
        "failure": _text(status.failure),
        "message": status.message,
        "exit_code": status.exit_code,
    }
    return {
        "at": status.event_time,
        "what": "status",
        "kind": str(status.kind),
        "attempt": status.attempt,
        "source": status.source,
        **{name: value for name, value in about.items() if value is not None},
    }


def _reward(reward: AgentReward) -> Json:
    return {
        "at": reward.event_time,
        "what": "reward",
        "name": reward.name,
        # JSON has no infinity, and null would mean that there is no value.
        "value": reward.value
        if reward.value is None or math.isfinite(reward.value)
        else str(reward.value),
        "source": reward.source,
        "call_id": reward.call_id,
        "final": reward.final,
        "error": reward.error,
    }


def _call(
    call: LlmCall, said: Sequence[Json], actions: Mapping[str, Action], *, tokens: bool
) -> Json:
    return {
        "at": call.started_at,
        "what": "call",
        "call_id": call.call_id,
        "attempt": call.attempt,
        "agent": call.agent,
        "parent_agent": call.parent_agent,
        "api": call.api,
        "alias": call.alias,
        "version": call.version_first,
        "prompt_version": call.prompt_version,
        "outcome": str(call.outcome),
        "error": call.error,
        "milliseconds": call.finished_at - call.started_at,
        "first_token_milliseconds": None
        if call.first_token_at is None
        else call.first_token_at - call.started_at,
        "prompt_tokens": token_count(call.prompt_token_ids)
        if call.prompt_token_ids is not None
        else call.prompt_tokens,
        "messages": [_message(message) for message in said],
        "choices": [
            _choice(call, index, actions, tokens=tokens) for index in range(len(call.choices))
        ],
        **({"prompt_token_ids": _ids(call.prompt_token_ids)} if tokens else {}),
    }


def _choice(call: LlmCall, index: int, actions: Mapping[str, Action], *, tokens: bool) -> Json:
    choice = call.choices[index]
    action = actions.get(action_id(call.call_id, choice.index))
    found: Json = {
        "choice": choice.index,
        "message": _message(answer_of(choice) or {}),
        "finish_reason": choice.finish_reason,
        "tokens": None if choice.token_ids is None else token_count(choice.token_ids),
        "reward": action.reward if action else None,
        "credit": action.credit if action else None,
        "mask": _text(action.mask) if action else None,
    }
    if tokens:
        logprobs = (
            None
            if choice.logprobs is None
            else [round(float(p), 6) for p in unpack_logprobs(choice.logprobs)]
        )
        found |= {"token_ids": _ids(choice.token_ids), "logprobs": logprobs}
    return found


def _message(message: Json) -> Json:
    return {
        "role": message.get("role", "assistant"),
        "content": message.get("content"),
        "tool_calls": [
            {"name": function.get("name"), "arguments": function.get("arguments")}
            for function in called_functions(message)
        ],
    }


def _ids(packed: bytes | None) -> list[int] | None:
    return None if packed is None else unpack_ids(packed).tolist()


def _text(value: object) -> str | None:
    return None if value is None else str(value)
