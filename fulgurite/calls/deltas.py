"""Stores a call that extends an earlier one as a delta: only what is new in it.

An agent's fiftieth turn repeats the forty-nine before it.

`shorten` makes the delta, `restore` the original call, byte for byte. In a delta (`parent` is set)

- `prompt_token_ids` lacks the first `shared_tokens` ids, which are those of the parent's prompt and
  first choice. The hash of the full prompt shows whether the restored prompt is right.
- `request` is `HEAD TAIL CRC32`, a line feed and the middle of the body: its first HEAD and last
  TAIL bytes (UTF-8) are those of the parent's body. Clients repeat messages, tools and settings
  word for word, whatever the API; no JSON is parsed, so no byte is lost.
- everything else is unchanged.

A parent is a call of the same attempt, in the same partition, at a lower offset. Every 64th call of
a chain is stored completely, which bounds the records to read. A delta must save at least
`LEAST_GAIN` bytes. `fulgurite.episodes.episode_deltas` does the same within one episode.
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
"""Longest chain, its complete call included: a reader never reads more records to restore a call.
A complete call repeats all earlier turns. With one in sixteen, the log of a conversation of fifty
turns was three times as large.
"""

LEAST_GAIN = 512
"""Bytes. The reference to a parent takes some 150, and zstd makes small repetitions cheap anyway.
"""

_THIRD = LEAST_GAIN // 3

WITHIN = -1
"""Stands for a partition: the parent is in the same episode, and its offset is its index."""

_STEP = 64
"""Bytes. Different conversations mostly differ in their first line."""


class Link(EventStruct, frozen=True, kw_only=True):
    """The part of a call that is kept to make deltas of later calls."""

    call_id: str
    partition: int
    offset: int
    depth: int
    """Number of deltas between it and the complete call at the beginning of its chain."""
    tokens: bytes
    """Its prompt and the tokens of its first choice, packed."""
    request: bytes
    """Its body, UTF-8."""


def link_of(call: LlmCall, partition: int, offset: int, depth: int = 0) -> Link:
    """Make the link of a complete call at this place."""
    return Link(
        call_id=call.call_id,
        partition=partition,
        offset=offset,
        depth=depth,
        tokens=tokens_of(call),
        request=(call.request or "").encode(),
    )


def shorten(call: LlmCall, links: Sequence[Link]) -> tuple[LlmCall, int]:
    """Make the call a delta of the link that saves most; returns it with its depth.

    Returns the call itself and 0 if no link saves enough. Links are in order of time and tried from
    the newest; one that cannot save `LEAST_GAIN` more than the best so far is skipped.
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
    """Restore the call that a delta was made of, given its complete parent. Raises BrokenDelta.

    `proven`: do not check hashes. `hashes`: speeds up restoring one call after another; by call id.
    """
    ref = call.parent
    if ref is None:
        return call
    if parent.call_id != ref.call_id or (parent.parent is not None):
        raise BrokenDelta(
            f"call {call.call_id} is a delta of {ref.call_id}, not of {parent.call_id}, which was "
            "read in its place"
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
    """The tokens that a prompt may share with a call: its prompt and its first choice, packed."""
    tokens = (call.prompt_token_ids or b"") + answer_tokens(call)
    return tokens[: len(tokens) - len(tokens) % 4]


def answer_tokens(call: LlmCall) -> bytes:
    """The tokens of a call's first choice, packed."""
    return (call.choices[0].token_ids or b"") if call.choices else b""


def no_such_prompt(call: LlmCall) -> BrokenDelta:
    """Make the error of a restored prompt that is not the recorded one."""
    parent = call.parent.call_id if call.parent else "nothing"
    return BrokenDelta(
        f"call {call.call_id}: its prompt, restored from that of {parent}, does not have the "
        "recorded hash"
    )


def body_of(delta: LlmCall, before: bytes, *, proven: bool = False) -> bytes:
    """Restore a delta's body in UTF-8, given its parent's. Raises BrokenDelta.

    `proven`: do not check its checksum.
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
            f"call {delta.call_id}: its request, restored from that of its parent, does not have "
            "the recorded checksum"
        )
    return body


class _Sought:
    """A call for which a parent is searched."""

    def __init__(self, call: LlmCall) -> None:
        self.call = call
        self.tokens = call.prompt_token_ids or b""
        self.body = (call.request or "").encode()
        self.size = len(self.tokens) + len(self.body)
        """Most bytes that any delta of the call can save."""
        self._first = self.tokens[:_THIRD]
        self._head, self._tail = self.body[:_THIRD], self.body[-_THIRD:]

    def at_most(self, link: Link) -> int:
        """Upper bound of the bytes that a delta of this link saves.

        Looks only at the beginning of the tokens, and at both ends of the body.
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
    """The common parts of a call and a link."""

    def __init__(self, sought: _Sought, link: Link) -> None:
        self.link = link
        self.tokens = _equal(link.tokens, sought.tokens) // 4
        self.head, self.tail = _ends(link.request, sought.body)
        self.saved = 4 * self.tokens + self.head + self.tail
        """Bytes that the delta saves."""
        self._sought = sought

    def delta(self) -> LlmCall:
        """Make the delta."""
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
    """Lengths of the common beginning and of the common end behind it, in whole characters."""
    head = _equal(left, right)
    while 0 < head < len(right) and _is_inner(right[head]):
        head -= 1
    tail = _equal_ends(left, right, min(len(left), len(right)) - head)
    while tail and _is_inner(right[len(right) - tail]):
        tail -= 1
    return head, tail


def _equal(left: bytes, right: bytes) -> int:
    """Length of the common beginning. Compares slices, which is faster than a loop over bytes."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    low, high = _around_first_unequal(most, lambda low, high: left[low:high] == right[low:high])
    return low + _alike(left[low:high], right[low:high], "big")


def _equal_ends(left: bytes, right: bytes, most: int) -> int:
    """Length of the common end, at most `most`."""
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
    """Two places, at most a step apart, between which two sequences begin to differ.

    Goes forward in growing steps, then bisects.
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
    """Length of the common beginning (`big`) or end (`little`) of two slices of equal length."""
    difference = int.from_bytes(left, order) ^ int.from_bytes(right, order)
    return len(left) - (difference.bit_length() + 7) // 8


def _is_boundary(data: bytes, place: int) -> bool:
    """Whether the place is between two UTF-8 characters."""
    return 0 <= place <= len(data) and (place == len(data) or not _is_inner(data[place]))


def _is_inner(byte: int) -> bool:
    """Whether the byte is a continuation byte of UTF-8."""
    return byte & 0xC0 == 0x80
