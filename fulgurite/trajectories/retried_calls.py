"""Finds calls that were tried again: the agent repeated a request and used the later answer.

A call counts as retried when all of this holds:

- it gave one answer, and no other call builds on that answer;
- a later call has the same role, policy and prompt, and began after this one had ended;
- some call builds on the later call's answer.

A call builds on an answer when its prompt continues it, by tokens or, where these differ, by
messages. Siblings that ran at the same time (best-of-n in parallel, `n` > 1) are branches, not
retries. If no sibling is built on, or all are, none counts as retried.
"""

from __future__ import annotations

from collections.abc import Iterator

from fulgurite.enums import CallOutcome
from fulgurite.episodes.episode_deltas import EpisodeCalls
from fulgurite.events import LlmCall
from fulgurite.trajectories.prefix_breaks import continues


def find_retried_calls(calls: EpisodeCalls) -> frozenset[str]:
    """Ids of the retried calls of an attempt, whatever the order of its calls."""
    found: set[str] = set()
    for siblings in _siblings(calls):
        used = {
            call.call_id: any(_builds(other, call) for other in calls.whole) for call in siblings
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


def _siblings(calls: EpisodeCalls) -> Iterator[list[LlmCall]]:
    """Successful calls with one answer that were asked the same, two or more of each."""
    asked: dict[tuple[str, str | None, int], list[int]] = {}
    for index, (call, prompt) in enumerate(zip(calls.calls, calls.prompts, strict=True)):
        if prompt and call.outcome is CallOutcome.success and len(call.choices) == 1:
            # By length first: prompts of an agent's turns mostly differ in that, and hashing them
            # would be most of the work.
            asked.setdefault((call.agent, call.policy, len(prompt)), []).append(index)
    for indices in asked.values():
        if len(indices) > 1:
            alike: dict[bytes | None, list[LlmCall]] = {}
            for index in indices:
                alike.setdefault(calls.prompts[index], []).append(calls.whole[index])
            yield from (calls for calls in alike.values() if len(calls) > 1)


def _builds(other: LlmCall, call: LlmCall) -> bool:
    """Whether a call goes on from another's answer. Clocks are not asked: gateways have
    one each.
    """
    [choice] = call.choices
    stream = (call.prompt_token_ids or b"") + (choice.token_ids or b"")
    by_tokens = bool(choice.token_ids) and (other.prompt_token_ids or b"").startswith(stream)
    return by_tokens or continues(call, choice, other)
