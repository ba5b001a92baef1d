"""Shows events as JSON values for people and programs.

Texts that hold JSON become values, packed tokens a number of them or the numbers themselves, other
bytes their length and first bytes. Secrets are hidden: events hold none, but an agent may have
written one into a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from fulgurite.events import (
    AgentReward,
    Choice,
    DeadLetter,
    Declaration,
    EventStruct,
    LlmCall,
    PolicyUpdate,
)
from fulgurite.tokens import token_count, unpack_ids, unpack_logprobs
from fulgurite.untrusted_json import parsed
from services.common.runtime.logs import hidden

_JSON: Mapping[type[EventStruct], tuple[str, ...]] = {
    LlmCall: ("request", "response"),
    Choice: ("message",),
    Declaration: ("task",),
    AgentReward: ("metadata",),
    PolicyUpdate: ("config",),
}
"""Fields that hold JSON as a text."""

_IDS = ("token_ids", "prompt_token_ids")
_LOGPROBS = ("logprobs",)
_SHOWN_BYTES = 32


def event_json(event: EventStruct, *, tokens: bool = False) -> dict[str, Any]:
    """An event as JSON values, without fields that are null. `tokens`: with all token ids and
    log-probabilities.
    """
    found = {
        name: _field(event, name, value, tokens=tokens)
        for name in event.__struct_fields__
        if (value := getattr(event, name)) is not None
    }
    return cast("dict[str, Any]", msgspec.to_builtins(found, str_keys=True))


def _field(event: EventStruct, name: str, value: Any, *, tokens: bool) -> Any:
    if isinstance(value, bytes):
        if isinstance(event, DeadLetter) and name == "key":
            return hidden(value.decode(errors="replace"))
        return _packed(name, value, tokens=tokens)
    if isinstance(value, str) and name in _JSON.get(type(event), ()):
        try:
            return _value(parsed(value), tokens=tokens)
        except ValueError:
            return hidden(value)
    return _value(value, tokens=tokens)


def _value(value: Any, *, tokens: bool) -> Any:
    if isinstance(value, EventStruct):
        return event_json(value, tokens=tokens)
    if isinstance(value, str):
        return hidden(str(value))
    if isinstance(value, tuple | list):
        return [_value(one, tokens=tokens) for one in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {hidden(name): hidden(_value(one, tokens=tokens), name) for name, one in items}
    return value


def _packed(name: str, value: bytes, *, tokens: bool) -> Any:
    if name in _IDS and len(value) % 4 == 0:
        return unpack_ids(value).tolist() if tokens else {"tokens": token_count(value)}
    if name in _LOGPROBS and len(value) % 4 == 0:
        return unpack_logprobs(value).tolist() if tokens else {"logprobs": token_count(value)}
    return {"bytes": len(value), "begins": value[:_SHOWN_BYTES].hex()}
