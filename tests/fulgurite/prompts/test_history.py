"""Which versions there are, and which one a rollout has by the time at which it began."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import PromptKind
from fulgurite.events import Event, PromptUpdate
from fulgurite.prompts.history import AS_SENT, EFFECT_DELAY_MS, PromptHistory
from tests.fulgurite.prompts.prompt_updates import rollback, version
from tests.synthetic import make_call


def history(*events: Event | None) -> PromptHistory:
    found = PromptHistory()
    for event in events:
        found.apply(event)
    return found


def in_force(found: PromptHistory, began_at: int, role: str = "") -> str | None:
    prompt = found.in_force("policy", role, began_at + EFFECT_DELAY_MS)
    return None if prompt is None else prompt.version


def test_a_rollout_has_the_version_that_was_in_force_when_it_began() -> None:
    found = history(version(1, at=10), version(2, at=20), rollback("prompt@1", at=30))
    assert [in_force(found, at) for at in (9, 10, 19, 20, 29, 30)] == [
        None, "prompt@1", "prompt@1", "prompt@2", "prompt@2", "prompt@1",
    ]  # fmt: skip
    assert found.in_force("policy", "", 10) is None, "gateways may not have read it yet"


def test_a_rollback_to_none_serves_requests_as_they_are_sent() -> None:
    found = history(version(1, at=10), rollback(None, at=20))
    assert in_force(found, 25) is None
    assert found.current("policy", None) is None
    change = found.last_change("policy", None)
    assert change is not None
    assert change.kind is PromptKind.rollback


def test_a_role_without_a_version_of_its_own_has_that_of_the_alias() -> None:
    found = history(
        version(1, at=10), version(2, at=20, role="critic"), rollback(None, at=30, role="critic")
    )
    assert [in_force(found, at, "critic") for at in (15, 25, 35)] == [
        "prompt@1", "prompt@2", "prompt@1",
    ]  # fmt: skip
    assert in_force(found, 25, "writer") == in_force(found, 25) == "prompt@1"
    assert found.scopes() == [("policy", None), ("policy", "critic")]


def test_the_log_decides_where_clocks_differ() -> None:
    found = history(version(1, at=50), version(2, at=20))
    assert in_force(found, 49) is None
    assert in_force(found, 50) == "prompt@2"


def test_the_first_of_two_that_claim_a_version_wins() -> None:
    first, second = version(1, at=10, system="a"), version(1, at=11, system="b")
    other = msgspec.structs.replace(second, event_id="another id")
    found = history(first, second, other)
    assert found.find("policy", "prompt@1") == first
    assert found.versions("policy") == [first]


def test_what_is_no_change_changes_nothing() -> None:
    unknown = msgspec.structs.replace(version(1), kind=PromptKind.unknown, event_id="u")
    malformed = msgspec.structs.replace(version(1), version="policy@1.3", event_id="m")
    nameless = msgspec.structs.replace(version(1), version=None, event_id="n")
    found = history(None, make_call(), unknown, malformed, nameless, rollback("prompt@9", at=5))
    assert found.scopes() == []
    assert found.current("policy", None) is None
    assert found.last_change("policy", None) is None
    assert found.find("policy", None) is None
    assert found.find("other", "prompt@1") is None
    assert found.next_version("policy") == "prompt@1"


def test_versions_are_counted_per_alias() -> None:
    found = history(version(1), version(7), version(1, alias="other"))
    assert found.next_version("policy") == "prompt@8"
    assert found.next_version("other") == "prompt@2"
    assert found.has("other")
    assert not found.has("third")
    assert found.versions("third") == []


@given(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=12), st.integers(0, 60))
def test_reading_the_log_again_changes_nothing(numbers: list[int], began_at: int) -> None:
    events = [version(n, at=10 * n) for n in numbers]
    once, twice = history(*events), history(*events, *events)
    assert in_force(once, began_at) == in_force(twice, began_at)
    assert once.versions("policy") == twice.versions("policy")


def candidate(number: int, **fields: Any) -> PromptUpdate:
    return msgspec.structs.replace(version(number, **fields), kind=PromptKind.candidate)


def named(found: PromptHistory, prompt: str, role: str = "") -> str | None:
    held = found.in_force("policy", role, 100 + EFFECT_DELAY_MS, prompt)
    return None if held is None else held.version


def test_a_candidate_is_in_force_only_where_it_is_named() -> None:
    found = history(version(1, at=10), candidate(2, at=20), candidate(2, at=21, system="late"))
    assert in_force(found, 100) == "prompt@1"
    assert named(found, "prompt@2") == "prompt@2"
    assert named(found, AS_SENT) is None
    assert named(found, "prompt@9") == "prompt@1", "the gateway refuses an unknown one before"
    assert found.next_version("policy") == "prompt@3"
    assert found.aliases() == ["policy"]
    assert history(candidate(1)).scopes() == []
    assert history(rollback(None, at=1)).aliases() == []


def test_a_named_version_counts_in_its_own_scope() -> None:
    found = history(
        version(1, at=10),
        version(2, at=20, role="critic"),
        candidate(3, at=30, role="critic"),
        candidate(4, at=30),
    )
    assert (named(found, "prompt@3", "critic"), named(found, "prompt@3")) == (
        "prompt@3",
        "prompt@1",
    )
    assert (named(found, "prompt@4", "critic"), named(found, "prompt@4")) == (
        "prompt@2",
        "prompt@4",
    )
    assert (named(found, AS_SENT, "critic"), named(found, AS_SENT)) == ("prompt@2", None)


def test_a_promoted_candidate_is_in_force_and_a_rollback_returns() -> None:
    promoted = msgspec.structs.replace(
        rollback("prompt@2", at=30), event_id="up", kind=PromptKind.promoted
    )
    proposed = msgspec.structs.replace(
        rollback("prompt@2", at=25), event_id="may", kind=PromptKind.proposed
    )
    unknown = msgspec.structs.replace(promoted, event_id="?", version="prompt@9")
    found = history(
        version(1, at=10), candidate(2, at=20), proposed, promoted, unknown, rollback(None, at=40)
    )
    assert [in_force(found, at) for at in (29, 30, 40)] == ["prompt@1", "prompt@2", None]
