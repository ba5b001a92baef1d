"""Ids describe themselves, and derived ids depend on every part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.ids import (
    MalformedId,
    action_id,
    completion_of,
    derive_id,
    episode_id,
    external_group,
    is_genuine,
    is_owned,
    is_tagged,
    mint_group,
    minted_at,
    owned_group,
    parse_completion,
    parse_rollout,
    public_completion,
    rollout_of,
    subject_of,
)

SECRET = b"a deployment's secret"
times = st.integers(0, (1 << 48) - 1)
chances = st.binary(min_size=10, max_size=10)
indices = st.integers(0, 999_999)


@given(times, chances, indices, st.integers(0, 9999), chances)
def test_a_completion_names_its_rollout_and_group(
    time_ms: int, chance: bytes, index: int, attempt: int, more: bytes
) -> None:
    group = mint_group(time_ms, chance)
    rollout = rollout_of(group, index, SECRET)
    ref = parse_completion(completion_of(rollout, attempt, more, SECRET))
    assert (ref.rollout.group_id, ref.rollout.rollout_id, ref.rollout.index, ref.attempt) == (
        group,
        rollout,
        index,
        attempt,
    )
    assert parse_rollout(rollout) == ref.rollout
    assert is_genuine(ref.rollout, SECRET)
    assert not is_genuine(ref.rollout, b"another deployment's")


@given(times, chances, chances, st.integers(0, 44))
def test_a_completion_id_that_was_changed_or_made_up_has_no_tag_of_ours(
    time_ms: int, chance: bytes, more: bytes, place: int
) -> None:
    known = completion_of(rollout_of(mint_group(time_ms, chance), 0, SECRET), 1, more, SECRET)
    assert is_tagged(known, SECRET)
    assert not is_tagged(known, b"another deployment's")
    place += len("chatcmpl-")
    changed = known[:place] + ("1" if known[place] == "0" else "0") + known[place + 1 :]
    assert not is_tagged(changed, SECRET)


@pytest.mark.parametrize("prefix", ["chatcmpl-", "cmpl-", "resp_", "msg_", "embd-"])
@pytest.mark.parametrize("theirs", [None, "resp_68af.x-y"])
def test_a_completion_is_known_by_whatever_id_the_agent_saw(
    prefix: str, theirs: str | None
) -> None:
    canonical = completion_of(
        rollout_of(mint_group(1, b"0123456789"), 2, SECRET), 3, b"12345", SECRET
    )
    seen = public_completion(canonical, prefix, theirs)
    assert seen.startswith(prefix)
    ref = parse_completion(seen)
    assert (ref.completion_id, ref.upstream_id, ref.attempt, ref.rollout.index) == (
        canonical,
        theirs,
        3,
        2,
    )


@given(times, times, chances)
def test_groups_sort_by_time(first: int, second: int, chance: bytes) -> None:
    assert (mint_group(first, chance) < mint_group(second, chance)) == (first < second)


@given(times, chances, chances)
def test_chance_tells_groups_of_one_moment_apart(time_ms: int, one: bytes, other: bytes) -> None:
    assert (mint_group(time_ms, one) == mint_group(time_ms, other)) == (one == other)


def test_a_named_session_has_one_group_per_owner() -> None:
    group = external_group("key-a", "my session", SECRET)
    assert group == external_group("key-a", "my session", SECRET)
    assert group != external_group("key-b", "my session", SECRET)
    assert group != external_group("key-a", "my session", b"another")
    assert parse_rollout(rollout_of(group, 0, SECRET)).group_id == group


def test_few_named_sessions_look_as_if_their_ids_held_a_time() -> None:
    groups = [external_group("key-a", f"session {number}", SECRET) for number in range(1_000)]
    assert sum(minted_at(group) is not None for group in groups) < 50


@given(times, chances, st.text(), st.text())
def test_a_group_of_undeclared_calls_is_its_owners_alone(
    time_ms: int, chance: bytes, owner: str, other: str
) -> None:
    for group in (
        owned_group(time_ms, chance, owner, SECRET),
        external_group(owner, "my session", SECRET),
    ):
        assert is_owned(group, owner, SECRET)
        assert is_owned(group, other, SECRET) == (owner == other)
        assert not is_owned(group, owner, b"another")
        assert parse_rollout(rollout_of(group, 0, SECRET)).group_id == group
    assert not is_owned(mint_group(time_ms, chance), owner, SECRET)
    assert owned_group(time_ms, chance, owner, SECRET)[:13] == mint_group(time_ms, chance)[:13], (
        "it sorts by time"
    )


@pytest.mark.parametrize("text", ["", "my session", "gr_", "ro_" + "0" * 26])
def test_what_is_no_group_is_nobodys(text: str) -> None:
    assert not is_owned(text, "owner", SECRET)


def test_a_person_is_the_same_subject_to_those_who_have_the_secret() -> None:
    subject = subject_of("ann@example.org", SECRET)
    assert subject == subject_of("ann@example.org", SECRET)
    assert "ann" not in subject
    assert (
        len(
            {
                subject,
                subject_of("bob@example.org", SECRET),
                subject_of("ann@example.org", b"another"),
            }
        )
        == 3
    )


@pytest.mark.parametrize(
    "text", ["", "gr_short", "ro_" + "0" * 26, "gr_" + "u" * 26, "gr_" + "0" * 26 + "\n"]
)
def test_what_is_no_group_is_refused(text: str) -> None:
    with pytest.raises(MalformedId, match="not a group id"):
        rollout_of(text, 0, SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ro_x",
        "gr_" + "0" * 26,
        "chatcmpl-123",
        "ro_" + "0" * 26 + "_1234567_00000000",
        "ro_" + "0" * 26 + "_0_0000000i",
        "ro_" + "0" * 26 + "_\u0660_00000000",
    ],
)
def test_what_is_no_rollout_is_refused(text: str) -> None:
    with pytest.raises(MalformedId, match="not a rollout id"):
        parse_rollout(text)
    with pytest.raises(MalformedId):
        completion_of(text, 0, b"12345", SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chatcmpl-abc123",
        "chatcmpl-" + "0" * 26 + "_0_00000000",
        "chatcmpl-" + "0" * 26 + "_0_00000000_\u0660_000000000000",
    ],
)
def test_what_is_no_completion_is_refused(text: str) -> None:
    with pytest.raises(MalformedId, match="not a completion id"):
        parse_completion(text)


parts = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.integers(),
    min_size=1,
    max_size=4,
)


@given(parts, parts)
def test_derived_ids_depend_on_every_part(one: list[str | int], other: list[str | int]) -> None:
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (derive_id(*one) == derive_id(*other)) == same
    assert len(derive_id(*one)) == 32


def test_names_of_episodes_and_actions() -> None:
    assert episode_id("ro_1", 2) == "ro_1/2"
    assert action_id("chatcmpl-1", 3) == "chatcmpl-1#3"


def test_a_group_id_tells_when_it_was_minted_unless_a_user_named_it() -> None:
    assert minted_at(mint_group(1_790_000_000_123, bytes(10))) == 1_790_000_000_123
    assert minted_at(mint_group(1_000, bytes(10))) is None
    assert minted_at("session") is None
    named = [minted_at(external_group("owner", str(number), b"secret")) for number in range(50)]
    assert all(time is None or time > 1_800_000_000_000 for time in named)
