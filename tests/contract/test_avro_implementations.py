"""The compiled functions and fastavro write the same bytes and read the same values."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from fulgurite.avro.codec import Codec
from fulgurite.errors import InvalidEvent
from fulgurite.events import EVENT_TYPES, AgentReward, Event
from tests.contract.golden_bytes import GOLDEN
from tests.contract.strategies import events

COMPILED = Codec()
FASTAVRO = Codec(implementation="fastavro")
EVENTS: dict[str, Any] = json.loads((GOLDEN / "events.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EVENTS)
def test_golden_events_are_the_same_for_both(name: str) -> None:
    data = base64.b64decode(EVENTS[name]["bytes"])
    event = FASTAVRO.decode(data)
    assert event == COMPILED.decode(data)
    assert FASTAVRO.encode(event) == data
    assert FASTAVRO.headers(event) == COMPILED.headers(event)


@pytest.mark.parametrize("event_type", EVENT_TYPES, ids=lambda t: t.__name__)
def test_any_event_is_the_same_for_both(event_type: type[Event]) -> None:
    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(event=events(event_type))
    def holds(event: Event) -> None:
        data = COMPILED.encode(event)
        assert FASTAVRO.encode(event) == data
        assert FASTAVRO.decode(data) == COMPILED.decode(data) == event

    holds()


@pytest.mark.parametrize("codec", [COMPILED, FASTAVRO], ids=["compiled", "fastavro"])
def test_both_refuse_what_does_not_fit(codec: Codec) -> None:
    reward = AgentReward(
        event_id="e1",
        event_time=1,
        group_id="g",
        rollout_id="r",
        name="n",
        final=True,
        source="rest",
    )
    with pytest.raises(InvalidEvent, match="AgentReward e1"):
        codec.encode(msgspec.structs.replace(reward, event_time=1 << 70))
    with pytest.raises(InvalidEvent, match="AgentReward"):
        codec.decode(codec.encode(reward)[:-3])
