"""Packs the calls of an episode: each is a delta of an earlier one where that saves space.

The deltas are those of `fulgurite.calls.deltas`.

The episode is the log there: a parent lies in no partition (`WITHIN`), and its offset is its index.
`pack` packs, `unpack` makes all calls whole again. Who needs no texts asks `EpisodeCalls` for its
prompts: what all turns of a conversation said is put together once for each of its turns, and
mostly nobody looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import msgspec

from fulgurite.calls.deltas import (
    WITHIN,
    Link,
    answer_tokens,
    body_of,
    link_of,
    no_such_prompt,
    shorten,
)
from fulgurite.errors import BrokenDelta
from fulgurite.events import LlmCall
from fulgurite.tokens import PromptHashes, prompt_hash

_LOOKED_AT = 4
"""Earlier calls of an episode that a call may extend: as many as agents that take turns, mostly."""

Whole = Callable[[LlmCall], LlmCall]
"""Makes a call whole, if it is not."""


def pack(calls: Iterable[LlmCall], whole: Whole | None = None) -> tuple[LlmCall, ...]:
    """The calls of an episode, each a delta of an earlier one where that is worth it.

    A call that is a delta of an earlier one of them stays what it is, and says where its parent is
    now: nothing is compared. Others that are deltas are made whole first; without `whole` they are
    left alone.
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


def unpack(calls: Sequence[LlmCall], *, proven: bool = False) -> tuple[LlmCall, ...]:
    """The inverse of `pack`: a delta of anything but an earlier call of the episode stays what it
    is. `proven`: without a look at hashes.

    Raises BrokenDelta.
    """
    parents = _parents(calls)
    prompts, bodies = _prompts(calls, parents, proven), _bodies(calls, parents)
    return tuple(
        call
        if parent is None
        else msgspec.structs.replace(
            call,
            prompt_token_ids=prompt,
            request=None if body is None else body.decode(),
            parent=None,
        )
        for call, parent, prompt, body in zip(calls, parents, prompts, bodies, strict=True)
    )


def prove(calls: Sequence[LlmCall]) -> None:
    """Raises BrokenDelta if `unpack` would."""
    parents = _parents(calls)
    _prompts(calls, parents, proven=False)
    _bodies(calls, parents)


class EpisodeCalls:
    """The calls of an episode, packed and proven, or whole."""

    def __init__(self, calls: Sequence[LlmCall]) -> None:
        self.calls = calls
        self.prompts = _prompts(calls, _parents(calls), proven=True)
        """Full prompt of each call, packed ids; None where it has none, or is a delta of a call
        that is not here.
        """

    @cached_property
    def whole(self) -> tuple[LlmCall, ...]:
        """The calls with their texts."""
        return unpack(self.calls, proven=True)


def _moved(delta: LlmCall, places: Mapping[str, int]) -> LlmCall | None:
    """A delta of a call of the episode, as the episode has it; None for anything else."""
    ref = delta.parent
    place = None if ref is None else places.get(ref.call_id)
    if ref is None or place is None:
        return None
    if ref.partition == WITHIN:
        return delta
    moved = msgspec.structs.replace(ref, partition=WITHIN, offset=place)
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


def _parents(calls: Sequence[LlmCall]) -> list[int | None]:
    """Where in the episode the parent of each call is; None for whole calls, and for those whose
    parent is not there.
    """
    parents: list[int | None] = []
    for index, call in enumerate(calls):
        ref, parent = call.parent, None
        if (
            ref is not None
            and ref.partition == WITHIN
            and 0 <= ref.offset < index
            and calls[ref.offset].call_id == ref.call_id
        ):
            parent = ref.offset
            if calls[parent].parent is not None and parents[parent] is None:
                raise BrokenDelta(
                    f"call {call.call_id} is a delta of {ref.call_id}, whose own parent is not "
                    "in the episode"
                )
        parents.append(parent)
    return parents


def _prompts(
    calls: Sequence[LlmCall], parents: Sequence[int | None], proven: bool
) -> list[bytes | None]:
    prompts: list[bytes | None] = []
    hashes = PromptHashes(len(calls))
    for index, (call, parent) in enumerate(zip(calls, parents, strict=True)):
        own, ref = call.prompt_token_ids, call.parent
        if own is None or ref is None or parent is None:
            prompts.append(own if ref is None else None)
            continue
        before, shared = prompts[parent] or b"", 4 * ref.shared_tokens
        goes_on = shared >= len(before)
        beyond = answer_tokens(calls[parent])[: shared - len(before)] if goes_on else b""
        prompt = b"".join((before[:shared], beyond, own))
        if not proven and call.prompt_hash != (
            hashes.of(index, prompt, parent, before) if goes_on else prompt_hash(prompt)
        ):
            raise no_such_prompt(call)
        prompts.append(prompt)
    return prompts


def _bodies(calls: Sequence[LlmCall], parents: Sequence[int | None]) -> list[bytes | None]:
    """UTF-8. Without a look at checksums: what is to be proved is what is trained, the tokens."""
    bodies: list[bytes | None] = []
    for call, parent in zip(calls, parents, strict=True):
        if call.request is None:
            bodies.append(None)
        elif parent is None:
            bodies.append(call.request.encode())
        else:
            bodies.append(body_of(call, bodies[parent] or b"", proven=True))
    return bodies
