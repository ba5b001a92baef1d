"""Reads the calls of a rollout in full: what was said, offered, called, sent and served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from fulgurite.calls.transcript import answer_of, body_of, messages_in, shown, text_of
from fulgurite.enums import PromptKind
from fulgurite.errors import BadClaim, BrokenDelta, CodecError
from fulgurite.events import Demonstration, LlmCall, PromptUpdate
from fulgurite.prompts.editing import served_body
from fulgurite.tokens import unpack_ids, unpack_logprobs
from fulgurite.untrusted_json import Json, called_functions, mapping, mappings, parsed
from services.common.blobs.blob_store import readable
from services.console.index.payloads import PayloadReader
from services.console.pages.reading import Asked, Row

_PROMPT = """
SELECT * FROM prompts
WHERE alias = $1 AND version = $2 AND kind IN ('set', 'candidate')
ORDER BY "offset" LIMIT 1
"""
"""Of several events with one number the first counts."""


@dataclass(frozen=True)
class Turn:
    """A call with its texts. `row` is its row in the index."""

    row: Row
    said: tuple[tuple[str, str], ...] = ()
    """Role and text of each message that the call before did not have."""
    answers: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    """Names of the tools that it offers."""
    called: tuple[tuple[str, str], ...] = ()
    """Name and arguments of each tool call of the first answer."""
    token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[tuple[float, ...], ...] = ()
    """Of each answer; empty where the upstream gave none."""
    served: str | None = None
    """The system prompt that was served, if it is not the one that was sent."""
    sent: str | None = None
    missing: str | None = None
    """Why the texts are not here."""


def read_turns(asked: Asked, rows: Sequence[Row]) -> list[Turn]:
    """The turns of calls in their order."""
    reader = PayloadReader(asked.index, asked.codec)
    turns: list[Turn] = []
    before: dict[str, int] = {}
    for row in rows:
        try:
            found = reader.call(row["partition"], row["offset"])
            call = None if found is None else readable(found)
        except (BrokenDelta, CodecError) as error:
            turns.append(Turn(row, missing=str(error)))
            continue
        except (BadClaim, OSError) as error:
            reason = f"The texts are stored outside the log, where the console cannot read: {error}"
            turns.append(Turn(row, missing=reason))
            continue
        if call is None:
            turns.append(
                Turn(row, missing="The console no longer holds this call's texts; the log may.")
            )
            continue
        turns.append(turn_of(row, call, before.get(call.agent, 0), prompt_of(asked, row)))
        before[call.agent] = len(messages_in(body_of(call), call.api)) + 1
    return turns


def turn_of(row: Row, call: LlmCall, known: int, prompt: PromptUpdate | None) -> Turn:
    """A call's turn. The first `known` messages were in the call before."""
    body = body_of(call)
    messages = messages_in(body, call.api)
    fresh = messages[known:] if known < len(messages) else messages
    answers = [answer_of(choice) or {} for choice in call.choices]
    sent, served = systems(body, call.api, prompt)
    return Turn(
        row,
        tuple((str(message.get("role", "?")), shown(message)) for message in fresh),
        tuple(text_of(answer) for answer in answers),
        tuple(offered_tools(body)),
        tuple(
            (str(function.get("name", "?")), str(function.get("arguments", "")))
            for function in (called_functions(answers[0]) if answers else [])
        ),
        tuple(
            tuple(int(one) for one in unpack_ids(choice.token_ids)) if choice.token_ids else ()
            for choice in call.choices
        ),
        tuple(
            tuple(float(one) for one in unpack_logprobs(choice.logprobs)) if choice.logprobs else ()
            for choice in call.choices
        ),
        served,
        sent,
    )


def offered_tools(body: Json) -> list[str]:
    """Names of the tools that a request offers, in any of the model APIs."""
    return [
        str(
            mapping(tool.get("function")).get("name") or tool.get("name") or tool.get("type") or "?"
        )
        for tool in mappings(body.get("tools"))
    ]


def systems(body: Json, api: str, prompt: PromptUpdate | None) -> tuple[str | None, str | None]:
    """The messages before the conversation, as sent and as served; None if they are the same."""
    edited = None if prompt is None else served_body(body, api, prompt)
    if edited is None:
        return None, None
    return written(messages_in(body, api)), written(messages_in(edited, api))


def written(messages: Sequence[Json]) -> str:
    """Messages as text."""
    return "\n\n".join(f"[{message.get('role', '?')}]\n{shown(message)}" for message in messages)


def prompt_of(asked: Asked, row: Row) -> PromptUpdate | None:
    """The prompt version that a call was served with."""
    if row["prompt_version"] is None:
        return None
    found = asked.row(_PROMPT, row["alias"], row["prompt_version"])
    return prompt_update(found) if found else None


def prompt_update(row: Row) -> PromptUpdate:
    """The event that a row of `prompts` was made from."""
    sections: Mapping[str, str] = row["sections"]
    tools: Mapping[str, str] = row["tools"]
    return PromptUpdate(
        event_id=row["event_id"],
        event_time=0,
        alias=row["alias"],
        role=row["role"],
        kind=PromptKind(row["kind"]),
        version=row["version"],
        parent=row["parent"],
        system=row["system"],
        prefix=row["prefix"],
        sections=dict(sections),
        demonstrations=demonstrations(row["demonstrations"]),
        tools=dict(tools),
        reason=row["reason"],
        author=row["author"],
    )


def demonstrations(text: str) -> tuple[Demonstration, ...]:
    """The messages that a row of `prompts` holds as JSON."""
    return tuple(msgspec.convert(parsed(text), list[Demonstration]))
