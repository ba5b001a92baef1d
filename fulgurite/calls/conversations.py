"""Recognises the conversation that a request continues, from its messages alone.

It compares a hash chain of the message prefix.

Every message (OpenAI's chat messages and Responses items, Anthropic's content blocks alike) is
split into *atoms*: a text, a tool call, a tool's result. Agents may send an answer back in another
form than they got it. These differences give the same atoms:

- null and missing fields, and fields that only describe (`name`, `annotations`, `status`, an item's
  own `id`)
- content as a string, as one text part or as several; white space around a text; a text beside tool
  calls, which some clients drop
- a tool call's arguments with other white space, another order of keys or `1` for `1.0`, as a
  string or as an object
- reasoning, which most clients do not send back, in a field, an item or a part of its own or as
  `<think>...</think>` before the text (also without `<think>`, which some templates put into the
  prompt)
- system and developer messages: an agent that renews its instructions each turn, or hands over to
  another role, continues the same conversation. The change opens another trajectory of the same
  episode.

Anything else that differs (a rewritten memory, a dropped turn, another tool call id) is another
conversation.

After an answer the chain of prompt and answer is remembered as its rollout's; a prompt that
contains an assistant's message is looked up by the chain up to there, longest first. The same chain
from two rollouts belongs to neither (`AMBIGUOUS`), for good. Since every answer that an agent can
send back was remembered before the agent had it, two conversations are never taken for one, as long
as nothing is forgotten.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import msgspec

from fulgurite.untrusted_json import mappings

Json = Mapping[str, Any]
Atom = tuple[str, ...]
"""Role, kind and content."""

AMBIGUOUS = "*"
"""Stands for a rollout where several have the same chain."""

LOOKED_UP = 16
"""How many prefixes are looked up. The answer is in the last assistant's message, unless the agent
appended messages of its own.
"""

_ASSISTANT = "assistant"
_TOOL = "tool"
_UNHEARD = ("system", "developer")
_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text")
_THOUGHT = ("<think>", "</think>")
_EXACT = 1 << 53
"""Up to this, every integer is exact as a float."""


class MessageChain:
    """The hash chain of a request's messages."""

    __slots__ = ("_chain", "_words", "prefixes")

    def __init__(self, salt: bytes, items: Iterable[Any], *, words: bool = False) -> None:
        """`salt`, up to 64 bytes: conversations with different salts never match.

        `words`: every text counts, also beside tool calls, and with the reasoning before it.
        """
        self._chain = hashlib.blake2b(digest_size=16, key=salt)
        self._words = words
        known: deque[str] = deque(maxlen=LOOKED_UP)
        for atom in atoms(items, words=words):
            _add(self._chain, atom)
            if atom[0] == _ASSISTANT:
                known.appendleft(self._chain.copy().hexdigest())
        self.prefixes: tuple[str, ...] = tuple(known)
        """The chains up to each assistant's atom, longest first, at most `LOOKED_UP`. A first
        request has none.
        """

    def answered(self, answer: Iterable[Any]) -> str | None:
        """The chain with this answer's items; None if the answer has no content."""
        chain = self._chain.copy()
        said = False
        for atom in atoms(answer, words=self._words):
            _add(chain, atom)
            said = True
        return chain.hexdigest() if said else None


def recognised(found: Sequence[str | None]) -> str | None:
    """The rollout that a request continues, given the rollouts of its prefixes, longest first.

    None if it opens a new one.
    """
    nearest = next((rollout for rollout in found if rollout is not None), None)
    return None if nearest == AMBIGUOUS else nearest


def owner_of(known: str | None, rollout: str) -> str:
    """The owner of a chain when `rollout` has it too."""
    return rollout if known is None or known == rollout else AMBIGUOUS


def atoms(items: Iterable[Any], *, words: bool = False) -> Iterator[Atom]:
    """Yield the items of a request or an answer in canonical form.

    Without `words`, an assistant's turn with tool calls gives only the calls, and texts lose the
    reasoning before them.
    """
    if words:
        yield from _split(items, thoughts=True)
        return
    turn: list[Atom] = []
    for atom in _split(items, thoughts=False):
        if atom[0] == _ASSISTANT:
            turn.append(atom)
            continue
        yield from _calls_or_all(turn)
        turn = []
        yield atom
    yield from _calls_or_all(turn)


def _calls_or_all(turn: list[Atom]) -> list[Atom]:
    return (
        [atom for atom in turn if atom[1] != "text"]
        if any(atom[1] == "call" for atom in turn)
        else turn
    )


def _split(items: Iterable[Any], *, thoughts: bool) -> Iterator[Atom]:
    for item in items:
        if not isinstance(item, Mapping):
            yield ("other", _text_or_json(item))
            continue
        message = cast(Json, item)
        role = message.get("role")
        if isinstance(role, str):
            yield from _of_message(role, message, thoughts)
        else:
            yield from _of_item(str(message.get("type", "")), message)


