"""Packs the calls of an episode: each is a delta of an earlier one if that saves space.

The deltas are those of `fulgurite.calls.deltas`.

Within an episode a parent has no partition (`WITHIN`), and its offset is its index. `unpack`
expands all calls again. Code that needs no texts uses the prompts of `EpisodeCalls`: expanding the
texts of every turn is expensive, and they are rarely needed.
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
"""How many earlier calls are tried as a parent: about the number of agents that take turns."""

Expand = Callable[[LlmCall], LlmCall]
"""Expands a call, if it is a delta."""


def pack(calls: Iterable[LlmCall], expand: Expand | None = None) -> tuple[LlmCall, ...]:
    """Make each call of an episode a delta of an earlier one, if that saves enough.

    A delta of an earlier call of the episode stays; only its parent's place changes. Other deltas
    are expanded first; without `expand` they are left alone.
    """
    packed: list[LlmCall] = []
    places: dict[str, int] = {}
    links: dict[int, Link | LlmCall] = {}
    """By index; a call whose link was not needed yet stands as itself."""
    for index, call in enumerate(calls):
        delta = _moved(call, places)
        if delta is None and expand is not None:
            call = expand(call)
        if delta is None and call.parent is None:
            delta = shorten(call, _last_of(links, expand))[0]
        packed.append(delta or call)
        places[call.call_id] = index
        if call.parent is None or expand is not None:
            links[index] = call
    return tuple(packed)


def unpack(calls: Sequence[LlmCall], *, proven: bool = False) -> tuple[LlmCall, ...]:
    """Undo `pack`. Raises BrokenDelta.

    A delta of a call outside the episode stays. `proven`: do not check hashes.
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
    """Raise BrokenDelta if `unpack` would."""
    parents = _parents(calls)
    _prompts(calls, parents, proven=False)
    _bodies(calls, parents)


class EpisodeCalls:
    """The calls of an episode, packed and checked, or expanded."""

    def __init__(self, calls: Sequence[LlmCall]) -> None:
        self.calls = calls
        self.prompts = _prompts(calls, _parents(calls), proven=True)
        """Full prompt of each call (packed ids); None if it has none or its parent is missing."""

    @cached_property
    def expanded(self) -> tuple[LlmCall, ...]:
        """The calls with their texts."""
        return unpack(self.calls, proven=True)


def _moved(delta: LlmCall, places: Mapping[str, int]) -> LlmCall | None:
    """Change a delta's parent to its place in the episode; None if the parent is not there."""
    ref = delta.parent
    place = None if ref is None else places.get(ref.call_id)
    if ref is None or place is None:
        return None
    if ref.partition == WITHIN:
        return delta
    moved = msgspec.structs.replace(ref, partition=WITHIN, offset=place)
    return msgspec.structs.replace(delta, parent=moved)


def _last_of(links: dict[int, Link | LlmCall], expand: Expand | None) -> list[Link]:
    """The last links; they are made when they are first needed."""
    found: list[Link] = []
    for index in list(links)[-_LOOKED_AT:]:
        link = links[index]
        if isinstance(link, LlmCall):
            link = links[index] = link_of(link if expand is None else expand(link), WITHIN, index)
        found.append(link)
    return found


def _parents(calls: Sequence[LlmCall]) -> list[int | None]:
    """Index of each call's parent in the episode; None without a parent there."""
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
    """Bodies in UTF-8. Their checksums are not checked: only tokens are trained."""
    bodies: list[bytes | None] = []
    for call, parent in zip(calls, parents, strict=True):
        if call.request is None:
            bodies.append(None)
        elif parent is None:
            bodies.append(call.request.encode())
        else:
            bodies.append(body_of(call, bodies[parent] or b"", proven=True))
    return bodies
