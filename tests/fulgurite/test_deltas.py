"""Deltas: whatever an agent says, the call that is restored is the call that was recorded."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.codec import Codec
from fulgurite.deltas import CHAIN, WITHIN, Link, link_of, pack, restore, shorten, unpack
from fulgurite.errors import BrokenDelta, InvalidEvent
from fulgurite.events import Episode, LlmCall, ParentRef
from fulgurite.stitching import stitch
from fulgurite.tokens import pack_ids, prompt_hash, unpack_ids
from fulgurite.trajectories import cut
from tests.synthetic import make_call, make_status

Json = dict[str, Any]
REPLACE = msgspec.structs.replace


def conversation(turns: int, *, spice: int = 0, rewrite_every: int = 0) -> list[LlmCall]:
    """Calls that extend one another, with tools; now and then an agent forgets its past."""
    chance = random.Random(spice)
    tools = [{"type": "function", "function": {"name": f"tool_{n}", "description": "ä" * 100}} for n in range(5)]
    messages: list[Json] = [{"role": "system", "content": "Be brief. " * 30}]
    prompt = list(range(300))
    calls: list[LlmCall] = []
    for turn in range(turns):
        if rewrite_every and turn % rewrite_every == rewrite_every - 1:
            messages, prompt = messages[:1], prompt[:200]
        messages = [*messages, {"role": "user", "content": f"question {turn} ☃ " * chance.randint(1, 20)}]
        prompt = [*prompt, *(chance.randrange(50_000) for _ in range(chance.randint(1, 200)))]
        answer = [chance.randrange(50_000) for _ in range(chance.randint(1, 100))]
        said: Json = {"role": "assistant", "content": f"answer {turn}"}
        call = make_call(turn=turn, at=1_000 + turn, prompt=prompt, answers=[answer], replies=[said], salt=spice)
        body = json.dumps({"messages": messages, "model": "policy", "tools": tools}, ensure_ascii=bool(turn % 7 == 6))
        calls.append(REPLACE(call, request=body, prompt_hash=prompt_hash(call.prompt_token_ids or b"")))
        messages = [*messages, said]
        prompt = [*prompt, *answer, 5]
    return calls


def logged(calls: list[LlmCall]) -> list[LlmCall]:
    """As a gateway writes them, one after the other, in partition 3."""
    links: list[Link] = []
    written: list[LlmCall] = []
    for offset, call in enumerate(calls):
        delta, depth = shorten(call, links[-4:])
        written.append(delta)
        links.append(link_of(call, 3, offset, depth))
    return written


def read(written: list[LlmCall]) -> list[LlmCall]:
    """As a reader of that partition restores them."""
    whole: list[LlmCall] = []
    for call in written:
        whole.append(restore(call, whole[call.parent.offset]) if call.parent else call)
    return whole


@given(st.integers(1, 40), st.integers(0, 1000), st.integers(0, 9))
def test_every_call_is_restored_to_the_byte(turns: int, spice: int, rewrite_every: int) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    written = logged(calls)
    assert read(written) == calls
    assert any(call.parent for call in written) or turns == 1


@given(st.integers(1, 20), st.integers(0, 1000), st.integers(0, 9), st.randoms(use_true_random=False))
def test_an_episode_and_its_rows_are_what_they_are_without_deltas(turns: int, spice: int, rewrite_every: int, order: random.Random) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    done = make_status(at=9_000)
    restored = read(logged(calls))
    order.shuffle(restored)
    plain, with_deltas = stitch([*calls, done]), stitch([done, *restored])
    assert plain is not None
    assert with_deltas is not None
    assert plain == with_deltas
    assert cut(plain) == cut(with_deltas)


def test_a_delta_holds_what_is_new_and_says_what_it_shares() -> None:
    first, second = conversation(2)
    delta, depth = shorten(second, [link_of(first, 3, 17)])
    assert depth == 1
    shared = len(unpack_ids(first.prompt_token_ids or b"")) + len(unpack_ids(first.choices[0].token_ids or b""))
    assert delta.parent == ParentRef(call_id=first.call_id, partition=3, offset=17, shared_tokens=shared, shared_messages=2)
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
    hashed = [REPLACE(call, prompt_hash=prompt_hash(call.prompt_token_ids or b"")) for call in small]
    assert shorten(hashed[1], [link_of(hashed[0], 0, 0)]) == (hashed[1], 0)
    first, second = conversation(2)
    unproved = REPLACE(second, prompt_hash=None)
    assert shorten(unproved, [link_of(first, 0, 0)]) == (unproved, 0)
    assert shorten(second, []) == (second, 0)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_calls_that_share_no_third_of_a_gain_are_left_alone(tokens: int, head: int, tail: int) -> None:
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
    textual = [REPLACE(call, prompt_token_ids=None, prompt_hash=None, choices=()) for call in (first, second)]
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
    first, second = (REPLACE(make_call(turn=turn, prompt=None), request=body) for turn, body in enumerate((parent, child)))
    delta, _ = shorten(second, [link_of(first, 0, 0)])
    assert len(delta.request or "") < 320
    assert restore(delta, first) == second


@pytest.mark.parametrize(("field", "shared"), [("messages", 3), ("input", 3), ("other", 0), (None, 0)])
def test_shared_messages_are_counted_where_the_api_has_them(field: str | None, shared: int) -> None:
    items = [{"role": "user", "content": "x" * 300}] * 3
    bodies = [json.dumps({field: items}), json.dumps({field: [*items, "new"]})] if field else ["x" * 900, "x" * 901]
    first, second = (REPLACE(make_call(turn=turn, prompt=None), request=body) for turn, body in enumerate(bodies))
    delta, _ = shorten(second, [link_of(first, 0, 0)])
    assert delta.parent is not None
    assert delta.parent.shared_messages == shared


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
    with pytest.raises(BrokenDelta, match="has not the hash"):
        restore(delta, REPLACE(first, prompt_token_ids=pack_ids([9, 9])))
    with pytest.raises(BrokenDelta, match="is not what was recorded"):
        restore(delta, REPLACE(first, request=(first.request or "").replace("brief", "short")))
    for request in ("x y z\n", "1 2\n", ""):
        with pytest.raises(BrokenDelta, match="does not say what it shares"):
            restore(REPLACE(delta, request=request), first)


@given(st.integers(1, 30), st.integers(0, 1000), st.integers(0, 9))
def test_an_episodes_calls_are_packed_and_unpacked(turns: int, spice: int, rewrite_every: int) -> None:
    calls = tuple(conversation(turns, spice=spice, rewrite_every=rewrite_every))
    assert unpack(pack(calls)) == calls


def test_calls_that_nobody_restored_stay_as_they_are_in_an_episode() -> None:
    first, second, third = conversation(3)
    delta, _ = shorten(second, [link_of(first, 0, 0)])
    packed = pack([delta, second, third])
    assert packed[:2] == (delta, second)
    assert packed[2].parent is not None
    assert packed[2].parent.partition == WITHIN
    assert unpack(packed) == (delta, second, third)
    assert unpack(packed[2:]) == packed[2:], "its parent is not there"
    assert unpack((first, second, packed[2]))[2] == third
    assert unpack((first, first, packed[2]))[2] == packed[2], "another call is in its parent's place"


@given(st.integers(1, 30), st.integers(0, 1000), st.integers(0, 9), st.randoms(use_true_random=False))
def test_deltas_of_the_log_are_packed_as_they_are(turns: int, spice: int, rewrite_every: int, order: random.Random) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    held = {call.call_id: call for call in calls}
    written = logged(calls)
    in_order = pack(written, lambda call: held[call.call_id])
    assert unpack(in_order) == tuple(calls)
    assert all(call.request == delta.request for call, delta in zip(in_order, written, strict=True) if delta.parent)
    assert pack(in_order) == in_order
    # Clocks that differ may put a call before its parent: it is whole, or a delta of another.
    shuffled = order.sample(written, turns)
    assert unpack(pack(shuffled, lambda call: held[call.call_id])) == tuple(held[call.call_id] for call in shuffled)


def test_a_whole_call_amid_deltas_is_packed_against_what_they_are_made_of() -> None:
    first, second, third = conversation(3)
    delta, _ = shorten(second, [link_of(first, 0, 0)])
    made: list[LlmCall] = []

    def whole(call: LlmCall) -> LlmCall:
        made.append(call)
        return second if call is delta else call

    packed = pack([first, delta, third], whole)
    assert [call.parent and call.parent.offset for call in packed] == [None, 0, 1]
    assert unpack(packed) == (first, second, third)
    assert made.count(delta) == 1, "what is not compared is not made whole"
    episode = stitch([first, delta, make_status(at=9_000)], whole)
    assert episode is not None
    assert REPLACE(episode, calls=(first, second)) == stitch([first, second, make_status(at=9_000)])


def test_packed_ids_that_are_cut_make_no_delta() -> None:
    first, second = conversation(2)
    odd = REPLACE(second, prompt_token_ids=(second.prompt_token_ids or b"") + b"x")
    assert shorten(odd, [link_of(first, 0, 0)]) == (odd, 0)
    torn = REPLACE(first, choices=(REPLACE(first.choices[0], token_ids=b"xyz"),))
    assert restore(shorten(second, [link_of(torn, 0, 0)])[0], torn) == second


def test_an_episode_is_small_on_the_wire_and_whole_for_who_reads_it() -> None:
    calls = conversation(30)
    episode = stitch([*calls, make_status(at=9_000)])
    assert episode is not None
    codec = Codec()
    data = codec.encode(episode)
    assert codec.decode(data) == episode
    assert len(data) < sum(len(codec.encode(call)) for call in calls) / 5
    held = codec.decode(data, packed=True)
    assert isinstance(held, Episode)
    assert sum(call.parent is not None for call in held.calls) > len(calls) / 2
    assert REPLACE(held, calls=unpack(held.calls, proven=True)) == episode
    assert codec.encode(held) == data
    wrong = REPLACE(calls[1], prompt_hash="another")
    with pytest.raises(InvalidEvent, match="has not the hash"):
        codec.decode(codec.encode(REPLACE(episode, calls=(calls[0], wrong))))
