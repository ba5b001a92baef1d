"""Whatever a type can hold survives the wire, and no bytes make the codec do anything but answer or
raise its own errors.
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.avro.schemas import ReleasedSchemas
from fulgurite.errors import CodecError
from fulgurite.events import EVENT_TYPES, Event
from tests.contract.strategies import events

CODEC = Codec()


@pytest.mark.parametrize("event_type", EVENT_TYPES, ids=lambda t: t.__name__)
def test_every_event_survives_the_wire(event_type: type[Event]) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(event=events(event_type))
    def holds(event: Event) -> None:
        data = CODEC.encode(event)
        assert CODEC.decode(data) == event
        assert CODEC.encode(CODEC.decode(data)) == data

    holds()


@given(data=st.binary(max_size=64))
def test_any_bytes_are_an_event_or_a_codec_error(data: bytes) -> None:
    _decode_or_refuse(data)


@given(datum=st.binary(max_size=64), event_type=st.sampled_from(EVENT_TYPES))
def test_any_datum_under_a_known_schema_is_an_event_or_a_codec_error(
    datum: bytes, event_type: type[Event]
) -> None:
    _decode_or_refuse(b"\x00" + ReleasedSchemas().id_of(event_type).to_bytes(4, "big") + datum)


def _decode_or_refuse(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        assert isinstance(CODEC.decode(data), Event)
