"""Makes demonstrations of what agents did well, and the space in which sets of them are searched.

An example is the conversation of one rollout. A candidate has a few slots, each with an example or
with none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from fulgurite.calls.transcript import answer_of, is_system, messages_of, text_of
from fulgurite.events import Demonstration, DemonstrationCall, LlmCall
from fulgurite.prompts.overlap import OverlapGuard
from fulgurite.untrusted_json import Json, called_functions, mapping, mappings, parsed

EMPTY = -1
"""A slot without an example."""


class Example(msgspec.Struct, frozen=True):
    """The conversation of a rollout, and what it earned."""

    rollout_id: str
    task: str
    """Hash of its task."""
    reward: float
    messages: tuple[Demonstration, ...]

    def texts(self) -> Iterable[str]:
        """All that it says."""
        return texts_of(self.messages)


def texts_of(messages: Iterable[Demonstration]) -> Iterable[str]:
    """The contents and the arguments of tools in demonstrations."""
    for message in messages:
        yield message.content
        yield from (call.arguments for call in message.tool_calls)


def conversation_of(call: LlmCall) -> tuple[Demonstration, ...] | None:
    """The conversation up to and with the answer of a complete call, without system messages.

    None if it cannot be shown as demonstrations: it has other contents than texts, does not begin
    with a message of the user, or its last answer calls a tool.
    """
    answer = answer_of(call.choices[0]) if call.choices else None
    if answer is None:
        return None
    messages = [one for one in messages_of(call) if not is_system(one)]
    found: list[Demonstration] = []
    called: set[str] = set()
    for message in (*messages, {**answer, "role": "assistant"}):
        one = _demonstration(message)
        if one is None or (one.tool_call_id is not None and one.tool_call_id not in called):
            return None
        called |= {made.id for made in one.tool_calls}
        found.append(one)
    if found[0].role != "user" or found[-1].tool_calls:
        return None
    return tuple(found)


def choose_pool(
    examples: Iterable[Example], guard: OverlapGuard, size: int, least: float
) -> tuple[Example, ...]:
    """The best examples, at most one of a task: the highest rewards, then the shortest.

    Without those that earned less than `least`, and those with text that the guard knows.
    """
    ordered = sorted(
        (example for example in without_shared_head(examples) if example.reward >= least),
        key=lambda one: (-one.reward, sum(map(len, one.texts())), one.rollout_id),
    )
    found: dict[str, Example] = {}
    for example in ordered:
        if len(found) == size:
            break
        if example.task not in found and guard.find(example.texts()) is None:
            found[example.task] = example
    return tuple(found.values())


def without_shared_head(examples: Iterable[Example]) -> list[Example]:
    """The examples without the messages that all begin with, if they are of several tasks.

    An agent may send worked examples of its own before each question.
    """
    given = list(examples)
    if len({example.task for example in given}) < 2:
        return given
    shared = _shared_head([example.messages for example in given])
    return [
        msgspec.structs.replace(example, messages=example.messages[shared:]) for example in given
    ]


def _shared_head(conversations: Sequence[tuple[Demonstration, ...]]) -> int:
    """How many messages all begin with; what follows is a message of the user in each."""
    heads = [0]
    for place, messages in enumerate(zip(*conversations, strict=False)):
        if all(message.role == "user" for message in messages):
            heads.append(place)
        if len(set(messages)) > 1:
            break
    return heads[-1]


def chosen(pool: Sequence[Example], slots: Sequence[int]) -> tuple[Example, ...]:
    """The examples in the slots, each once."""
    return tuple(pool[index] for index in dict.fromkeys(slots) if index != EMPTY)


def slots_of(
    rollouts: Sequence[str], pool: Sequence[Example], count: int
) -> tuple[int, ...] | None:
    """The slots of a candidate with these examples; None if it has others, or too many."""
    places = {example.rollout_id: index for index, example in enumerate(pool)}
    found = [places.get(rollout) for rollout in rollouts]
    known = [index for index in found if index is not None]
    if len(known) < len(found) or len(found) > count:
        return None
    return (*known, *(EMPTY for _ in range(count - len(known))))


def join_examples(examples: Iterable[Example]) -> tuple[Demonstration, ...]:
    """The demonstrations of a candidate. Ids of tool calls get the example's number, as two
    conversations may have the same ones.
    """
    return tuple(
        _renamed(message, f"e{number}_")
        for number, example in enumerate(examples, 1)
        for message in example.messages
    )


def _renamed(message: Demonstration, prefix: str) -> Demonstration:
    return msgspec.structs.replace(
        message,
        tool_calls=tuple(
            msgspec.structs.replace(call, id=prefix + call.id) for call in message.tool_calls
        ),
        tool_call_id=None if message.tool_call_id is None else prefix + message.tool_call_id,
    )


def _demonstration(message: Json) -> Demonstration | None:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "tool") or not _is_text(content):
        return None
    calls = _tool_calls(message)
    result_of = message.get("tool_call_id") if role == "tool" else None
    if calls is None or (role == "tool" and not isinstance(result_of, str)):
        return None
    if not calls and role != "tool" and not text_of(message):
        return None
    return Demonstration(
        role=role, content=text_of(message), tool_calls=calls, tool_call_id=result_of
    )


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part.get("text"), str) for part in mappings(content))
    return content is None or isinstance(content, str)


def _tool_calls(message: Json) -> tuple[DemonstrationCall, ...] | None:
    """The tool calls of a message; None if one is not whole."""
    found: list[DemonstrationCall] = []
    for call, function in zip(
        mappings(message.get("tool_calls")), called_functions(message), strict=True
    ):
        made = _tool_call(call.get("id"), function)
        if made is None:
            return None
        found.append(made)
    return tuple(found)


def _tool_call(call_id: Any, function: Mapping[str, Any]) -> DemonstrationCall | None:
    name, arguments = function.get("name"), function.get("arguments")
    if not (isinstance(call_id, str) and isinstance(name, str) and isinstance(arguments, str)):
        return None
    try:
        is_object = mapping(parsed(arguments)) == parsed(arguments)
    except ValueError:
        return None
    return DemonstrationCall(id=call_id, name=name, arguments=arguments) if is_object else None
