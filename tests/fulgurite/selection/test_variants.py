"""Names of variants: a target of a route without its share."""

from __future__ import annotations

import msgspec

from fulgurite.events import RouteTarget
from fulgurite.selection.variants import name_variant


def test_a_variant_is_named_as_its_target_is_written() -> None:
    assert name_variant(RouteTarget(policy="policy", weight=1)) == "policy"
    pinned = RouteTarget(policy="policy", version="policy@1.3", weight=1)
    assert name_variant(pinned) == "policy@1.3"
    parameters = {"top_k": 20.0, "temperature": 0.7}
    warm = RouteTarget(policy="", upstream="gpt", weight=1, parameters=parameters)
    assert name_variant(warm) == "upstream:gpt,temperature=0.7,top_k=20"
    prompted = msgspec.structs.replace(warm, prompt="prompt@2")
    assert name_variant(prompted) == "upstream:gpt,prompt@2,temperature=0.7,top_k=20"
    as_sent = msgspec.structs.replace(pinned, prompt="none")
    assert name_variant(as_sent) == "policy@1.3,prompt@none"