def _of_message(role: str, message: Json, thoughts: bool) -> Iterator[Atom]:
    if role in _UNHEARD:
        return
    if role in (_TOOL, "function"):
        yield _result(message.get("tool_call_id") or message.get("name"), message.get("content"))
        return
    thoughts = thoughts or role != _ASSISTANT
    said = list(_of_content(role, message.get("content"), thoughts))
    if role == _ASSISTANT:
        said += _of_content(role, message.get("refusal"), thoughts)
        said += [_call(call) for call in mappings(message.get("tool_calls"))]
        said += [_call({"function": call}) for call in mappings([message.get("function_call")])]
    yield from said or [(role, "text", "")]


def _of_item(kind: str, item: Json) -> Iterator[Atom]:
    """A Responses item that is not a message."""
    if kind in ("function_call", "custom_tool_call"):
        yield _call(
            {
                "id": item.get("call_id"),
                "function": {
                    "name": item.get("name"),
                    "arguments": item.get("arguments", item.get("input")),
                },
            }
        )
    elif kind in ("function_call_output", "custom_tool_call_output"):
        yield _result(item.get("call_id"), item.get("output"))
    elif kind not in _THOUGHTS:
        who = _ASSISTANT if kind.endswith("_call") else "other"
        yield (
            who,
            "item",
            _json({name: value for name, value in item.items() if name not in ("id", "status")}),
        )


def _of_content(role: str, content: Any, thoughts: bool) -> Iterator[Atom]:
    """Atoms of a message's content. Adjacent texts are joined, with reasoning if `thoughts`."""
    if isinstance(content, str):
        yield from _joined(role, [content], thoughts)
        return
    texts: list[str] = []
    for part in cast("list[Any]", content) if isinstance(content, list) else ():
        text = _text(part)
        if text is not None:
            texts.append(text)
            continue
        atom = _of_part(role, cast(Json, part) if isinstance(part, Mapping) else {"?": part})
        if atom is not None:
            yield from _joined(role, texts, thoughts)
            texts = []
            yield atom
    yield from _joined(role, texts, thoughts)


def _of_part(role: str, part: Json) -> Atom | None:
    kind = part.get("type")
    if kind in _THOUGHTS:
        return None
    if kind == "tool_use":
        return _call(
            {
                "id": part.get("id"),
                "function": {"name": part.get("name"), "arguments": part.get("input")},
            }
        )
    if kind == "tool_result":
        return _result(part.get("tool_use_id"), part.get("content"))
    return (
        role,
        "part",
        _json({name: value for name, value in part.items() if name != "cache_control"}),
    )


def _joined(role: str, texts: list[str], thoughts: bool) -> Iterator[Atom]:
    text = "".join(texts).strip()
    if not thoughts:
        text = _without_thoughts(text)
    if text:
        yield (role, "text", text)


def _without_thoughts(text: str) -> str:
    """Remove `<think>` blocks at the beginning of a text. Others, and unclosed ones, stay."""
    while True:
        thought, closed, rest = text.partition(_THOUGHT[1])
        if not closed or (_THOUGHT[0] in thought and not thought.startswith(_THOUGHT[0])):
            return text
        text = rest.lstrip()


def _text(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    known = cast(Json, part)
    text = (
        known.get("refusal")
        if known.get("type") == "refusal"
        else known.get("text")
        if known.get("type") in _TEXTS
        else None
    )
    return text if isinstance(text, str) else None


def _call(call: Json) -> Atom:
    function = call.get("function", call.get("custom"))
    said: Json = cast(Json, function) if isinstance(function, Mapping) else {}
    return (
        _ASSISTANT,
        "call",
        str(call.get("id") or ""),
        str(said.get("name") or ""),
        _arguments(said.get("arguments", said.get("input"))),
    )


def _result(call_id: Any, content: Any) -> Atom:
    """A tool's result as one atom, so that no result can look like an assistant's message."""
    return (
        _TOOL,
        str(call_id or ""),
        *(field for atom in _of_content(_TOOL, content, thoughts=True) for field in atom[1:]),
    )


def _arguments(arguments: Any) -> str:
    return _canonical_arguments(arguments) if isinstance(arguments, str) else _json(arguments or {})


@lru_cache(maxsize=2048)
def _canonical_arguments(arguments: str) -> str:
    """Arguments in canonical form. Cached, because every turn repeats the calls before it."""
    try:
        return _json(msgspec.json.decode(arguments or "{}"))
    except (msgspec.DecodeError, RecursionError):
        return arguments.strip()


def _text_or_json(value: Any) -> str:
    return value.strip() if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(_plain(value), order="sorted").decode()


def _plain(value: Any) -> Any:
    """Remove nulls from objects, and turn 1.0 into 1, as JavaScript writes it."""
    if isinstance(value, Mapping):
        return {
            name: _plain(inner) for name, inner in cast(Json, value).items() if inner is not None
        }
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[Any]", value)]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value


def _add(chain: hashlib.blake2b, atom: Atom) -> None:
    """Add an atom's fields with their lengths, so that different atoms give different bytes."""
    fields = [field.encode("utf-8", "surrogatepass") for field in atom]
    chain.update(b"".join(part for data in fields for part in (b"%d:" % len(data), data)) + b";")
