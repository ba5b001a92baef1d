"""Finds retried calls: the agent repeated a request and used the later answer.

A call counts as retried when all of this holds:

- it gave one answer, and no other call builds on that answer;
- a later call has the same role, policy and prompt, and began after this one had ended;
- some call builds on the later call's answer.

A call builds on an answer when its prompt continues it, by tokens or else by messages. Siblings
that ran at the same time (best-of-n in parallel, `n` > 1) are branches, not retries. If calls build
on no sibling, or on all of them, none counts as retried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fulgurite.enums import CallOutcome
from fulgurite.episodes.episode_deltas import EpisodeCalls
from fulgurite.events import LlmCall
from fulgurite.trajectories.prefix_breaks import continues


def find_retried_calls(calls: EpisodeCalls, ignored: Collection[str] = ()) -> frozenset[str]:
    """Ids of the retried calls of an attempt, whose calls may be in any order.

    `ignored`: ids of calls that count for nothing.
    """
    found: set[str] = set()
    for siblings in _siblings(calls, ignored):
        used = {
            call.call_id: any(
                _builds(other, call) for other in calls.expanded if other.call_id not in ignored
            )
            for call in siblings
        }
        found |= {
            call.call_id
            for call in siblings
            if not used[call.call_id]
            and any(
                used[later.call_id] and later.started_at >= call.finished_at for later in siblings
            )
        }
    return frozenset(found)


def _siblings(calls: EpisodeCalls, ignored: Collection[str]) -> Iterator[list[LlmCall]]:
    """Yield groups of two or more successful calls with one answer and the same prompt."""
    asked: dict[tuple[str, str | None, int], list[int]] = {}
    for index, (call, prompt) in enumerate(zip(calls.calls, calls.prompts, strict=True)):
        answered = call.outcome is CallOutcome.success and len(call.choices) == 1
        if prompt and answered and call.call_id not in ignored:
            # By length first: most prompts differ in length, and hashing them would be slow.
            asked.setdefault((call.agent, call.policy, len(prompt)), []).append(index)
    for indices in asked.values():
        if len(indices) > 1:
            alike: dict[bytes | None, list[LlmCall]] = {}
            for index in indices:
                alike.setdefault(calls.prompts[index], []).append(calls.expanded[index])
            yield from (calls for calls in alike.values() if len(calls) > 1)


def _builds(other: LlmCall, call: LlmCall) -> bool:
    """Whether `other` builds on the answer of `call`. Clocks differ, so times do not count."""
    [choice] = call.choices
    stream = (call.prompt_token_ids or b"") + (choice.token_ids or b"")
    by_tokens = bool(choice.token_ids) and (other.prompt_token_ids or b"").startswith(stream)
    return by_tokens or continues(call, choice, other)
