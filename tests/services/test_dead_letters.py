"""Dead letters: the same about the same record or episode, whoever asks again; with what a redriven one needs."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.kinds import Mode
from fulgurite.stitching import stitch
from services.dead_letters import key_of, lost, lost_episode, unusable
from services.kafka import KafkaSettings, Record
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

RECORD = Record(partition=3, offset=17, timestamp=1_000, key=b"g", value=b"\x00?", event=None, error="UnknownSchema: no schema 7: none")


def test_a_letter_says_what_was_wrong_where_and_with_what_bytes() -> None:
    letter = unusable(RECORD, "p.episodes", "rewarder", actions=("a#0",))
    assert (letter.stage, letter.error_type, letter.error) == ("rewarder", "UnknownSchema", "no schema 7: none")
    assert (letter.topic, letter.partition, letter.offset, letter.event_time) == ("p.episodes", 3, 17, 1_000)
    assert (letter.key, letter.value, letter.actions, key_of(letter)) == (b"g", b"\x00?", ("a#0",), "g")
    assert letter == unusable(RECORD, "p.episodes", "rewarder", actions=("a#0",))


def test_each_reader_and_each_place_has_its_letter() -> None:
    places = [(RECORD, "a", "x"), (RECORD, "b", "x"), (RECORD, "a", "y"), (msgspec.structs.replace(RECORD, offset=18), "a", "x")]
    assert len({unusable(*place).event_id for place in places}) == len(places)


def test_an_event_of_another_kind_is_named() -> None:
    letter = unusable(msgspec.structs.replace(RECORD, event=make_reward(), error=None), "episodes", "worker", stage="reward-worker")
    assert (letter.stage, letter.error_type, letter.error) == ("reward-worker", "Unexpected", "AgentReward has no place there")


@pytest.mark.parametrize(("mode", "actions"), [(Mode.train, 2), (Mode.val, 0)])
def test_an_episode_takes_its_actions_with_it(mode: Mode, actions: int) -> None:
    inputs = [make_declared(mode=mode), make_call(mode=mode), make_call(turn=1, mode=mode), make_status(mode=mode)]
    episode = stitch(inputs)
    assert episode is not None
    kafka = KafkaSettings.model_validate({"topic_prefix": "p."})
    letter = lost(lost_episode(episode), kafka, 2, "aggregator", "EpisodeTooLarge", "too large")
    assert (letter.topic, letter.partition, letter.offset, letter.value) == ("p.episodes", 2, -1, None)
    assert (key_of(letter), letter.event_time, len(letter.actions)) == (group_id(0), episode.event_time, actions)
