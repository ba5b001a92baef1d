"""One partition of the aggregator over a log kept in memory: what is read when, is the test's to
say.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import AgentStatus, DeadLetter, Episode, Event, LlmCall
from fulgurite.ids import action_id
from fulgurite.tokens import prompt_hash
from fulgurite.topics import AGENT_STATUS, DEAD_LETTERS, EPISODES, LLM_CALLS, Topic
from services.aggregator import partition as partition_module
from services.aggregator.call_expander import FindCall
from services.aggregator.partition import AggregatorPartition
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.consumer import Record
from services.common.kafka.settings import KafkaSettings
from services.common.streaming.worker import AckOrder, Log, Rejected
from tests.synthetic import make_call, make_declared, make_status


class MemoryLog(Log):
    """What was published, and the end offsets that the test sets."""

    def __init__(self) -> None:
        self.settings = KafkaSettings()
        self.codec = Codec()
        self.ends = {LLM_CALLS.name: 0, AGENT_STATUS.name: 0}
        self.published: list[tuple[Topic, Event]] = []

    async def publish(self, topic: Topic, events: Iterable[tuple[str, Event]]) -> None:
        self.published += [(topic, event) for _, event in events]

    async def end_offset(self, topic: Topic, partition: int) -> int:
        return self.ends[topic.name]

    def episodes(self) -> list[Episode]:
        """As who reads them gets them."""
        read = [
            self.codec.decode(self.codec.encode(event))
            for topic, event in self.published
            if topic is EPISODES
        ]
        return [event for event in read if isinstance(event, Episode)]


class Reader:
    """A partition, and how far its two topics have been read."""

    def __init__(
        self, settings: AggregatorSettings | None = None, written: Iterable[Episode] = ()
    ) -> None:
        self.log = MemoryLog()
        self.read = {LLM_CALLS.name: 0, AGENT_STATUS.name: 0}
        self.acknowledged: list[str] = []
        self.find_call: FindCall = dict[str, LlmCall]().get
        """What the partition has in memory of the last call's attempt."""
        self._orders = {LLM_CALLS.name: AckOrder(), AGENT_STATUS.name: AckOrder()}
        self.partition = AggregatorPartition(
            0,
            self.log,
            settings or AggregatorSettings(),
            lambda topic: self.read[topic.name],
            self._expand,
            written,
        )

    async def _expand(self, call: LlmCall, find: FindCall) -> LlmCall:
        """All calls are complete here."""
        self.find_call = find
        return call

    async def take(self, event: LlmCall | AgentStatus) -> None:
        topic = LLM_CALLS if isinstance(event, LlmCall) else AGENT_STATUS
        self.read[topic.name] += 1
        await self.partition.consume(
            topic,
            event,
            self._orders[topic.name].add(lambda: self.acknowledged.append(event.event_id)),
        )
        await self.partition.work()


