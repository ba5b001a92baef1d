"""Timelines and data sets of whatever agents wrote."""

from __future__ import annotations

import json

from hypothesis import given, settings

from fulgurite.events import LlmCall
from fulgurite.untrusted_json import encoded
from services.judge.prompt import question
from services.replay.exports import Filters, dpo, sft, transitions
from services.replay.timeline import rollout_ids, timeline
from services.rewarder.closing_settings import ClosingSettings
from tests import foreign
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call, make_declared, make_reward, make_status


@settings(max_examples=50)
@given(foreign.calls())
def test_a_rollout_of_anything_is_shown_exported_and_put_to_a_judge(calls: list[LlmCall]) -> None:
    log = MemoryLog()
    log.append(
        make_declared(0, 2),
        *calls,
        make_status(at=2_000),
        make_call(0, 1),
        make_status(0, 1),
        make_reward(),
        make_reward(0, 1, 0.5),
    )
    (group,) = log.groups()
    found = [
        timeline(group, rollout, ClosingSettings(), tokens=True) for rollout in rollout_ids(group)
    ]
    assert len(found[0]["events"]) == len(calls) + 3
    lines = [
        *found,
        *sft([group], Filters(), ClosingSettings()),
        *dpo([group], Filters(), ClosingSettings(), 0.0),
        *transitions([group], Filters(), ClosingSettings()),
    ]
    for line in lines:
        json.loads(encoded(line))
    conversations = [line["messages"] for line in sft([group], Filters(), ClosingSettings())]
    if len(conversations) > 1:
        assert question(conversations, "", 1_000).size == 2
