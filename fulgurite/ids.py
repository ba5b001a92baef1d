"""Makes and parses ids that contain one another: a completion id names its rollout and its group.

    group       gr_01k5x7...          26 characters: 48 bits of time, 80 of chance (a ULID, lower case);
                                      of undeclared calls 40 of chance and 40 that only their key's owner's id bears
    rollout     ro_01k5x7..._3_k7q2m9  the group's 26, its index, and a tag only this deployment can make
    completion  chatcmpl-01k5x7..._3_k7q2m9_0_c9x...   rollout, attempt, 8 characters of chance, 4 of a tag like the rollout's

Agents see a completion id with the prefix that their API has (`cmpl-`, `resp_`, `msg_`, `embd-`),
perhaps followed by `.` and an upstream's own id; events have the canonical form above.

So a stateless gateway finds the Kafka key of any request that names any of them, and knows an id it
never gave out. Derived ids (`derive_id`) are hashes of what they are derived from, so that a
repeated computation repeats its ids. Nothing here reads a clock or a random source: both are passed
in.
"""  # noqa: E501 - a table

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from functools import lru_cache

import msgspec

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FIRST_MS = 1_577_836_800_000
"""The beginning of 2020: no id was minted before."""

_MARK_BITS = 40
"""Of a group id: whose it is. Nobody without the secret can make the mark of an id for another
owner.
"""

_FROM_RFC4648 = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", _ALPHABET.encode())
_TO_INT = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_CORE = r"[0-9a-hjkmnp-tv-z]{26}"
_ROLLOUT = rf"({_CORE})_(\d{{1,6}})_([0-9a-hjkmnp-tv-z]{{8}})"
_GROUP_RE = re.compile(rf"gr_({_CORE})")
_ROLLOUT_RE = re.compile(rf"ro_{_ROLLOUT}")
_COMPLETION_RE = re.compile(
    rf"(?:chatcmpl-|cmpl-|resp_|msg_|embd-)({_ROLLOUT}_(\d{{1,4}})_[0-9a-hjkmnp-tv-z]{{12}})(?:\.(.*))?",
    re.DOTALL,
)
_CANONICAL = "chatcmpl-"
_TAG_LENGTH = 4
_REMEMBERED = 4096
"""Attempts: an agent makes many calls in one, and its rollout's id is taken apart for the first."""


class MalformedId(ValueError):
    """A string is not an id of the kind asked for."""


class RolloutRef(msgspec.Struct, frozen=True):
    """A rollout id, taken apart."""

    group_id: str
    rollout_id: str
    index: int


class CompletionRef(msgspec.Struct, frozen=True):
    """A completion id, taken apart."""

    rollout: RolloutRef
    attempt: int
    completion_id: str
    """In its canonical form."""
    upstream_id: str | None = None
    """The upstream's own id, where the id that the agent saw holds it."""


_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def _base32(number: int, length: int) -> str:
    """`length` is even."""
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(5 * (length - 2), -1, -10)])


def _tag(core: str, index: int, secret: bytes) -> str:
    digest = hmac.digest(secret, f"{core}_{index}".encode(), "sha256")
    return _base32(int.from_bytes(digest[:5]), 8)


def mint_group(time_ms: int, chance: bytes) -> str:
    """A new group id from Unix milliseconds and 10 random bytes; sorts by time."""
    return "gr_" + _base32((time_ms << 80) | int.from_bytes(chance[:10]), 26)


def owned_group(time_ms: int, chance: bytes, owner: str, secret: bytes) -> str:
    """A new group id from Unix milliseconds and 5 random bytes; it sorts by time and bears its
    owner's mark (`is_owned`).
    """
    return _marked((time_ms << 40) | int.from_bytes(chance[:5]), owner, secret)


def minted_at(group_id: str) -> int | None:
    """Unix milliseconds at which a group id was minted; None if it holds no time: `external_group`
    made it, or it is no group id.

    One in a thousand of the former looks as if it held a time between 2020 and now.
    """
    match = _GROUP_RE.fullmatch(group_id)
    time_ms = 0 if match is None else int(match[1].translate(_TO_INT), 32) >> 80
    return time_ms if time_ms >= _FIRST_MS else None


def external_group(owner: str, name: str, secret: bytes) -> str:
    """The group id of a session that a user named: the same owner and name always give the
    same id.
    """
    digest = hmac.digest(secret, f"{owner}\0{name}".encode(), "sha256")
    return _marked(int.from_bytes(digest[:11]), owner, secret)


def is_owned(group_id: str, owner: str, secret: bytes) -> bool:
    """Whether `owned_group` or `external_group` made the id for this owner with this secret."""
    match = _GROUP_RE.fullmatch(group_id)
    return match is not None and hmac.compare_digest(
        group_id, _marked(int(match[1].translate(_TO_INT), 32) >> _MARK_BITS, owner, secret)
    )


