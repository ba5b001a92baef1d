"""Deltas: whatever an agent says, the call that is restored is the call that was recorded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.calls.deltas import CHAIN, Link, link_of, restore, shorten
from fulgurite.errors import BrokenDelta
from fulgurite.events import LlmCall, ParentRef
from fulgurite.tokens import PromptHashes, pack_ids, prompt_hash, unpack_ids
from tests.fulgurite.recorded import REPLACE, conversation, logged, read
from tests.synthetic import make_call


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 9))
def test_every_call_is_restored_to_the_byte(turns: int, spice: int, rewrite_every: int) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    written = logged(calls)
    assert read(written) == calls
    assert any(call.parent for call in written) or turns == 1


@given(st.integers(1, 20), st.integers(0, 1000), st.integers(0, 5), st.integers(1, 4))
def test_prompts_are_proved_from_where_the_one_before_ends(
    turns: int, spice: int, rewrite_every: int, most: int
) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    hashes = PromptHashes(most)
    whole: list[LlmCall] = []
    for call in logged(calls):
        parent = whole[call.parent.offset] if call.parent else None
        whole.append(call if parent is None else restore(call, parent, hashes=hashes))
        if parent is not None and call.prompt_token_ids:
            wrong = REPLACE(
                call,
                prompt_token_ids=call.prompt_token_ids[:-1]
                + bytes([call.prompt_token_ids[-1] ^ 1]),
            )
            with pytest.raises(BrokenDelta, match="does not have the recorded hash"):
                restore(wrong, parent, hashes=PromptHashes(most))
    assert whole == calls


def test_a_long_conversation_is_proved_with_one_state() -> None:
    calls = conversation(4)
    hashes = PromptHashes(1)
    parent = calls[0]
    for call in calls[1:]:
        delta, _ = shorten(call, [link_of(parent, 0, 0)])
        parent = restore(delta, parent, hashes=hashes)
        assert parent == call


def test_a_delta_holds_what_is_new_and_says_what_it_shares() -> None:
    first, second = conversation(2)
    delta, depth = shorten(second, [link_of(first, 3, 17)])
    assert depth == 1
    shared = len(unpack_ids(first.prompt_token_ids or b"")) + len(
        unpack_ids(first.choices[0].token_ids or b"")
    )
    assert delta.parent == ParentRef(
        call_id=first.call_id, partition=3, offset=17, shared_tokens=shared, shared_messages=0
    )
    assert unpack_ids(delta.prompt_token_ids or b"")[0] == 5
    line, middle = (delta.request or "").split("\n", 1)
    assert middle.startswith(', {"role": "assistant", "content": "answer 0"}')
    assert "tool_" not in middle, "what follows the messages is the parent's too"
    assert len(line.split(" ")) == 3
    assert (delta.prompt_hash, delta.choices) == (second.prompt_hash, second.choices)


def test_one_link_in_so_many_of_a_chain_is_whole() -> None:
    links: list[Link] = []
    whole: list[int] = []
    for offset, call in enumerate(conversation(2 * CHAIN + 8)):
        delta, depth = shorten(call, links[-1:])
        links.append(link_of(call, 0, offset, depth))
        if delta.parent is None:
            whole.append(offset)
    assert whole == [0, CHAIN, 2 * CHAIN]


def test_of_several_parents_the_one_that_saves_most_is_taken() -> None:
    calls = conversation(5)
    stranger = link_of(conversation(1, spice=9)[0], 0, 0)
    delta, _ = shorten(calls[4], [link_of(calls[2], 0, 2), link_of(calls[3], 0, 3), stranger])
    assert delta.parent is not None
    assert delta.parent.offset == 3


def test_small_gains_and_prompts_without_a_hash_are_left_alone() -> None:
    small = [make_call(turn=turn, prompt=[1, 2, 3, turn]) for turn in range(2)]
    hashed = [
        REPLACE(call, prompt_hash=prompt_hash(call.prompt_token_ids or b"")) for call in small
    ]
    assert shorten(hashed[1], [link_of(hashed[0], 0, 0)]) == (hashed[1], 0)
    first, second = conversation(2)
    unproved = REPLACE(second, prompt_hash=None)
    assert shorten(unproved, [link_of(first, 0, 0)]) == (unproved, 0)
    assert shorten(second, []) == (second, 0)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_calls_that_share_no_third_of_a_gain_are_left_alone(
    tokens: int, head: int, tail: int
) -> None:
    def one(salt: int) -> LlmCall:
        chance = random.Random(salt)
        prompt = [*range(tokens), *(chance.randrange(100, 50_000) for _ in range(400))]
        body = "a" * head + "".join(chance.choice("bcdefgh") for _ in range(400)) + "z" * tail
        call = make_call(turn=salt, prompt=prompt)
        return REPLACE(call, request=body, prompt_hash=prompt_hash(call.prompt_token_ids or b""))

    call = one(1)
    stored, _ = shorten(call, [link_of(one(0), 3, 0)])
    if tokens < 42 and head < 160 and tail < 160:
        assert stored == call
    if 4 * tokens + head + tail > 600:
        assert stored.parent is not None


def test_calls_without_tokens_or_without_a_body_are_deltas_of_what_they_have() -> None:
    first, second = conversation(2)
    textual = [
        REPLACE(call, prompt_token_ids=None, prompt_hash=None, choices=())
        for call in (first, second)
    ]
    delta, _ = shorten(textual[1], [link_of(textual[0], 0, 0)])
    assert delta.parent is not None
    assert delta.parent.shared_tokens == 0
    assert restore(delta, textual[0]) == textual[1]
    bare = [REPLACE(call, request=None) for call in (first, second)]
    delta, _ = shorten(bare[1], [link_of(bare[0], 0, 0)])
    assert (delta.request, restore(delta, bare[0])) == (None, bare[1])
    assert restore(shorten(second, [link_of(bare[0], 0, 0)])[0], bare[0]) == second


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        ("ä" * 400 + "é", "ä" * 400 + "è"),
        ("x" * 600 + "é", "y" + "x" * 600 + "é"),
        ("é" + "x" * 600, "ũ" + "x" * 600),
        ("x" * 600, "x" * 900),
    ],
)
def test_characters_are_never_cut(parent: str, child: str) -> None:
    first, second = (
        REPLACE(make_call(turn=turn, prompt=None), request=body)
        for turn, body in enumerate((parent, child))
    )
    delta, _ = shorten(second, [link_of(first, 0, 0)])
    assert len(delta.request or "") < 320
    assert restore(delta, first) == second


def test_a_whole_call_is_its_own_restoration() -> None:
    first, second = conversation(2)
    assert restore(second, first) is second


def test_a_wrong_parent_is_noticed() -> None:
    first, second = conversation(2)
    (other,) = conversation(1, spice=5)
    delta, _ = shorten(second, [link_of(first, 0, 0)])
    with pytest.raises(BrokenDelta, match="is a delta of"):
        restore(delta, other)
    with pytest.raises(BrokenDelta, match="is a delta of"):
        restore(delta, REPLACE(first, parent=delta.parent))
    with pytest.raises(BrokenDelta, match="does not have the recorded hash"):
        restore(delta, REPLACE(first, prompt_token_ids=pack_ids([9, 9])))
    with pytest.raises(BrokenDelta, match="does not have the recorded checksum"):
        restore(delta, REPLACE(first, request=(first.request or "").replace("brief", "short")))
    for request in ("x y z\n", "1 2\n", ""):
        with pytest.raises(BrokenDelta, match="does not say what it shares"):
            restore(REPLACE(delta, request=request), first)


def test_packed_ids_that_are_cut_make_no_delta() -> None:
    first, second = conversation(2)
    odd = REPLACE(second, prompt_token_ids=(second.prompt_token_ids or b"") + b"x")
    assert shorten(odd, [link_of(first, 0, 0)]) == (odd, 0)
    torn = REPLACE(first, choices=(REPLACE(first.choices[0], token_ids=b"xyz"),))
    assert restore(shorten(second, [link_of(torn, 0, 0)])[0], torn) == second
