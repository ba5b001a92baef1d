"""Stores a call that extends an earlier one as a delta: only what is new in it.

An agent's fiftieth turn repeats the forty-nine before it.

`shorten` makes the delta, `restore` the call that it was made of, to the byte. In a delta (`parent`
is set)

- `prompt_token_ids` lacks the first `shared_tokens` ids: they are those of the parent's prompt and
  first choice, as far as both agree. The hash of the full prompt tells whether what was put
  together is right.
- `request` is `HEAD TAIL CRC32`, a line feed and the middle of the body: its first HEAD and last
  TAIL bytes (UTF-8) are those of the parent's body. Clients repeat messages, tools and settings
  word for word, whatever the API; no JSON is parsed, so no byte is lost.
- everything else is as it was.

A parent is a call of the same attempt, in the same partition, at a lower offset. Every 64th link of
a chain is whole, so that no more records have to be read to restore any. A gain of less than
`LEAST_GAIN` bytes is not worth a delta. `fulgurite.episodes.episode_deltas` does the same within
one episode.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from fulgurite.errors import BrokenDelta
from fulgurite.events import EventStruct, LlmCall, ParentRef
from fulgurite.tokens import PromptHashes, prompt_hash

CHAIN = 64
"""Links of a chain, the whole one included: a reader that starts anywhere reads so many records, at
most. A whole link repeats all that was said before it: with one in sixteen, the log of a
conversation of fifty turns was three times as large.
"""

LEAST_GAIN = 512
"""Bytes: a parent's name and place take some 150, and zstd makes small repetitions cheap anyway."""

_THIRD = LEAST_GAIN // 3

WITHIN = -1
"""In place of a partition: the parent is a call of the same episode, and the offset its index."""

_STEP = 64
"""Bytes: conversations that differ mostly do so in their first line."""


class Link(EventStruct, frozen=True, kw_only=True):
    """What is kept of a call for those that extend it."""

    call_id: str
    partition: int
    offset: int
    depth: int
    """Links between it and the whole call that its chain begins with."""
    tokens: bytes
    """Its prompt and the tokens of its first choice, packed."""
    request: bytes
    """Its body, UTF-8."""


def link_of(call: LlmCall, partition: int, offset: int, depth: int = 0) -> Link:
    """The link of a whole call that lies there."""
    return Link(
        call_id=call.call_id,
        partition=partition,
        offset=offset,
        depth=depth,
        tokens=tokens_of(call),
        request=(call.request or "").encode(),
    )


def shorten(call: LlmCall, links: Sequence[Link]) -> tuple[LlmCall, int]:
    """The call as a delta of the link that saves most, and its depth; the call itself, and 0, if
    none is worth it.

    Links in order of time, looked at from the newest: one that could save less than `LEAST_GAIN`
    beyond the best so far is not compared.
    """
    if call.prompt_token_ids is not None and (
        call.prompt_hash is None or len(call.prompt_token_ids) % 4
    ):
        return call, 0
    sought = _Sought(call)
    best: _Overlap | None = None
    least = LEAST_GAIN
    for link in reversed(links):
        if sought.size < least:
            break
        if sought.at_most(link) < least:
            continue
        overlap = _Overlap(sought, link)
        if best is None or overlap.saved > best.saved:
            best = overlap
            least = best.saved + LEAST_GAIN
    if best is None or best.saved < LEAST_GAIN or best.link.depth + 1 == CHAIN:
        return call, 0
    return best.delta(), best.link.depth + 1


def restore(
    call: LlmCall, parent: LlmCall, *, proven: bool = False, hashes: PromptHashes | None = None
) -> LlmCall:
    """The call that a delta was made of, given its whole parent. Raises BrokenDelta.

    `proven`: without a look at hashes. `hashes`, by call id: for who restores one call after the
    other.
    """
    ref = call.parent
    if ref is None:
        return call
    if parent.call_id != ref.call_id or (parent.parent is not None):
        raise BrokenDelta(
            f"call {call.call_id} is a delta of {ref.call_id}, not of {parent.call_id} as it "
            "was read"
        )
    prompt = (
        None
        if call.prompt_token_ids is None
        else tokens_of(parent)[: 4 * ref.shared_tokens] + call.prompt_token_ids
    )
    if (
        prompt is not None
        and not proven
        and _hash(call, ref, prompt, parent, hashes) != call.prompt_hash
    ):
        raise no_such_prompt(call)
    body = (
        None
        if call.request is None
        else body_of(call, (parent.request or "").encode(), proven=proven)
    )
    return msgspec.structs.replace(
        call, prompt_token_ids=prompt, request=None if body is None else body.decode(), parent=None
    )


def _hash(
    call: LlmCall, ref: ParentRef, prompt: bytes, parent: LlmCall, hashes: PromptHashes | None
) -> str:
    before = parent.prompt_token_ids or b""
    if hashes is None or 4 * ref.shared_tokens < len(before):
        return prompt_hash(prompt)
    return hashes.of(call.call_id, prompt, parent.call_id, before)


def tokens_of(call: LlmCall) -> bytes:
    """What a prompt may share with a call: its prompt and the tokens of its first choice,
    packed.
    """
    tokens = (call.prompt_token_ids or b"") + answer_tokens(call)
    return tokens[: len(tokens) - len(tokens) % 4]


def answer_tokens(call: LlmCall) -> bytes:
    """Those of a call's first choice, packed."""
    return (call.choices[0].token_ids or b"") if call.choices else b""


def no_such_prompt(call: LlmCall) -> BrokenDelta:
    """The error of a prompt that is not what was recorded."""
    parent = call.parent.call_id if call.parent else "nothing"
    return BrokenDelta(
        f"call {call.call_id}: its prompt, put together with that of {parent}, has not the "
        "hash that was recorded"
    )