def _marked(number: int, owner: str, secret: bytes) -> str:
    """The group id of an 88-bit number, with the owner's mark behind it."""
    digest = hmac.digest(secret, f"owner\0{number:022x}\0{owner}".encode(), "sha256")
    return "gr_" + _base32((number << _MARK_BITS) | int.from_bytes(digest[: _MARK_BITS // 8]), 26)


def subject_of(person: str, secret: bytes) -> str:
    """The id under which a person's data is found: nobody without the secret can tell whose it is,
    or whether two names are one.
    """
    digest = hmac.digest(secret, f"subject\0{person}".encode(), "sha256")
    return "su_" + _base32(int.from_bytes(digest[:16]), 26)


def rollout_of(group_id: str, index: int, secret: bytes) -> str:
    """The id of rollout `index` (from 0) of a group. Raises MalformedId for what is not a
    group id.
    """
    match = _GROUP_RE.fullmatch(group_id)
    if match is None:
        raise MalformedId(f"{group_id!r} is not a group id (gr_ and 26 characters)")
    return f"ro_{match[1]}_{index}_{_tag(match[1], index, secret)}"


def completion_of(rollout_id: str, attempt: int, chance: bytes, secret: bytes) -> str:
    """A new completion id within an attempt, from 5 random bytes. Raises MalformedId for what is
    not a rollout id.
    """
    head = _completions_of(rollout_id, attempt) + _base32(int.from_bytes(chance[:5]), 8)
    return head + _completion_tag(head, secret)


def is_tagged(completion_id: str, secret: bytes) -> bool:
    """Whether `completion_of` made a canonical id with this secret: one in a million others looks
    so, and those of before had no tag.
    """
    head, tag = completion_id[:-_TAG_LENGTH], completion_id[-_TAG_LENGTH:]
    return hmac.compare_digest(tag, _completion_tag(head, secret))


def _completion_tag(head: str, secret: bytes) -> str:
    # Each call makes one: a keyed hash that is copied costs half of one that is begun with the key.
    keyed = _keyed(secret).copy()
    keyed.update(head.encode())
    return _base32(int.from_bytes(keyed.digest()[:3]) >> 4, _TAG_LENGTH)


@lru_cache(16)
def _keyed(secret: bytes) -> hmac.HMAC:
    return hmac.new(secret, digestmod="sha256")


@lru_cache(_REMEMBERED)
def _completions_of(rollout_id: str, attempt: int) -> str:
    """How all of an attempt begin."""
    core = parse_rollout(rollout_id).rollout_id.removeprefix("ro_")
    return f"{_CANONICAL}{core}_{attempt}_"


def parse_rollout(text: str) -> RolloutRef:
    """Take a rollout id apart. Raises MalformedId; whether it was given out here is `is_genuine`'s
    to say.
    """
    match = _ROLLOUT_RE.fullmatch(text)
    if match is None:
        raise MalformedId(f"{text!r} is not a rollout id (ro_<26 characters>_<index>_<tag>)")
    return RolloutRef("gr_" + match[1], text, int(match[2]))


def public_completion(completion_id: str, prefix: str, upstream_id: str | None = None) -> str:
    """A canonical completion id as an API's agents see it: `resp_...`, with the upstream's own id
    in it if one is given.
    """
    public = prefix + completion_id.removeprefix(_CANONICAL)
    return public if upstream_id is None else f"{public}.{upstream_id}"


def parse_completion(text: str) -> CompletionRef:
    """Take a completion id apart, in any form that an agent saw. Raises MalformedId."""
    match = _COMPLETION_RE.fullmatch(text)
    if match is None:
        raise MalformedId(
            f"{text!r} is not a completion id (chatcmpl-<rollout>_<attempt>_<12 characters>, "
            "or the same after cmpl-, resp_ or msg_)"
        )
    rollout = RolloutRef("gr_" + match[2], f"ro_{match[2]}_{match[3]}_{match[4]}", int(match[3]))
    return CompletionRef(rollout, int(match[5]), _CANONICAL + match[1], match[6])


def is_genuine(rollout: RolloutRef, secret: bytes) -> bool:
    """Whether the id's tag was made with this secret, that is: by this deployment."""
    core = rollout.group_id.removeprefix("gr_")
    return hmac.compare_digest(
        rollout.rollout_id, f"ro_{core}_{rollout.index}_{_tag(core, rollout.index, secret)}"
    )


def episode_id(rollout_id: str, attempt: int) -> str:
    """`rollout/attempt`."""
    return f"{rollout_id}/{attempt}"


def action_id(call_id: str, choice: int) -> str:
    """`call_id#choice`: the unit of accounting."""
    return f"{call_id}#{choice}"


def derive_id(*parts: str | int) -> str:
    """32 characters that depend on every part and its place; equal parts give equal ids."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return base64.b32encode(digest[:20]).translate(_FROM_RFC4648).decode()
