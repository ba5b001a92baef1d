"""Dead letters: the same about the same record or episode, whoever asks again; with what a redriven
one needs.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.enums import Mode, TrainingUse
from fulgurite.episodes.stitching import stitch
from fulgurite.ids import action_id
from fulgurite.topics import MAX_MESSAGE_BYTES
from services.common.kafka.consumer import Record
from services.common.kafka.dead_letters import (
    actions_in,
    addressed,
    key_of,
    lost,
    lost_episode,
    unusable,
    words_of,
)
from services.common.kafka.redriving import redrive
from services.common.kafka.settings import KafkaSettings
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

RECORD = Record(
    partition=3,
    offset=17,
    timestamp=1_000,
    key=b"g",
    value=b"\x00?",
    event=None,
    error="UnknownSchema: no schema 7: none",
)


def test_a_letter_says_what_was_wrong_where_and_with_what_bytes() -> None:
    letter = unusable(RECORD, "p.episodes", "rewarder", actions=("a#0",))
    assert (letter.stage, letter.error_type, letter.error) == (
        "rewarder",
        "UnknownSchema",
        "no schema 7: none",
    )
    assert (letter.topic, letter.partition, letter.offset, letter.event_time) == (
        "p.episodes",
        3,
        17,
        1_000,
    )
    assert (letter.key, letter.value, letter.actions, key_of(letter)) == (
        b"g",
        b"\x00?",
        ("a#0",),
        "g",
    )
    assert letter == unusable(RECORD, "p.episodes", "rewarder", actions=("a#0",))


def test_each_reader_and_each_place_has_its_letter() -> None:
    places = [
        (RECORD, "a", "x"),
        (RECORD, "b", "x"),
        (RECORD, "a", "y"),
        (msgspec.structs.replace(RECORD, offset=18), "a", "x"),
    ]
    assert len({unusable(*place).event_id for place in places}) == len(places)


def test_an_event_of_another_kind_is_named() -> None:
    letter = unusable(
        msgspec.structs.replace(RECORD, event=make_reward(), error=None),
        "episodes",
        "worker",
        stage="reward-worker",
    )
    assert (letter.stage, letter.error_type, letter.error) == (
        "reward-worker",
        "Unexpected",
        "AgentReward does not belong in this topic",
    )


@pytest.mark.parametrize(("mode", "actions"), [(Mode.train, 2), (Mode.val, 0)])
def test_an_episode_takes_its_actions_with_it(mode: Mode, actions: int) -> None:
    inputs = [
        make_declared(mode=mode),
        make_call(mode=mode),
        make_call(turn=1, mode=mode),
        make_status(mode=mode),
    ]
    episode = stitch(inputs)
    assert episode is not None
    kafka = KafkaSettings.model_validate({"topic_prefix": "p."})
    letter = lost(lost_episode(episode), kafka, 2, "aggregator", "EpisodeTooLarge", "too large")
    assert (letter.topic, letter.partition, letter.offset, letter.value) == (
        "p.episodes",
        2,
        -1,
        None,
    )
    assert (key_of(letter), letter.event_time, len(letter.actions)) == (
        group_id(0),
        episode.event_time,
        actions,
    )


@given(
    st.binary(max_size=100),
    st.sampled_from([0, 1_000, 8_000_000, 8_388_300, 20_000_000]),
    st.sampled_from([0, 26, 70_000, 3_000_000]),
    st.text(max_size=9) | st.sampled_from(["\ud83d", "x" * 9_000_000]),
    st.sampled_from([0, 1, 30_000]),
)
@settings(max_examples=30)
def test_every_letter_fits_into_a_message(
    start: bytes, size: int, key: int, words: str, actions: int
) -> None:
    record = msgspec.structs.replace(
        RECORD, value=start + bytes(size), key=b"k" * key, error=f"Kind{words[:300]}: {words}"
    )
    call_id = make_call().call_id
    named = tuple(action_id(call_id, number) for number in range(actions))
    letters = addressed(unusable(record, "p.llm.calls", "aggregator", actions=named))
    codec = Codec()
    for address, letter in letters:
        assert len(codec.encode(letter)) + len(address.encode()) < MAX_MESSAGE_BYTES - 16_384
    assert tuple(action for _, letter in letters for action in letter.actions) == named
    assert len({letter.event_id for _, letter in letters}) == len(letters)
    first = letters[0][1]
    assert first.value == record.value or "do not fit into a message" in first.error
    if size < 1_000_000 and key < 70_000:
        assert (first.value, first.key) == (record.value, record.key)


def test_the_words_of_an_error_are_told_whatever_they_are() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert words_of(KeyError("x")) == "KeyError: 'x'"
    assert words_of(Silent()) == "Silent: its text cannot be read"


def test_the_actions_of_a_record_are_told_from_its_bytes() -> None:
    codec, call = Codec(), make_call()
    episode = stitch([call, make_status()])
    assert episode is not None
    assert (
        actions_in(codec, codec.encode(call))
        == actions_in(codec, codec.encode(episode))
        == (action_id(call.call_id, 0),)
    )
    assert actions_in(codec, codec.encode(make_status())) == actions_in(codec, b"?") == ()
    assert actions_in(codec, codec.encode(make_call(mode=Mode.live))) == ()
    opted_in = make_call(mode=Mode.live, use=TrainingUse.live)
    assert actions_in(codec, codec.encode(opted_in)) == (action_id(call.call_id, 0),)


def test_a_letter_without_bytes_says_where_to_look_when_it_is_redriven() -> None:
    kafka, codec = KafkaSettings.model_validate({"topic_prefix": "p."}), Codec()
    full = unusable(
        msgspec.structs.replace(RECORD, value=codec.encode(make_call())),
        "p.llm.calls",
        "aggregator",
    )
    empty = msgspec.structs.replace(full, value=None)
    put_back, stays = redrive(kafka, codec, [full, empty], dry_run=True)
    assert (put_back.topic, put_back.why) == ("llm.calls", None)
    assert stays.topic is None
    assert "has no bytes" in (stays.why or "")
