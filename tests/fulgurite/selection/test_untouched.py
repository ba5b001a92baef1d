"""Another router changes which variant answered, and nothing else that is derived from the log."""

from __future__ import annotations

from typing import Any

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, AgentStatus, Episode, Event, LlmCall
from fulgurite.groups.closing import close_group
from tests.synthetic import group_id, make_group


def closed(**route: Any) -> list[bytes]:
    """All that closing a group writes, as bytes, if its calls had been routed so."""
    events: list[Event] = [
        msgspec.structs.replace(event, **route) if isinstance(event, LlmCall) else event
        for event in make_group(7)
    ]
    declared = next(e for e in events if isinstance(e, AgentStatus) and e.declaration is not None)
    inputs: dict[str, list[LlmCall | AgentStatus]] = {}
    for event in events:
        if isinstance(event, LlmCall | AgentStatus) and event.rollout_id is not None:
            inputs.setdefault(event.rollout_id, [declared]).append(event)
    episodes = [stitch(found) for found in inputs.values()]
    rewards = [event for event in events if isinstance(event, AgentReward)]
    codec = Codec()
    return [
        codec.encode(output)
        for output in close_group(
            group_id(7),
            declared.declaration,
            [episode for episode in episodes if isinstance(episode, Episode)],
            rewards,
        )
    ]


def test_trajectories_and_ledger_are_the_same_bytes_under_another_router() -> None:
    logged = closed(variant="policy@0.0", propensity=0.9)
    assert len(logged) == 4
    assert closed(variant="policy@0.0", propensity=0.05, cell="/short") == logged
