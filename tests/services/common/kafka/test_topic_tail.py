"""What follows policies goes on whatever one event does to it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.enums import UpdateKind
from fulgurite.events import Event, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.learning.target_version import TargetVersion
from fulgurite.topics import POLICY_UPDATES
from fulgurite.versions import MalformedVersion, parse_version
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_tail import TopicTail
from services.gateway.upstream.policies import PolicyView

versions = st.text(max_size=8) | st.sampled_from(
    ["p@1.2", "p@1", f"p@{'9' * 5_000}.1", "p@-1.0", "@1.1", "p@1.1\n"]
)
numbers = st.integers(-(2**31), 2**31 - 1)
updates = st.builds(
    PolicyUpdate,
    event_id=st.text(max_size=3),
    event_time=st.integers(-(2**63), 2**63 - 1),
    policy=st.sampled_from(["p", "q"]),
    kind=st.sampled_from(UpdateKind),
    epoch=numbers,
    step=numbers,
    version=st.none() | versions,
    learner_id=st.sampled_from(["a", "b"]),
    trained_actions=numbers,
    config=st.none() | st.text(max_size=5),
)
targets = st.builds(
    RouteTarget,
    policy=st.sampled_from(["p", "q"]),
    version=st.none() | versions,
    weight=st.floats(),
)
routes = st.builds(
    PolicyRoute,
    event_id=st.just("r"),
    event_time=st.just(0),
    alias=st.sampled_from(["a", "b"]),
    targets=st.lists(targets, max_size=3).map(tuple),
)


@given(st.lists(updates | routes, max_size=8))
def test_no_update_or_route_stops_those_who_follow(
    events: list[PolicyUpdate | PolicyRoute],
) -> None:
    target, view = TargetVersion("p"), PolicyView()
    for event in events:
        target.apply(event)
        view.apply(event)
        assert target.version().policy == "p"
        target.version(canary=True)
        target.versions()
        view.as_json({"p"})
        view.targets("a")


def test_a_version_of_thousands_of_digits_is_none() -> None:
    with pytest.raises(MalformedVersion):
        parse_version(f"p@1.{'9' * 5_000}")


def test_an_event_that_cannot_be_taken_is_passed_over() -> None:
    taken: list[Event | None] = []

    def take(event: Event | None) -> None:
        if not taken:
            taken.append(event)
            raise ValueError("no")
        taken.append(event)

    follower = cast(Any, TopicTail(KafkaSettings(), Codec(), [POLICY_UPDATES], take))
    follower._apply_safely(None)
    follower._apply_safely(None)
    assert taken == [None, None]