NOW = 1_800_000_000_000
DECLARED = make_declared(0, 1, at=NOW, deadline=NOW + 86_400_000)
CALLS = [make_call(turn=turn, at=NOW + turn) for turn in range(2)]
DONE = make_status(at=NOW + 10)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still until a test moves it."""
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW)


async def test_an_attempt_waits_for_the_calls_that_were_in_the_log_when_it_ended() -> None:
    reader = Reader()
    reader.log.ends[LLM_CALLS.name] = len(CALLS)
    for event in (DECLARED, DONE, CALLS[0]):
        await reader.take(event)
        assert reader.log.episodes() == []
    await reader.take(CALLS[1])
    (episode,) = reader.log.episodes()
    assert [call.event_id for call in episode.calls] == [call.event_id for call in CALLS]


async def test_inputs_are_acknowledged_once_their_episode_is_written() -> None:
    reader = Reader()
    reader.log.ends[LLM_CALLS.name] = len(CALLS)
    for event in (DECLARED, *CALLS):
        await reader.take(event)
    assert reader.acknowledged == []
    await reader.take(DONE)
    assert set(reader.acknowledged) == {event.event_id for event in (DECLARED, *CALLS, DONE)}


async def test_a_call_after_the_end_makes_a_revision_that_supersedes() -> None:
    reader = Reader()
    reader.log.ends[LLM_CALLS.name] = 1
    for event in (DECLARED, CALLS[0], DONE):
        await reader.take(event)
    reader.log.ends[LLM_CALLS.name] = 2
    await reader.take(CALLS[1])
    first, second = reader.log.episodes()
    assert (len(first.calls), len(second.calls)) == (1, 2)
    assert second.supersedes == first.revision


async def test_an_episode_that_no_message_can_hold_is_a_dead_letter_with_its_actions() -> None:
    reader = Reader()
    bodies = [random.Random(turn).randbytes(450_000).hex() for turn in range(10)]
    large = [
        msgspec.structs.replace(make_call(turn=turn, at=NOW + turn), request=body)
        for turn, body in enumerate(bodies)
    ]
    reader.log.ends[LLM_CALLS.name] = len(large)
    for event in (DECLARED, *large, DONE):
        await reader.take(event)
    ((topic, letter),) = reader.log.published
    assert isinstance(letter, DeadLetter)
    assert (topic, letter.error_type, letter.key) == (
        DEAD_LETTERS,
        "EpisodeTooLarge",
        DONE.group_id.encode(),
    )
    assert letter.actions == tuple(action_id(call.call_id, 0) for call in large)
    assert len(reader.acknowledged) == len(large) + 2


async def test_large_calls_that_repeat_one_another_are_an_episode() -> None:
    reader = Reader()
    body = random.Random(0).randbytes(450_000).hex()
    large = [
        msgspec.structs.replace(make_call(turn=turn, at=NOW + turn), request=f"{body}{turn}")
        for turn in range(10)
    ]
    large = [
        msgspec.structs.replace(call, prompt_hash=prompt_hash(call.prompt_token_ids or b""))
        for call in large
    ]
    reader.log.ends[LLM_CALLS.name] = len(large)
    for event in (DECLARED, *large, DONE):
        await reader.take(event)
    (episode,) = reader.log.episodes()
    assert list(episode.calls) == large


def session(turns: int, first: int = 0) -> list[LlmCall]:
    """Undeclared calls of some 20 kB each."""
    bodies = [random.Random(turn).randbytes(10_000).hex() for turn in range(first, first + turns)]
    return [
        msgspec.structs.replace(make_call(turn=first + turn, at=NOW + first + turn), request=body)
        for turn, body in enumerate(bodies)
    ]


async def test_an_attempt_that_holds_too_much_is_a_dead_letter_and_nothing_more_is_held_of_it() -> (
    None
):
    reader = Reader(AggregatorSettings(attempt_mb=0.1))
    calls = session(4)
    for call in calls:
        assert reader.log.published == []
        await reader.take(call)
    await reader.take(fifth := session(1, first=4)[0])
    ((topic, letter),) = reader.log.published
    assert isinstance(letter, DeadLetter)
    assert (topic, letter.error_type, letter.key) == (
        DEAD_LETTERS,
        "AttemptTooLarge",
        fifth.group_id.encode(),
    )
    assert "FULGURITE_AGGREGATOR_ATTEMPT_MB is 0.1" in letter.error
    assert letter.actions == tuple(action_id(call.call_id, 0) for call in [*calls, fifth])
    assert len(reader.acknowledged) == 5

    late = session(1, first=5)[0]
    with pytest.raises(Rejected, match="begin another rollout") as refused:
        await reader.take(late)
    assert refused.value.actions == (action_id(late.call_id, 0),)
    assert reader.find_call(late.call_id) == late, "what comes next may be a delta of it"
    assert reader.find_call(calls[0].call_id) is None
    await reader.take(DONE)
    assert reader.acknowledged[-1] == DONE.event_id
    assert len(reader.log.published) == 1


async def test_one_that_was_given_up_is_forgotten_once_it_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(AggregatorSettings(attempt_mb=0.01, silence_s=1))
    (call, late, another) = session(3)
    await reader.take(call)
    await later(reader, monkeypatch, 590_000)
    with pytest.raises(Rejected):
        await reader.take(msgspec.structs.replace(late, event_time=NOW + 590_000))
    await later(reader, monkeypatch, 1_180_000)
    with pytest.raises(Rejected):
        await reader.take(another)
    await later(reader, monkeypatch, 1_200_000)
    await reader.take(another)
    assert [
        letter.error_type for _, letter in reader.log.published if isinstance(letter, DeadLetter)
    ] == ["AttemptTooLarge"] * 2


async def test_a_group_goes_on_without_the_attempt_that_held_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(AggregatorSettings(attempt_mb=0.01))
    await reader.take(make_declared(0, 1, at=NOW, deadline=NOW + 1_000))
    await reader.take(session(1)[0])
    await later(reader, monkeypatch, 2_000)
    assert [type(event) for _, event in reader.log.published] == [DeadLetter], (
        "no timeout on what is not awaited"
    )
    assert len(reader.acknowledged) == 2


async def test_a_closed_attempt_that_late_calls_make_too_large_keeps_what_was_written() -> None:
    reader = Reader(AggregatorSettings(attempt_mb=0.06))
    first, *late = session(3)
    reader.log.ends[LLM_CALLS.name] = 1
    for event in (DECLARED, first, DONE):
        await reader.take(event)
    for call in late:
        await reader.take(call)
    *_, (_, letter) = reader.log.published
    assert isinstance(letter, DeadLetter)
    assert [len(episode.calls) for episode in reader.log.episodes()] == [1, 2]
    assert letter.actions == (action_id(late[-1].call_id, 0),), "the others are in an episode"
    assert len(reader.acknowledged) == 5


async def test_an_episode_in_the_log_that_takes_too_much_is_left_as_it_is() -> None:
    before = Reader()
    before.log.ends[LLM_CALLS.name] = 1
    for event in (DECLARED, call := session(1)[0], DONE):
        await before.take(event)
    reader = Reader(AggregatorSettings(attempt_mb=0.01), before.log.episodes())
    for event in (DECLARED, call, DONE):
        await reader.take(event)
    ((_, letter),) = reader.log.published
    assert isinstance(letter, DeadLetter)
    assert letter.actions == ()
    assert len(reader.acknowledged) == 3


class ReadAgain:
    """The topics as `read_all` gives them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.reads = 0

    def read_all(
        self, settings: KafkaSettings, topic: Topic, codec: Codec, **_: object
    ) -> list[Record]:
        self.reads += 1
        published = [event for place, event in self._reader.log.published if place is topic]
        events = published if topic is EPISODES else [DECLARED, DONE]
        return [
            Record(0, offset, NOW, None, b"", event, None) for offset, event in enumerate(events)
        ]