def body_of(delta: LlmCall, before: bytes, *, proven: bool = False) -> bytes:
    """A delta's whole body in UTF-8, given that of its parent. `proven`: without a look at its
    checksum. Raises BrokenDelta.
    """
    line, _, middle = (delta.request or "").partition("\n")
    try:
        head, tail, check = line.split(" ")
        begin, end, expected = int(head), len(before) - int(tail), int(check, 16)
    except ValueError as error:
        raise BrokenDelta(
            f"call {delta.call_id}: its request does not say what it shares with its parent: "
            f"{error}"
        ) from error
    if not (_is_boundary(before, begin) and _is_boundary(before, end)):
        raise BrokenDelta(
            f"call {delta.call_id}: its request does not say what it shares with its parent: "
            f"{line} of {len(before)} bytes"
        )
    body = b"".join((before[:begin], middle.encode(), before[end:]))
    if not proven and zlib.crc32(body) != expected:
        raise BrokenDelta(
            f"call {delta.call_id}: its request, put together with that of its parent, is not "
            "what was recorded"
        )
    return body


class _Sought:
    """A call whose parent is sought."""

    def __init__(self, call: LlmCall) -> None:
        self.call = call
        self.tokens = call.prompt_token_ids or b""
        self.body = (call.request or "").encode()
        self.size = len(self.tokens) + len(self.body)
        """Bytes that a delta saves at most, whatever its parent."""
        self._first = self.tokens[:_THIRD]
        self._head, self._tail = self.body[:_THIRD], self.body[-_THIRD:]

    def at_most(self, link: Link) -> int:
        """What a delta of this link could save, from a look at the beginning of the tokens, and at
        beginning and end of the body.
        """
        tokens, body = (
            min(len(self.tokens), len(link.tokens)),
            min(len(self.body), len(link.request)),
        )
        if tokens > _THIRD and not link.tokens.startswith(self._first):
            tokens = _THIRD
        if (
            body > 2 * _THIRD
            and not link.request.startswith(self._head)
            and not link.request.endswith(self._tail)
        ):
            body = 2 * _THIRD
        return tokens + body


class _Overlap:
    """What a call and a link have in common."""

    def __init__(self, sought: _Sought, link: Link) -> None:
        self.link = link
        self.tokens = _equal(link.tokens, sought.tokens) // 4
        self.head, self.tail = _ends(link.request, sought.body)
        self.saved = 4 * self.tokens + self.head + self.tail
        """Bytes that need not be stored again."""
        self._sought = sought

    def delta(self) -> LlmCall:
        """The rest of the call."""
        call, body = self._sought.call, self._sought.body
        ref = ParentRef(
            call_id=self.link.call_id,
            partition=self.link.partition,
            offset=self.link.offset,
            shared_tokens=self.tokens,
            shared_messages=0,
        )
        request = None
        if call.request is not None:
            middle = body[self.head : len(body) - self.tail]
            request = f"{self.head} {self.tail} {zlib.crc32(body):08x}\n{middle.decode()}"
        prompt = None if call.prompt_token_ids is None else call.prompt_token_ids[4 * self.tokens :]
        return msgspec.structs.replace(call, prompt_token_ids=prompt, request=request, parent=ref)


def _ends(left: bytes, right: bytes) -> tuple[int, int]:
    """How many bytes both have at their beginning and, apart from these, at their end; never half a
    character.
    """
    head = _equal(left, right)
    while 0 < head < len(right) and _is_inner(right[head]):
        head -= 1
    tail = _equal_ends(left, right, min(len(left), len(right)) - head)
    while tail and _is_inner(right[len(right) - tail]):
        tail -= 1
    return head, tail


def _equal(left: bytes, right: bytes) -> int:
    """How many bytes both have at their beginning. Slices are compared as a whole, however long: no
    loop over bytes is as fast.
    """
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low, high = _around_first_unequal(most, lambda low, high: left[low:high] == right[low:high])
    return low + _alike(left[low:high], right[low:high], "big")


def _equal_ends(left: bytes, right: bytes, most: int) -> int:
    """How many bytes, `most` at most, both have at their end."""
    all_of_left, all_of_right = len(left), len(right)
    if left[all_of_left - most :] == right[all_of_right - most :]:
        return most
    low, high = _around_first_unequal(
        most,
        lambda low, high: (
            left[all_of_left - high : all_of_left - low]
            == right[all_of_right - high : all_of_right - low]
        ),
    )
    return low + _alike(
        left[all_of_left - high : all_of_left - low],
        right[all_of_right - high : all_of_right - low],
        "little",
    )


def _around_first_unequal(most: int, agree: Callable[[int, int], bool]) -> tuple[int, int]:
    """Two places, at most a step apart, between which two sequences begin to differ: past it in
    growing steps, then back in halves.
    """
    low, high = 0, _STEP
    while high < most and agree(low, high):
        low, high = high, 4 * high
    high = min(high, most)
    while high - low > _STEP:
        middle = (low + high) // 2
        if agree(low, middle):
            low = middle
        else:
            high = middle
    return low, high


def _alike(left: bytes, right: bytes, order: Literal["big", "little"]) -> int:
    """How many bytes two slices of one length share: from their beginning where the first byte
    weighs most, else from their end.
    """
    difference = int.from_bytes(left, order) ^ int.from_bytes(right, order)
    return len(left) - (difference.bit_length() + 7) // 8


def _is_boundary(data: bytes, place: int) -> bool:
    """Whether a character of UTF-8 begins or ends there."""
    return 0 <= place <= len(data) and (place == len(data) or not _is_inner(data[place]))


def _is_inner(byte: int) -> bool:
    """Whether a character of UTF-8 does not begin with this byte."""
    return byte & 0xC0 == 0x80
