"""Decides from a call's event whether the ledger counts it, and which calls of an episode are left
out of training.

The gateway writes `LlmCall.training_use` once; everything here is a function of the events, so a
replay agrees with what was decided live.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fulgurite.enums import Mode, TrainingUse
from fulgurite.events import LlmCall

_OPTED_IN = frozenset({TrainingUse.live, TrainingUse.quota})
_LEFT_OUT = frozenset({TrainingUse.excluded, TrainingUse.unknown})


def is_opted_in(call: LlmCall) -> bool:
    """Whether a call of mode `live` is counted like one of mode `train`."""
    return call.mode is Mode.live and call.training_use in _OPTED_IN


def is_left_out(call: LlmCall) -> bool:
    """Whether the call's episode may not be trained at all."""
    return call.training_use in _LEFT_OUT


def is_counted(call: LlmCall) -> bool:
    """Whether the ledger counts the call's actions, if a trained policy gave them."""
    return call.mode is Mode.train or is_opted_in(call)


def is_over_quota(calls: Iterable[LlmCall]) -> bool:
    """Whether an episode with these calls is beyond its owner's quota."""
    return any(call.training_use is TrainingUse.quota for call in calls)


def wants_fallback(calls: Sequence[LlmCall]) -> bool:
    """Whether a judge may reward live traffic with these calls where nobody votes: it is opted in,
    within its quota, and nothing of it is left out.
    """
    return (
        any(map(is_opted_in, calls))
        and not is_over_quota(calls)
        and not any(map(is_left_out, calls))
    )


def find_left_out_calls(calls: Sequence[LlmCall]) -> frozenset[str]:
    """Ids of the calls of an attempt that may not be trained: all of them where one is left out;
    in live traffic that is opted in, those of aliases that are not.
    """
    if any(map(is_left_out, calls)):
        return frozenset(call.call_id for call in calls)
    return find_uncounted_calls(calls)


def find_uncounted_calls(calls: Sequence[LlmCall]) -> frozenset[str]:
    """Ids of the calls that no ledger counts, of an attempt with calls that are opted in."""
    if not any(map(is_opted_in, calls)):
        return frozenset()
    return frozenset(call.call_id for call in calls if not is_counted(call))
