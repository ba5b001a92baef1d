"""A call that extends an earlier one is stored as what is new in it: an agent's fiftieth turn repeats forty-nine.

`shorten` makes the delta, `restore` the call that it was made of, to the byte. In a delta (`parent` is set)

- `prompt_token_ids` lacks the first `shared_tokens` ids: they are those of the parent's prompt and first choice, as far as both agree.
  The hash of the full prompt tells whether what was put together is right.
- `request` is `HEAD TAIL CRC32`, a line feed and the middle of the body: its first HEAD and last TAIL bytes (UTF-8) are those of the
  parent's body. Clients repeat messages, tools and settings word for word, whatever the API; no JSON is parsed, so no byte is lost.
- everything else is as it was; `shared_messages` says how many of the parent's messages lie in HEAD, for people who look at `llm.calls`.

A parent is a call of the same attempt, in the same partition, at a lower offset. Every 64th link of a chain is whole, so that no
more records have to be read to restore any. A gain of less than `LEAST_GAIN` bytes is not worth a delta. `pack` and `unpack` do the same
within one episode.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from fulgurite.errors import BrokenDelta
from fulgurite.events import LlmCall, ParentRef, Record
from fulgurite.tokens import prompt_hash

CHAIN = 64
"""Links of a chain, the whole one included: a reader that starts anywhere reads so many records, at most. A whole link repeats all that was
said before it: with one in sixteen, the log of a conversation of fifty turns was three times as large."""

LEAST_GAIN = 512
"""Bytes: a parent's name and place take some 150, and zstd makes small repetitions cheap anyway."""

_THIRD = LEAST_GAIN // 3

WITHIN = -1
"""In place of a partition: the parent is a call of the same episode, and the offset its index."""

_STEP = 64
"""Bytes: conversations that differ mostly do so in their first line."""

_LOOKED_AT = 4
"""Earlier calls of an episode that a call may extend: as many as agents that take turns, mostly."""


Whole = Callable[[LlmCall], LlmCall]
"""Makes a call whole, if it is not."""


class Link(Record, frozen=True, kw_only=True):
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
        call_id=call.call_id, partition=partition, offset=offset, depth=depth, tokens=_tokens(call), request=(call.request or "").encode()
    )


def shorten(call: LlmCall, links: Sequence[Link]) -> tuple[LlmCall, int]:
    """The call as a delta of the link that saves most, and its depth; the call itself, and 0, if none is worth it.

    Links in order of time, looked at from the newest: one that could save less than `LEAST_GAIN` beyond the best so far is not compared.
    """
    if call.prompt_token_ids is not None and (call.prompt_hash is None or len(call.prompt_token_ids) % 4):
        return call, 0
    body = None if call.request is None else call.request.encode()
    best: _Overlap | None = None
    for link in reversed(links):
        if _at_most(call, body, link) < (LEAST_GAIN if best is None else best.saved + LEAST_GAIN):
            continue
        overlap = _Overlap(call, body, link)
        best = overlap if best is None or overlap.saved > best.saved else best
    if best is None or best.saved < LEAST_GAIN or best.link.depth + 1 == CHAIN:
        return call, 0
    return best.delta(call, body), best.link.depth + 1


def restore(call: LlmCall, parent: LlmCall, *, proven: bool = False) -> LlmCall:
    """The call that a delta was made of, given its whole parent. `proven`: without a look at hashes. Raises BrokenDelta."""
    ref = call.parent
    if ref is None:
        return call
    if parent.call_id != ref.call_id or (parent.parent is not None):
        raise BrokenDelta(f"call {call.call_id} is a delta of {ref.call_id}, not of {parent.call_id} as it was read")
    return msgspec.structs.replace(
        call, prompt_token_ids=_prompt(call, ref, parent, proven), request=_request(call, ref, parent, proven), parent=None
    )


