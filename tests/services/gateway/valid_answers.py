"""Answers that no upstream need be ashamed of, of every API that streams, with what the log should
hold of them.

Made by a `Random`: Hypothesis gives one that it can shrink, the fuzz target one with a seed.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

import msgspec

CHAT, COMPLETIONS, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
PATHS = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)
_SAID = [{"role": "user", "content": "hi"}]
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": _SAID},
    COMPLETIONS: {"prompt": "hi"},
    MESSAGES: {"messages": _SAID, "max_tokens": 9},
    RESPONSES: {"input": "hi"},
}
"""What a request to each API has beside model and stream."""
_LETTERS = [
    "a",
    "bc ",
    "é",
    "🌍",
    "漢",
    '"',
    "\\",
    "\n",
    "\r\n",
    "\u2028",
    "data: ",
    "[DONE]",
    "{",
    "\u0000",
    "🏳️\u200d🌈",
]
_HEAD: dict[str, Any] = {"id": "u1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


class Valid(msgspec.Struct):
    """One answer, streamed and whole."""

    path: str
    alias: str
    """`oddv` asks as of a vLLM, `odd` of any other."""
    events: list[bytes]
    """Each with its blank line; lines end with LF."""
    whole: bytes
    message: Any
    """What the log should have of the only choice."""
    reason: str
    tokens: list[int] | None = None

    @property
    def stream(self) -> bytes:
        """All events."""
        return b"".join(self.events)


def valid_answer(random: Random, path: str | None = None) -> Valid:
    """Any of them."""
    made = {CHAT: _chat, COMPLETIONS: _completion, MESSAGES: _message, RESPONSES: _response}
    return made[path or random.choice(PATHS)](random)


def pieces_of(random: Random, data: bytes) -> list[bytes]:
    """The bytes cut anywhere."""
    size = random.choice([1, 7, 100, 5000])
    # Hypothesis records each draw. Thousands of cuts come from one draw, so that they cost nothing.
    cuts = Random(random.getrandbits(32))
    pieces: list[bytes] = []
    while data:
        end = cuts.randint(1, size)
        pieces.append(data[:end])
        data = data[end:]
    return pieces


def _text(random: Random) -> str:
    return "".join(random.choice(_LETTERS) for _ in range(random.randint(0, 8)))


def _cut(random: Random, text: str, *, halves: bool) -> list[str]:
    """The text in pieces; with `halves` also between the two halves of a character, which only an
    escaping upstream can write.
    """
    units = [
        text.encode("utf-16-le")[at : at + 2].decode("utf-16-le", "surrogatepass")
        for at in range(0, 2 * _units(text), 2)
    ]
    letters = units if halves else list(text)
    pieces: list[str] = []
    while letters:
        size = random.randint(1, 4)
        pieces.append("".join(letters[:size]))
        letters = letters[size:]
    return pieces


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _arguments(random: Random) -> str:
    return json.dumps(
        {_text(random): random.choice([1, None, [True], _text(random)])},
        ensure_ascii=random.random() < 0.5,
    )


class _Writer:
    """JSON as one upstream writes it."""

    def __init__(self, random: Random) -> None:
        self.escapes = random.random() < 0.5
        self._separators = random.choice([(",", ":"), (", ", ": ")])

    def json(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=self.escapes, separators=self._separators).encode(
            "utf-8", "surrogatepass"
        )

    def event(self, value: Any, name: str | None = None) -> bytes:
        named = b"" if name is None else f"event: {name}\n".encode()
        return named + b"data: " + self.json(value) + b"\n\n"


def _calls(random: Random) -> list[dict[str, Any]]:
    made = range(random.choice([0, 0, 1, 2, 3]))
    return [
        {
            "id": f"c{n}",
            "type": "function",
            "function": {"name": f"f{n % 2}", "arguments": _arguments(random)},
        }
        for n in made
    ]


def _chat(random: Random) -> Valid:
    writer, text, calls = _Writer(random), _text(random), _calls(random)
    alias, reason = (
        random.choice(["odd", "oddv"]),
        "tool_calls" if calls else random.choice(["stop", "length"]),
    )
    numbered = _numbers(random, len(calls))
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _cut(random, text, halves=writer.escapes)]
    deltas += _call_deltas(random, calls, numbered, halves=writer.escapes)
    told = alias == "oddv" and random.random() < 0.7
    tokens: list[int] = []
    events: list[bytes] = []
    for place, delta in enumerate([*deltas, {}]):
        part: dict[str, Any] = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": reason if not delta else None,
        }
        chunk: dict[str, Any] = {**_HEAD, "choices": [part]}
        if told and place == 0:
            chunk["prompt_token_ids"] = [1, 2]
        elif told and delta:
            tokens.append(place)
            part |= {
                "token_ids": [place],
                "logprobs": {"content": [{"token": "t", "logprob": -0.5}]},
            }
        events.append(writer.event(chunk))
        if random.random() < 0.1:
            events.append(b": keep-alive\n\n")
    usage: dict[str, Any] = {
        **_HEAD,
        "choices": [],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
    }
    events += [writer.event(usage)] if random.random() < 0.5 else []
    events.append(b"data: [DONE]\n\n")
    message: dict[str, Any] = {"role": "assistant", "content": text} | (
        {"tool_calls": calls} if calls else {}
    )
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
    choice |= (
        {
            "token_ids": tokens,
            "logprobs": {"content": [{"token": "t", "logprob": -0.5}] * len(tokens)},
        }
        if tokens
        else {}
    )
    whole = writer.json({**_HEAD, "choices": [choice], "usage": {"prompt_tokens": 2}})
    return Valid(CHAT, alias, events, whole, message, reason, tokens or None)


def _numbers(random: Random, count: int) -> list[int | None]:
    """How upstreams number calls: from 0, from 1, with gaps, all alike, not at all."""
    ways: list[list[int | None]] = [
        list(range(count)),
        list(range(1, count + 1)),
        list(range(0, 2 * count, 2)),
        [0] * count,
        [None] * count,
    ]
    return random.choice(ways)


def _call_deltas(
    random: Random, calls: list[dict[str, Any]], numbered: list[int | None], *, halves: bool
) -> list[dict[str, Any]]:
    fragments: list[list[dict[str, Any]]] = []
    for call, number in zip(calls, numbered, strict=True):
        function, placed = call["function"], {} if number is None else {"index": number}
        rest = _cut(random, function["arguments"], halves=halves)
        first = {
            "id": call["id"],
            "type": "function",
            "function": {"name": function["name"], "arguments": ""},
        }
        fragments.append(
            [{**placed, **first}, *({**placed, "function": {"arguments": piece}} for piece in rest)]
        )
    distinct = None not in numbered and len(set(numbered)) == len(numbered)
    ordered: list[dict[str, Any]] = []
    while any(fragments):
        # Calls whose numbers tell them apart may come at once.
        some = [one for one in fragments if one]
        ordered.append((random.choice(some) if distinct else some[0]).pop(0))
    return [{"tool_calls": [fragment]} for fragment in ordered]


def _completion(random: Random) -> Valid:
    writer, text, reason = _Writer(random), _text(random), random.choice(["stop", "length"])
    said = [
        {"index": 0, "text": piece, "finish_reason": None}
        for piece in _cut(random, text, halves=writer.escapes)
    ]
    parts: list[dict[str, Any]] = [*said, {"index": 0, "text": "", "finish_reason": reason}]
    events = [*(writer.event({**_HEAD, "choices": [part]}) for part in parts), b"data: [DONE]\n\n"]
    whole = writer.json({**_HEAD, "choices": [{"index": 0, "text": text, "finish_reason": reason}]})
    return Valid(COMPLETIONS, "odd", events, whole, {"text": text}, reason)


def _message(random: Random) -> Valid:
    writer = _Writer(random)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": _text(random)}]
    for call in _calls(random):
        given = json.loads(call["function"]["arguments"])
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": given}
        )
    stop, reason = ("tool_use", "tool_calls") if len(blocks) > 1 else ("end_turn", "stop")
    same = random.random() < 0.3
    head: dict[str, Any] = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": None,
    }
    said: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**head, "content": [], "usage": {"input_tokens": 3}}}
    ]
    for number, block in enumerate(blocks):
        index = 0 if same else number
        opening: dict[str, Any]
        if block["type"] == "text":
            opening, kind, field, text = (
                {"type": "text", "text": ""},
                "text_delta",
                "text",
                block["text"],
            )
        else:
            opening, kind, field, text = (
                {**block, "input": dict[str, Any]()},
                "input_json_delta",
                "partial_json",
                json.dumps(block["input"]),
            )
        said.append({"type": "content_block_start", "index": index, "content_block": opening})
        deltas = [
            {"type": kind, field: piece} for piece in _cut(random, text, halves=writer.escapes)
        ]
        said += [
            {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
        ]
        said.append({"type": "content_block_stop", "index": index})
    said.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": {"output_tokens": 2},
        }
    )
    said.append({"type": "message_stop"})
    whole = writer.json(
        {
            **head,
            "content": blocks,
            "stop_reason": stop,
            "usage": {"input_tokens": 3, "output_tokens": 2},
        }
    )
    events = [writer.event(one, one["type"]) for one in said]
    return Valid(MESSAGES, "odd", events, whole, {"role": "assistant", "content": blocks}, reason)


def _response(random: Random) -> Valid:
    writer = _Writer(random)
    items: list[dict[str, Any]] = [
        {
            "id": "i",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": _text(random)}],
        }
    ]
    items += [
        {"id": f"i{call['id']}", "type": "function_call", "call_id": call["id"], **call["function"]}
        for call in _calls(random)
    ]
    same, repeats = random.random() < 0.3, random.random() < 0.7
    head: dict[str, Any] = {"id": "r1", "object": "response", "model": "m"}
    said: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**head, "status": "in_progress", "output": []}}
    ]
    for number, item in enumerate(items):
        opening: dict[str, Any]
        at: dict[str, Any] = {"output_index": 0 if same else number}
        if item["type"] == "message":
            opening, kind, text = (
                {**item, "content": list[Any]()},
                "response.output_text",
                item["content"][0]["text"],
            )
        else:
            opening, kind, text = (
                {**item, "arguments": ""},
                "response.function_call_arguments",
                item["arguments"],
            )
        said.append({"type": "response.output_item.added", **at, "item": opening})
        said += [
            {"type": f"{kind}.delta", **at, "item_id": item["id"], "delta": piece}
            for piece in _cut(random, text, halves=writer.escapes)
        ]
        said.append({"type": "response.output_item.done", **at, "item": item})
    last = {**head, "status": "completed", "output": items if repeats else []}
    said.append({"type": "response.completed", "response": last})
    whole = writer.json({**head, "status": "completed", "output": items})
    reason = "tool_calls" if len(items) > 1 else "stop"
    events = [writer.event(one, one["type"]) for one in said]
    return Valid(RESPONSES, "odd", events, whole, {"role": "assistant", "output": items}, reason)
