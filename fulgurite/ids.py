"""Makes and parses ids that contain one another: a completion id names its rollout and its group.

    group       gr_01k5x7...          26 characters: 48 bits of time, 80 of chance (a ULID, lower case);
                                      of undeclared calls 40 of chance and 40 that only their key's owner's id bears
    rollout     ro_01k5x7..._3_k7q2m9  the group's 26, its index, and a tag only this deployment can make
    completion  chatcmpl-01k5x7..._3_k7q2m9_0_c9x...   rollout, attempt, 8 characters of chance, 4 of a tag like the rollout's

Agents see a completion id with the prefix that their API has (`cmpl-`, `resp_`, `msg_`, `embd-`),
perhaps followed by `.` and an upstream's own id; events have the canonical form above.

So a stateless gateway finds the Kafka key of any request that names any of them, and knows an id it
never gave out. Derived ids (`derive_id`) are hashes of what they are derived from, so that a
repeated computation repeats its ids. Times and random bytes are arguments.
"""  # noqa: E501 - a table

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from functools import lru_cache

import msgspec

ROLLOUT_KEY_PREFIX = "fg-"
"""API keys that begin so are those of one rollout."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FIRST_MS = 1_577_836_800_000
"""The beginning of 2020. No id is older."""
_LAST_MS = 4_102_444_800_000
"""The beginning of 2100."""

_MARK_BITS = 40
"""Bits of a group id that mark its owner. The mark cannot be made without the secret."""

_FROM_RFC4648 = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", _ALPHABET.encode())
_TO_INT = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_CORE = r"[0-9a-hjkmnp-tv-z]{26}"
_ROLLOUT = rf"({_CORE})_([0-9]{{1,6}})_([0-9a-hjkmnp-tv-z]{{8}})"
_GROUP_RE = re.compile(rf"gr_({_CORE})")
_ROLLOUT_RE = re.compile(rf"ro_{_ROLLOUT}")
_COMPLETION_RE = re.compile(
    rf"(?:chatcmpl-|cmpl-|resp_|msg_|embd-)({_ROLLOUT}_([0-9]{{1,4}})_[0-9a-hjkmnp-tv-z]{{12}})(?:\.(.*))?",
    re.DOTALL,
)
_CANONICAL = "chatcmpl-"
_TAG_LENGTH = 4
_REMEMBERED = 4096
"""Number of attempts whose id is cached: an attempt makes many calls."""


class MalformedId(ValueError):
    """A string is not an id of the kind asked for."""


class RolloutRef(msgspec.Struct, frozen=True):
    """The parts of a rollout id."""

    group_id: str
    rollout_id: str
    index: int


class CompletionRef(msgspec.Struct, frozen=True):
    """The parts of a completion id."""

    rollout: RolloutRef
    attempt: int
    completion_id: str
    """In its canonical form."""
    upstream_id: str | None = None
    """The upstream's own id, if the id that the agent saw contains it."""


_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)


def _base32(number: int, length: int) -> str:
    """Encode a number in `length` characters; `length` must be even."""
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(5 * (length - 2), -1, -10)])


def _tag(core: str, index: int, secret: bytes) -> str:
    digest = hmac.digest(secret, f"{core}_{index}".encode(), "sha256")
    return _base32(int.from_bytes(digest[:5]), 8)


def mint_group(time_ms: int, chance: bytes) -> str:
    """Make a group id from Unix milliseconds and 10 random bytes; it sorts by time."""
    return "gr_" + _base32((time_ms << 80) | int.from_bytes(chance[:10]), 26)


def owned_group(time_ms: int, chance: bytes, owner: str, secret: bytes) -> str:
    """Make a group id with its owner's mark (`is_owned`) from Unix milliseconds and 5 random bytes.

    It sorts by time.
    """
    return _marked((time_ms << 40) | int.from_bytes(chance[:5]), owner, secret)


def minted_at(group_id: str) -> int | None:
    """The time at which a group id was made, in Unix milliseconds; None if it contains none.

    An id of `external_group` contains no time, but one in a hundred looks as if it did.
    """
    match = _GROUP_RE.fullmatch(group_id)
    time_ms = 0 if match is None else int(match[1].translate(_TO_INT), 32) >> 80
    return time_ms if _FIRST_MS <= time_ms < _LAST_MS else None


def external_group(owner: str, name: str, secret: bytes) -> str:
    """Derive the group id of a session that a user named from its owner and name."""
    digest = hmac.digest(secret, f"{owner}\0{name}".encode(), "sha256")
    return _marked(int.from_bytes(digest[:11]), owner, secret)


def is_owned(group_id: str, owner: str, secret: bytes) -> bool:
    """Whether `owned_group` or `external_group` made the id for this owner with this secret."""
    match = _GROUP_RE.fullmatch(group_id)
    return match is not None and hmac.compare_digest(
        group_id, _marked(int(match[1].translate(_TO_INT), 32) >> _MARK_BITS, owner, secret)
    )


