"""What reads the log never dies of a reward in it, and never tells of one that it is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fulgurite.untrusted_json import encoded
from services.cli.rollouts import show
from services.replay.exports import Filters, dpo, sft, transitions
from services.replay.groups import Group
from services.replay.scoring import compare, scores
from services.replay.timeline import rollout_ids, timeline
from services.rewarder.closing_settings import ClosingSettings
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call, make_declared, make_reward, make_status

ODD = st.floats() | st.sampled_from([1e308, -1e308, 1.7e308, 1e39, 1e12, 1e6])


def group_of(values: Sequence[float], weight: float = 1.0) -> Group:
    log = MemoryLog()
    log.append(make_declared(0, len(values), weights={"style": weight}))
    for index, value in enumerate(values):
        asked: list[dict[str, object]] = [{"role": "user", "content": "1+1"}]
        call = make_call(0, index, messages=asked)
        paid = (
            make_reward(0, index, value),
            make_reward(0, index, value, name="style", call_id=call.call_id, choice=0),
        )
        log.append(call, make_status(0, index), *paid)
    (group,) = log.groups()
    return group


@settings(max_examples=50, deadline=None)
@given(st.lists(ODD, min_size=1, max_size=4), ODD)
def test_any_reward_is_shown_exported_and_compared(values: list[float], weight: float) -> None:
    group = group_of(values, weight)
    shown = [timeline(group, rollout, ClosingSettings()) for rollout in rollout_ids(group)]
    for line in [
        *shown,
        *sft([group], Filters(), ClosingSettings()),
        *dpo([group], Filters(), ClosingSettings(), 0.0),
        *transitions([group], Filters(), ClosingSettings()),
    ]:
        json.loads(encoded(line))
    for line in shown:
        show(line, Console(quiet=True), 400)
    found = compare([(scores(group), scores(group, weights={"style": 0.0, "reward": weight}))])
    sides = [side for side in (found.before, found.after) if side is not None]
    assert all(
        map(
            math.isfinite,
            [number for side in sides for number in (side.mean, side.deviation, *side.quartiles)],
        )
    )


@pytest.mark.parametrize("value", [1e308, -1e308, math.inf, 1e39])
def test_a_data_set_says_why_a_rollout_has_no_reward(value: float) -> None:
    group = group_of([value, 0.5])
    poisoned, good = sft([group], Filters(), ClosingSettings())
    assert (poisoned["reward"], poisoned["reason"]) == (None, "reward_failed")
    assert (good["reward"], "reason" in good) == (1.0, False)
    assert list(dpo([group], Filters(), ClosingSettings(), 0.0)) == []
    assert [line["reward"] for line in transitions([group], Filters(), ClosingSettings())] == [1.0]


def test_an_infinite_reward_is_shown_as_what_it_is() -> None:
    group = group_of([math.inf])
    events = timeline(group, rollout_ids(group)[0], ClosingSettings())["events"]
    assert [event["value"] for event in events if event["what"] == "reward"] == ["inf", "inf"]
