"""An episode's calls as deltas of one another: small, and whole for who reads them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import WITHIN, link_of, shorten
from fulgurite.episodes.episode_deltas import EpisodeCalls, pack, prove, unpack
from fulgurite.episodes.stitching import stitch
from fulgurite.errors import BrokenDelta, InvalidEvent
from fulgurite.events import Episode, LlmCall
from fulgurite.trajectories.building import build_trajectories
from tests.fulgurite.recorded import REPLACE, conversation, logged, read
from tests.synthetic import make_status


@given(
    st.integers(1, 20), st.integers(0, 1000), st.integers(0, 9), st.randoms(use_true_random=False)
)
def test_an_episode_and_its_rows_are_what_they_are_without_deltas(
    turns: int, spice: int, rewrite_every: int, order: random.Random
) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    done = make_status(at=9_000)
    restored = read(logged(calls))
    order.shuffle(restored)
    plain, with_deltas = stitch([*calls, done]), stitch([done, *restored])
    assert plain is not None
    assert with_deltas is not None
    assert plain == with_deltas
    assert build_trajectories(plain) == build_trajectories(with_deltas)


@given(st.integers(1, 30), st.integers(0, 1000), st.integers(0, 9))
def test_an_episodes_calls_are_packed_and_unpacked(
    turns: int, spice: int, rewrite_every: int
) -> None:
    calls = tuple(conversation(turns, spice=spice, rewrite_every=rewrite_every))
    assert unpack(pack(calls)) == calls


def test_calls_without_texts_are_packed_and_unpacked() -> None:
    calls = tuple(REPLACE(call, request=None) for call in conversation(3))
    packed = pack(calls)
    assert all(call.parent for call in packed[1:])
    assert unpack(packed) == calls


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
    assert unpack((first, first, packed[2]))[2] == packed[2], (
        "another call is in its parent's place"
    )


@given(
    st.integers(1, 30), st.integers(0, 1000), st.integers(0, 9), st.randoms(use_true_random=False)
)
def test_deltas_of_the_log_are_packed_as_they_are(
    turns: int, spice: int, rewrite_every: int, order: random.Random
) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    held = {call.call_id: call for call in calls}
    written = logged(calls)
    in_order = pack(written, lambda call: held[call.call_id])
    assert unpack(in_order) == tuple(calls)
    assert all(
        call.request == delta.request
        for call, delta in zip(in_order, written, strict=True)
        if delta.parent
    )
    assert pack(in_order) == in_order
    # Clocks that differ may put a call before its parent: it is whole, or a delta of another.
    shuffled = order.sample(written, turns)
    assert unpack(pack(shuffled, lambda call: held[call.call_id])) == tuple(
        held[call.call_id] for call in shuffled
    )


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
    with pytest.raises(InvalidEvent, match="does not have the recorded hash"):
        codec.decode(codec.encode(REPLACE(episode, calls=(calls[0], wrong))))


@given(st.integers(1, 30), st.integers(0, 1000), st.integers(0, 9))
def test_prompts_are_put_together_without_texts(turns: int, spice: int, rewrite_every: int) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=rewrite_every)
    prompts = [call.prompt_token_ids for call in calls]
    assert EpisodeCalls(pack(calls)).prompts == prompts
    assert EpisodeCalls(calls).prompts == prompts
    assert EpisodeCalls(pack(calls)).expanded == tuple(calls)


def test_prompts_that_are_not_there() -> None:
    first, second, third = conversation(3)
    textual = REPLACE(second, prompt_token_ids=None, prompt_hash=None, choices=())
    elsewhere = shorten(third, [link_of(second, 0, 0)])[0]
    assert EpisodeCalls([*pack([first, textual]), elsewhere]).prompts == [
        first.prompt_token_ids,
        None,
        None,
    ]


@given(st.integers(2, 12), st.integers(0, 1000), st.data())
def test_a_row_that_is_cut_from_packed_calls_is_the_same(
    turns: int, spice: int, data: st.DataObject
) -> None:
    calls = conversation(turns, spice=spice, rewrite_every=data.draw(st.integers(0, 5)))
    again = REPLACE(
        calls[0],
        call_id="again",
        started_at=calls[0].finished_at + 1,
        finished_at=calls[0].finished_at + 2,
    )
    episode = stitch(
        [*calls, *([again] if data.draw(st.booleans()) else []), make_status(at=9_000)]
    )
    assert episode is not None
    assert build_trajectories(REPLACE(episode, calls=pack(episode.calls))) == build_trajectories(
        episode
    )


def broken(delta: LlmCall, **what: object) -> tuple[LlmCall, ...]:
    return (conversation(1)[0], REPLACE(delta, **what))


def test_what_cannot_be_made_whole_is_noticed() -> None:
    delta = pack(conversation(2))[1]
    assert delta.parent is not None
    prove(broken(delta))
    shorter = REPLACE(delta.parent, shared_tokens=7)
    for calls, told in [
        (broken(delta, prompt_hash="another"), "does not have the recorded hash"),
        (broken(delta, parent=shorter), "does not have the recorded hash"),
        (broken(delta, request="1 2"), "does not say what it shares"),
        (broken(delta, request="1 99999 00000000\n"), "does not say what it shares"),
        (broken(delta, request="-1 0 00000000\n"), "does not say what it shares"),
    ]:
        with pytest.raises(BrokenDelta, match=told):
            prove(calls)
        with pytest.raises(BrokenDelta, match=told):
            unpack(calls)


def test_a_delta_of_a_delta_that_cannot_be_made_whole_is_noticed() -> None:
    first, second, third = pack(conversation(3))
    assert third.parent is not None
    assert third.parent.offset == 1
    stray = REPLACE(
        second, parent=None if second.parent is None else REPLACE(second.parent, partition=3)
    )
    with pytest.raises(BrokenDelta, match="whose own parent is not in the episode"):
        unpack([first, stray, third])