def _marked(number: int, owner: str, secret: bytes) -> str:
    """Make the group id of an 88-bit number and the owner's mark."""
    digest = hmac.digest(secret, f"owner\0{number:022x}\0{owner}".encode(), "sha256")
    return "gr_" + _base32((number << _MARK_BITS) | int.from_bytes(digest[: _MARK_BITS // 8]), 26)


def subject_of(person: str, secret: bytes) -> str:
    """Derive the id under which a person's data is found.

    Without the secret, it shows neither who the person is, nor whether two names are one person.
    """
    digest = hmac.digest(secret, f"subject\0{person}".encode(), "sha256")
    return "su_" + _base32(int.from_bytes(digest[:16]), 26)


def rollout_of(group_id: str, index: int, secret: bytes) -> str:
    """Make the id of rollout `index` (from 0) of a group. Raises MalformedId for a bad group id."""
    match = _GROUP_RE.fullmatch(group_id)
    if match is None:
        raise MalformedId(f"{group_id!r} is not a group id (gr_ and 26 characters)")
    return f"ro_{match[1]}_{index}_{_tag(match[1], index, secret)}"


def completion_of(rollout_id: str, attempt: int, chance: bytes, secret: bytes) -> str:
    """Make a completion id within an attempt, from 5 random bytes.

    Raises MalformedId for a bad rollout id.
    """
    head = _completions_of(rollout_id, attempt) + _base32(int.from_bytes(chance[:5]), 8)
    return head + _completion_tag(head, secret)


def is_tagged(completion_id: str, secret: bytes) -> bool:
    """Whether `completion_of` made a canonical id with this secret.

    One in a million other ids passes. Ids of earlier releases have no tag.
    """
    head, tag = completion_id[:-_TAG_LENGTH], completion_id[-_TAG_LENGTH:]
    return hmac.compare_digest(tag, _completion_tag(head, secret))


def _completion_tag(head: str, secret: bytes) -> str:
    # Every call needs one: copying a keyed hash takes half the time of starting it with the key.
    keyed = _keyed(secret).copy()
    keyed.update(head.encode())
    return _base32(int.from_bytes(keyed.digest()[:3]) >> 4, _TAG_LENGTH)


@lru_cache(16)
def _keyed(secret: bytes) -> hmac.HMAC:
    return hmac.new(secret, digestmod="sha256")


@lru_cache(_REMEMBERED)
def _completions_of(rollout_id: str, attempt: int) -> str:
    """The common prefix of an attempt's completion ids."""
    core = parse_rollout(rollout_id).rollout_id.removeprefix("ro_")
    return f"{_CANONICAL}{core}_{attempt}_"


def parse_rollout(text: str) -> RolloutRef:
    """Parse a rollout id, without checking its tag (`is_genuine`). Raises MalformedId."""
    match = _ROLLOUT_RE.fullmatch(text)
    if match is None:
        raise MalformedId(f"{text!r} is not a rollout id (ro_<26 characters>_<index>_<tag>)")
    return RolloutRef("gr_" + match[1], text, int(match[2]))


def public_completion(completion_id: str, prefix: str, upstream_id: str | None = None) -> str:
    """Turn a canonical completion id into the form of an API, such as `resp_...`.

    `upstream_id`: the upstream's own id, which is appended.
    """
    public = prefix + completion_id.removeprefix(_CANONICAL)
    return public if upstream_id is None else f"{public}.{upstream_id}"


def parse_completion(text: str) -> CompletionRef:
    """Parse a completion id in the form of any API. Raises MalformedId."""
    match = _COMPLETION_RE.fullmatch(text)
    if match is None:
        raise MalformedId(
            f"{text!r} is not a completion id (chatcmpl-<rollout>_<attempt>_<12 characters>, "
            "or the same after cmpl-, resp_ or msg_)"
        )
    rollout = RolloutRef("gr_" + match[2], f"ro_{match[2]}_{match[3]}_{match[4]}", int(match[3]))
    return CompletionRef(rollout, int(match[5]), _CANONICAL + match[1], match[6])


def is_genuine(rollout: RolloutRef, secret: bytes) -> bool:
    """Whether the id's tag was made with this secret, which means by this deployment."""
    core = rollout.group_id.removeprefix("gr_")
    return hmac.compare_digest(
        rollout.rollout_id, f"ro_{core}_{rollout.index}_{_tag(core, rollout.index, secret)}"
    )


def episode_id(rollout_id: str, attempt: int) -> str:
    """Make an episode id: `rollout/attempt`."""
    return f"{rollout_id}/{attempt}"


def action_id(call_id: str, choice: int) -> str:
    """Make an action id: `call_id#choice`. Actions are what the ledger counts."""
    return f"{call_id}#{choice}"


def derive_id(*parts: str | int) -> str:
    """Derive an id of 32 characters from parts; equal parts in the same order give equal ids."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return base64.b32encode(digest[:20]).translate(_FROM_RFC4648).decode()