def pack(calls: Iterable[LlmCall], whole: Whole | None = None) -> tuple[LlmCall, ...]:
    """The calls of an episode, each a delta of an earlier one where that is worth it.

    A call that is a delta of an earlier one of them stays what it is, and says where its parent is now: nothing is compared. Others that
    are deltas are made whole first; without `whole` they are left alone.
    """
    packed: list[LlmCall] = []
    places: dict[str, int] = {}
    links: dict[int, Link | LlmCall] = {}
    """By index; a call is one of which no link was needed yet."""
    for index, call in enumerate(calls):
        delta = _moved(call, places)
        if delta is None and whole is not None:
            call = whole(call)
        if delta is None and call.parent is None:
            delta = shorten(call, _last_of(links, whole))[0]
        packed.append(delta or call)
        places[call.call_id] = index
        if call.parent is None or whole is not None:
            links[index] = call
    return tuple(packed)


def unpack(calls: Iterable[LlmCall], *, proven: bool = False) -> tuple[LlmCall, ...]:
    """The inverse of `pack`: a delta of anything but an earlier call of the episode stays what it is. `proven` as for `restore`.

    Raises BrokenDelta.
    """
    whole: list[LlmCall] = []
    for call in calls:
        parent = _within(call, whole)
        whole.append(call if parent is None else restore(call, parent, proven=proven))
    return tuple(whole)


def _moved(delta: LlmCall, places: Mapping[str, int]) -> LlmCall | None:
    """A delta of a call of the episode, as the episode has it; None for anything else."""
    ref = delta.parent
    place = None if ref is None else places.get(ref.call_id)
    if ref is None or place is None:
        return None
    if ref.partition == WITHIN:
        return delta
    moved = msgspec.structs.replace(ref, partition=WITHIN, offset=place, shared_messages=0)
    return msgspec.structs.replace(delta, parent=moved)


def _last_of(links: dict[int, Link | LlmCall], whole: Whole | None) -> list[Link]:
    """The last links, made now of calls of which none was needed before."""
    found: list[Link] = []
    for index in list(links)[-_LOOKED_AT:]:
        link = links[index]
        if isinstance(link, LlmCall):
            link = links[index] = link_of(link if whole is None else whole(link), WITHIN, index)
        found.append(link)
    return found


def _within(call: LlmCall, earlier: Sequence[LlmCall]) -> LlmCall | None:
    ref = call.parent
    if ref is None or ref.partition != WITHIN or not 0 <= ref.offset < len(earlier):
        return None
    return earlier[ref.offset] if earlier[ref.offset].call_id == ref.call_id else None


def _at_most(call: LlmCall, body: bytes | None, link: Link) -> int:
    """What a delta could save, from a look at the beginning of the tokens, and at beginning and end of the body."""
    most = 0
    if call.prompt_token_ids is not None:
        shared = min(len(call.prompt_token_ids), len(link.tokens))
        most += shared if call.prompt_token_ids[:_THIRD] == link.tokens[:_THIRD] else min(shared, _THIRD)
    if body is not None:
        shared = min(len(body), len(link.request))
        alike = body[:_THIRD] == link.request[:_THIRD] or body[-_THIRD:] == link.request[-_THIRD:]
        most += shared if alike else min(shared, 2 * _THIRD)
    return most


class _Overlap:
    """What a call and a link have in common."""

    def __init__(self, call: LlmCall, body: bytes | None, link: Link) -> None:
        self.link = link
        self.tokens = 0 if call.prompt_token_ids is None else _equal(link.tokens, call.prompt_token_ids) // 4
        self.head, self.tail = (0, 0) if body is None else _ends(link.request, body)

    @property
    def saved(self) -> int:
        """Bytes that need not be stored again."""
        return 4 * self.tokens + self.head + self.tail

    def delta(self, call: LlmCall, body: bytes | None) -> LlmCall:
        """The rest of the call."""
        ref = ParentRef(
            call_id=self.link.call_id,
            partition=self.link.partition,
            offset=self.link.offset,
            shared_tokens=self.tokens,
            # In an episode nobody sees it: every reader gets its calls whole.
            shared_messages=0 if self.link.partition == WITHIN else _messages_within(self.link.request, self.head),
        )
        request = None
        if body is not None:
            middle = body[self.head : len(body) - self.tail]
            request = f"{self.head} {self.tail} {zlib.crc32(body):08x}\n{middle.decode()}"
        prompt = None if call.prompt_token_ids is None else call.prompt_token_ids[4 * self.tokens :]
        return msgspec.structs.replace(call, prompt_token_ids=prompt, request=request, parent=ref)