@pytest.mark.parametrize(("keep_mb", "kept"), [(64, True), (0.009, True), (0.001, False)])
async def test_closed_episodes_that_take_too_much_leave_memory_and_are_read_again(
    keep_mb: float, *, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(AggregatorSettings(keep_mb=keep_mb))
    log = ReadAgain(reader)
    monkeypatch.setattr(partition_module, "read_all", log.read_all)
    reader.log.ends[LLM_CALLS.name] = 1
    for event in (DECLARED, CALLS[0], DONE):
        await reader.take(event)
    await later(reader, monkeypatch, 3_000)
    assert (reader.find_call(CALLS[0].call_id) is not None) == kept
    reader.log.ends[LLM_CALLS.name] = 2
    await reader.take(CALLS[1])
    first, second = reader.log.episodes()
    assert (len(second.calls), second.supersedes) == (2, first.revision)
    assert (log.reads > 0) != kept


async def test_attempts_beyond_those_that_are_remembered_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(AggregatorSettings(keep_mb=0, remember_attempts=0))
    reader.log.ends[LLM_CALLS.name] = 1
    for event in (DECLARED, CALLS[0], DONE):
        await reader.take(event)
    await later(reader, monkeypatch, 3_000)
    await reader.take(CALLS[1])
    assert len(reader.log.episodes()) == 1, "nothing tells that the attempt has ended"


async def later(reader: Reader, monkeypatch: pytest.MonkeyPatch, ms: int) -> None:
    """Let time pass."""
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + ms)
    await reader.partition.work()