def _tokens(call: LlmCall) -> bytes:
    answer = call.choices[0].token_ids if call.choices else None
    tokens = (call.prompt_token_ids or b"") + (answer or b"")
    return tokens[: len(tokens) - len(tokens) % 4]


def _ends(left: bytes, right: bytes) -> tuple[int, int]:
    """How many bytes both have at their beginning and, apart from these, at their end; never half a character."""
    head = _equal(left, right)
    while 0 < head < len(right) and _is_inner(right[head]):
        head -= 1
    tail = _equal_ends(left, right, min(len(left), len(right)) - head)
    while tail and _is_inner(right[len(right) - tail]):
        tail -= 1
    return head, tail


def _equal(left: bytes, right: bytes) -> int:
    """How many bytes both have at their beginning. Slices are compared as a whole, however long: no loop over bytes is as fast."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    return _first_unequal(most, lambda low, high: left[low:high] == right[low:high])


def _equal_ends(left: bytes, right: bytes, most: int) -> int:
    """How many bytes, `most` at most, both have at their end."""
    all_of_left, all_of_right = len(left), len(right)
    if left[all_of_left - most :] == right[all_of_right - most :]:
        return most
    return _first_unequal(
        most, lambda low, high: left[all_of_left - high : all_of_left - low] == right[all_of_right - high : all_of_right - low]
    )


def _first_unequal(most: int, agree: Callable[[int, int], bool]) -> int:
    """The first place, below `most`, at which two sequences differ: past it in growing steps, then back in halves."""
    low, high = 0, _STEP
    while high < most and agree(low, high):
        low, high = high, 4 * high
    high = min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if agree(low, middle):
            low = middle
        else:
            high = middle
    return low


def _is_inner(byte: int) -> bool:
    """Whether a character of UTF-8 does not begin with this byte."""
    return byte & 0xC0 == 0x80


class _Messages(msgspec.Struct):
    messages: list[msgspec.Raw] | None = None
    input: list[msgspec.Raw] | str | None = None


_read_messages = msgspec.json.Decoder(_Messages).decode


def _messages_within(body: bytes, head: int) -> int:
    """How many of a body's messages (or items of its input) lie in its first bytes."""
    count = place = 0
    for item in _items(body):
        place = body.find(item, place) + len(bytes(item))
        if place > head:
            break
        count += 1
    return count


def _items(body: bytes) -> Sequence[msgspec.Raw]:
    try:
        found = _read_messages(body)
    except msgspec.DecodeError:
        return ()
    items = found.messages or found.input
    return items if isinstance(items, list) else ()


def _prompt(call: LlmCall, ref: ParentRef, parent: LlmCall, proven: bool) -> bytes | None:
    if call.prompt_token_ids is None:
        return None
    prompt = _tokens(parent)[: 4 * ref.shared_tokens] + call.prompt_token_ids
    if not proven and prompt_hash(prompt) != call.prompt_hash:
        raise BrokenDelta(f"call {call.call_id}: its prompt, put together with that of {ref.call_id}, has not the hash that was recorded")
    return prompt


def _request(call: LlmCall, ref: ParentRef, parent: LlmCall, proven: bool) -> str | None:
    if call.request is None:
        return None
    line, _, middle = call.request.partition("\n")
    before = parent.request or ""
    try:
        head, tail, check = line.split(" ")
        if before.isascii():
            # A byte is a character there: nothing is encoded to find the places.
            request = before[: int(head)] + middle + before[len(before) - int(tail) :]
        else:
            held = before.encode()
            request = (held[: int(head)] + middle.encode() + held[len(held) - int(tail) :]).decode()
        # Within an episode the parent is where it says, under its own name: what is to be proved is what is trained, the tokens.
        right = proven or ref.partition == WITHIN or zlib.crc32(request.encode()) == int(check, 16)
    except ValueError as error:
        raise BrokenDelta(f"call {call.call_id}: its request does not say what it shares with {parent.call_id}: {error}") from error
    if not right:
        raise BrokenDelta(f"call {call.call_id}: its request, put together with that of {parent.call_id}, is not what was recorded")
    return request
