"""The rewarder over a log in memory, in virtual time: whatever the order, the delays, the
repetitions and the restarts, the newest revision of a group in the log is the one of an undisturbed
run, bytes and all, and nothing is written that says nothing new.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.avro.codec import Codec
from fulgurite.enums import FilterReason, Mode, StatusKind, TrainingUse
from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.episodes.stitching import Input, stitch, supersede
from fulgurite.events import (
    AgentReward,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import SOURCE, ClosingRecord, Output, RevisionLog
from fulgurite.groups.group_state import GroupState
from fulgurite.ids import action_id, external_group, mint_group
from fulgurite.ledger.balance import balance
from fulgurite.ledger.model import Entry, Sources
from fulgurite.topics import (
    AGENT_REWARDS,
    DEAD_LETTERS,
    EPISODES,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.common.kafka.consumer import Record
from services.common.kafka.errors import EventTooLarge, LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.streaming.worker import AckOrder, Rejected
from services.rewarder.groups import Group
from services.rewarder.partition import RewarderPartition
from services.rewarder.reload import ReloadedGroup
from services.rewarder.settings import RewarderSettings
from tests.synthetic import make_call, make_declared, make_reward, make_status

NOW = 1_800_000_000_000
GROUP = mint_group(NOW, bytes(10))
DEADLINE = NOW + 60_000
HOUR = 3_600_000
CODEC = Codec()


class Cut(LogUnavailable):
    """The worker dies."""


class MemoryLog:
    """Topics of one partition, with the time of each record."""

    def __init__(self) -> None:
        self.settings = KafkaSettings()
        self.codec = CODEC
        self.topics: dict[str, list[tuple[int, Event]]] = {}
        self.now = NOW
        self.reads = 0
        self.dies_after: int | None = None
        self.meanwhile: Callable[[], object] | None = None

    def put(self, topic: Topic, event: Event) -> None:
        self.topics.setdefault(topic.name, []).append((self.now, event))

    def events(self, topic: Topic) -> list[Event]:
        return [event for _, event in self.topics.get(topic.name, [])]

    async def publish(self, topic: Topic, events: Iterable[tuple[str, Event]]) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        for _, event in events:
            if self.dies_after is not None:
                if self.dies_after == 0:
                    raise Cut
                self.dies_after -= 1
            self.put(topic, event)

    async def end_offset(self, topic: Topic, partition: int) -> int:
        return len(self.topics.get(topic.name, []))

    def reload(self, group_ids: Collection[str], since_ms: int) -> Mapping[str, ReloadedGroup]:
        self.reads += 1
        found = {name: ReloadedGroup() for name in group_ids}
        for topic in (TRAINING_LEDGER, TRAJECTORIES, EPISODES, AGENT_REWARDS):
            for at, event in self.topics.get(topic.name, []):
                known = isinstance(
                    event,
                    Episode | AgentReward | Trajectory | Tombstone | GroupClosed | LedgerEntry,
                )
                if at >= since_ms and known and event.group_id in found:
                    found[event.group_id].take(event)
        return found


def finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what awaits nothing, also from within a running loop."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


class Rewarder:
    """A worker on the log: reads on from what is acknowledged, dies and starts again."""

    def __init__(self, log: MemoryLog, **changes: object) -> None:
        self.log = log
        self.settings = RewarderSettings(**{"amend_wait_s": 1, "amend_every_s": 0, **changes})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self.committed = {EPISODES.name: 0, AGENT_REWARDS.name: 0}
        self.start()

    def start(self, history_ms: int = 600_000) -> None:
        """Like `Worker`: what was written since a while before the first input that is not
        acknowledged.
        """
        self.positions = dict(self.committed)
        self.orders = {name: AckOrder() for name in self.committed}
        unread = [self.log.topics.get(name, [])[at:][:1] for name, at in self.committed.items()]
        since = (
            min([at for records in unread for at, _ in records], default=self.log.now) - history_ms
        )
        written: list[ClosingRecord | DeadLetter] = [
            event
            for topic in (TRAJECTORIES, TRAINING_LEDGER, DEAD_LETTERS)
            for at, event in self.log.topics.get(topic.name, [])
            if at >= since
            and isinstance(event, Trajectory | Tombstone | GroupClosed | DeadLetter | LedgerEntry)
            and (not isinstance(event, LedgerEntry) or event.source == SOURCE)
        ]
        self.partition = RewarderPartition(
            0,
            self.log,
            self.settings,
            lambda topic: self.positions[topic.name],
            self.log.reload,
            written,
            since,
            lambda: self.log.now,
        )

    def read(self) -> None:
        """Take everything in."""
        for topic in (EPISODES, AGENT_REWARDS):
            for event in self.log.events(topic)[self.positions[topic.name] :]:
                ack = self.orders[topic.name].add(lambda name=topic.name: self._acknowledge(name))
                self.positions[topic.name] += 1
                finish(self.partition.consume(topic, event, ack))

    def run(self, ms: int = 5_000) -> None:
        """Read everything, and let some time pass."""
        for _ in range(5):
            self.read()
            asyncio.run(self.partition.work())
            self.log.now += ms // 5

    def _acknowledge(self, name: str) -> None:
        self.committed[name] += 1

    def newest(self) -> list[Output]:
        """The newest whole revision in the log: entries and rows."""
        written = RevisionLog()
        outputs = [
            e
            for t in (TRAINING_LEDGER, TRAJECTORIES)
            for e in self.log.events(t)
            if isinstance(e, LedgerEntry | Trajectory | Tombstone)
        ]
        for output in outputs:
            written.add(output)
        found = {
            output.event_id: output for output in outputs if output.group_revision == written.newest
        }
        return sorted(found.values(), key=lambda output: output.event_id)

    def closings(self) -> list[GroupClosed]:
        """In the order of the log."""
        return [event for event in self.log.events(TRAJECTORIES) if isinstance(event, GroupClosed)]

    def revisions(self) -> int:
        rows = [
            event
            for event in self.log.events(TRAJECTORIES)
            if isinstance(event, Trajectory | Tombstone)
        ]
        return len({row.group_revision for row in rows})

    def all_acked(self) -> bool:
        return all(
            self.committed[topic.name] == len(self.log.events(topic))
            for topic in (EPISODES, AGENT_REWARDS)
        )


DECLARED = make_declared(0, 2, at=NOW, deadline=DEADLINE, expected=("reward",), max_attempts=2)


def episodes_of(index: int) -> list[Episode]:
    """An attempt's revisions: without and with a call that came late."""
    calls: list[LlmCall] = [
        make_call(0, index, turn, at=NOW + turn, prompt=(1, 2, turn)) for turn in range(3)
    ]
    inputs: list[Input] = [DECLARED, *calls[:2], make_status(0, index, at=NOW + 10)]
    first = stitch(inputs)
    assert first is not None
    first = msgspec.structs.replace(first, group_id=GROUP)
    second = supersede(first, stitch([*inputs, calls[2]]))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert second is not None
    return [first, msgspec.structs.replace(second, group_id=GROUP)]


def reward(
    index: int, value: float | None, at: int, *, final: bool = True, name: str = "reward"
) -> AgentReward:
    return msgspec.structs.replace(
        make_reward(0, index, value, at=NOW + at, final=final, name=name), group_id=GROUP
    )


def everything() -> list[Episode | AgentReward]:
    """What is known of a group in the end; of each name and attempt the order of the log."""
    return [
        *episodes_of(0),
        *episodes_of(1)[:1],
        reward(0, 0.5, 20, final=False),
        reward(0, 1.0, 30),
        # Taken back and given again.
        reward(0, None, 35),
        reward(0, 1.0, 45),
        reward(1, 0.25, 20),
        reward(1, None, 30, name="style"),
        reward(1, 0.75, 40, name="style"),
    ]


def outcome(events: list[Episode | AgentReward]) -> list[Output]:
    """What an undisturbed run writes."""
    last = {(e.rollout_id, e.attempt): e for e in events if isinstance(e, Episode)}
    outputs = close_group(
        GROUP,
        DECLARED.declaration,
        last.values(),
        [e for e in events if isinstance(e, AgentReward)],
    )
    return sorted(outputs, key=lambda output: output.event_id)


def put(log: MemoryLog, *events: Episode | AgentReward) -> None:
    for event in events:
        log.put(EPISODES if isinstance(event, Episode) else AGENT_REWARDS, event)


def closed(**changes: object) -> Rewarder:
    """A group that has been closed with everything it should have."""
    log = MemoryLog()
    rewarder = Rewarder(log, **changes)
    put(log, episodes_of(0)[0], episodes_of(1)[0], reward(0, 1.0, 20), reward(1, 0.0, 20))
    rewarder.run()
    assert rewarder.revisions() == 1
    assert rewarder.all_acked()
    return rewarder


def test_a_late_reward_issues_the_whole_group_anew() -> None:
    rewarder = closed()
    before = len(rewarder.log.events(TRAJECTORIES))
    put(rewarder.log, reward(1, 2.0, 30))
    rewarder.run()
    assert rewarder.revisions() == 2
    assert rewarder.all_acked()
    rows = [
        event
        for event in rewarder.log.events(TRAJECTORIES)[before:]
        if isinstance(event, Trajectory)
    ]
    assert DECLARED.declaration is not None
    assert {row.rollout_id: row.episode_reward for row in rows} == dict(
        zip(DECLARED.declaration.rollout_ids, (1.0, 2.0), strict=True)
    )
    assert rewarder.log.reads == 0, "it was in memory"


@pytest.mark.parametrize("keep_s", [600, 0])
@pytest.mark.parametrize("restart", [False, True])
def test_what_says_nothing_new_amends_nothing(keep_s: int, restart: bool) -> None:
    rewarder = closed(keep_s=keep_s)
    rewarder.log.now += HOUR
    if restart:
        rewarder.start()
    written = len(rewarder.log.events(TRAJECTORIES))
    # The same again; another of the same value; one that does not count.
    put(rewarder.log, reward(1, 0.0, 20), reward(1, 0.0, 25), reward(1, 7.0, 10), episodes_of(0)[0])
    rewarder.run()
    assert len(rewarder.log.events(TRAJECTORIES)) == written
    assert rewarder.all_acked()


def test_what_comes_together_makes_one_revision_and_revisions_keep_their_distance() -> None:
    rewarder = closed(amend_every_s=60)
    rewarder.log.now += 60_000
    put(rewarder.log, reward(1, 2.0, 30), episodes_of(0)[1])
    rewarder.run()
    assert rewarder.revisions() == 2
    put(rewarder.log, reward(1, 3.0, 40))
    rewarder.run()
    put(rewarder.log, reward(1, 4.0, 50))
    rewarder.run()
    assert rewarder.revisions() == 2, "not more often than once a minute"
    rewarder.run(60_000)
    assert rewarder.revisions() == 3
    assert rewarder.all_acked()


def test_a_clock_that_is_ahead_does_not_shorten_the_wait_for_what_comes_together() -> None:
    rewarder = closed(amend_wait_s=10)
    put(rewarder.log, reward(1, 2.0, 3 * HOUR))
    rewarder.run(5_000)
    assert rewarder.revisions() == 1
    put(rewarder.log, reward(0, 2.0, 3 * HOUR))
    rewarder.run(10_000)
    assert rewarder.revisions() == 2
    assert rewarder.all_acked()


def test_a_reward_a_day_late_finds_its_group_in_the_log() -> None:
    rewarder = closed(keep_s=60)
    for day in (1, 2):
        rewarder.log.now += 24 * HOUR + HOUR
        rewarder.run()
        if day == 2:
            rewarder.start()
        put(rewarder.log, reward(1, float(day), 30 * day))
        rewarder.run()
        assert rewarder.revisions() == 1 + day
        assert rewarder.all_acked()
    assert rewarder.log.reads == 2


def test_a_group_that_the_log_no_longer_holds_is_left_alone() -> None:
    rewarder = closed(keep_s=0, amend_within_s=7_200)
    rewarder.log.now += 3 * HOUR
    rewarder.start()
    put(rewarder.log, reward(1, 5.0, 30), episodes_of(0)[1])
    rewarder.run()
    assert rewarder.revisions() == 1
    assert rewarder.all_acked()
    (letter,) = rewarder.log.events(DEAD_LETTERS)
    assert isinstance(letter, DeadLetter)
    assert (letter.error_type, len(letter.actions)) == ("TooLate", 3)


def test_a_group_one_of_whose_rewards_the_log_no_longer_holds_is_left_alone() -> None:
    rewarder = closed(keep_s=0)
    rewarder.log.now += HOUR
    rewarder.start()
    lost = rewarder.closings()[0].reward_ids[0]
    paid = rewarder.log.topics[AGENT_REWARDS.name]
    rewarder.log.topics[AGENT_REWARDS.name] = [
        (0, event) if event.event_id == lost else (at, event) for at, event in paid
    ]
    put(rewarder.log, reward(1, 5.0, 30), episodes_of(0)[1])
    rewarder.run()
    assert (rewarder.revisions(), rewarder.all_acked()) == (1, True)
    (letter,) = rewarder.log.events(DEAD_LETTERS)
    assert isinstance(letter, DeadLetter)
    assert letter.error_type == "TooLate"


def test_a_reward_whose_episode_never_comes_is_given_up() -> None:
    rewarder = Rewarder(MemoryLog(), orphan_s=100)
    put(rewarder.log, reward(0, 1.0, 0))
    rewarder.run()
    assert not rewarder.all_acked()
    rewarder.run(200_000)
    assert rewarder.all_acked()
    assert rewarder.revisions() == 0
    put(rewarder.log, episodes_of(0)[0], episodes_of(1)[0], reward(1, 0.0, 0))
    rewarder.run()
    rows = [event for event in rewarder.log.events(TRAJECTORIES) if isinstance(event, Trajectory)]
    assert {row.episode_reward for row in rows} == {1.0, 0.0}, (
        "it is found again, should its episode come after all"
    )


def test_what_comes_while_a_revision_is_being_written_is_in_the_next() -> None:
    rewarder = Rewarder(MemoryLog())
    put(rewarder.log, episodes_of(0)[0], episodes_of(1)[0], reward(0, 1.0, 20), reward(1, 0.0, 20))
    rewarder.log.meanwhile = lambda: (put(rewarder.log, reward(1, 3.0, 30)), rewarder.read())
    rewarder.run()
    assert rewarder.revisions() == 2
    assert rewarder.newest() == outcome(
        [episodes_of(0)[0], episodes_of(1)[0], reward(0, 1.0, 20), reward(1, 3.0, 30)]
    )
    assert rewarder.all_acked()


def test_a_worker_that_dies_within_a_revision_writes_what_is_missing() -> None:
    for after in range(6):
        rewarder = closed()
        put(rewarder.log, reward(0, None, 30))
        rewarder.log.dies_after = after
        try:
            rewarder.run()
        except Cut:
            rewarder.log.dies_after = None
            rewarder.start()
            rewarder.run()
        assert rewarder.all_acked()
        written = [event.event_id for event in rewarder.log.events(TRAJECTORIES)]
        assert len(written) == len(set(written)) == 9
        first, second = rewarder.closings()
        assert (first.supersedes, second.supersedes) == (None, first.group_revision)
        assert written == [*first.row_ids, first.event_id, *second.row_ids, second.event_id]
        assert rewarder.newest() == outcome(
            [episodes_of(0)[0], episodes_of(1)[0], reward(0, None, 30), reward(1, 0.0, 20)]
        )


def test_a_group_that_an_earlier_release_closed_gets_its_last_record_once_something_comes_for_it() -> (
    None
):
    rewarder = closed()
    (before,) = rewarder.closings()
    log = rewarder.log.topics[TRAJECTORIES.name]
    log[:] = [(at, event) for at, event in log if not isinstance(event, GroupClosed)]
    rows = rewarder.log.events(TRAJECTORIES)
    rewarder.start()
    again = reward(1, 0.0, 25)
    put(rewarder.log, again)
    rewarder.run()
    (after,) = rewarder.closings()
    assert rewarder.log.events(TRAJECTORIES) == [*rows, after]
    assert (after.row_ids, after.supersedes) == (before.row_ids, None)
    assert set(after.reward_ids) == {*before.reward_ids, again.event_id}
    rewarder.start()
    put(rewarder.log, reward(1, 0.0, 26))
    rewarder.run()
    assert rewarder.closings() == [after], "what says nothing new is no closing"


def overtaken(after: int, value: float) -> Rewarder:
    """One that died within a revision, after so many records of it, and went on when another reward
    had come.
    """
    rewarder = closed()
    put(rewarder.log, reward(0, None, 30))
    rewarder.log.dies_after = after
    with contextlib.suppress(Cut):
        rewarder.run()
    rewarder.log.dies_after = None
    put(rewarder.log, reward(0, value, 40))
    rewarder.start()
    rewarder.run()
    return rewarder


def test_a_revision_begun_and_given_up_does_not_hide_the_one_that_counts() -> None:
    for after in range(4):
        rewarder = overtaken(after, 1.0)
        assert rewarder.all_acked()
        assert rewarder.newest() == outcome(
            [episodes_of(0)[0], episodes_of(1)[0], reward(0, 1.0, 20), reward(1, 0.0, 20)]
        )
        last = rewarder.log.events(TRAJECTORIES)[-1]
        assert isinstance(last, GroupClosed)
        assert last.group_revision == rewarder.newest()[0].group_revision, "after any other"


def test_a_revision_that_was_begun_before_another_is_written_whole() -> None:
    for after in range(4):
        rewarder = overtaken(after, 3.0)
        put(rewarder.log, reward(0, None, 50))
        rewarder.run(100_000)
        assert rewarder.newest() == outcome(
            [episodes_of(0)[0], episodes_of(1)[0], reward(0, None, 50), reward(1, 0.0, 20)]
        )


@pytest.mark.parametrize(
    ("minted", "reads"),
    [
        (GROUP, 0),
        (mint_group(NOW - HOUR, bytes(10)), 1),
        (external_group("someone", "session", b"secret"), 0),
    ],
)
def test_only_a_group_that_may_have_been_closed_before_is_looked_for(
    minted: str, reads: int
) -> None:
    log = MemoryLog()
    rewarder = Rewarder(log)
    put(log, msgspec.structs.replace(reward(0, 1.0, 0), group_id=minted))
    rewarder.run()
    assert log.reads == reads
    put(
        log,
        msgspec.structs.replace(episodes_of(0)[0], group_id=minted),
        msgspec.structs.replace(episodes_of(1)[0], group_id=minted),
    )
    put(log, msgspec.structs.replace(reward(1, 0.0, 0), group_id=minted))
    rewarder.run()
    assert (rewarder.revisions(), rewarder.all_acked(), log.reads) == (1, True, reads)


def test_a_reward_of_a_session_that_was_closed_long_ago_finds_it_when_nothing_else_comes() -> None:
    session = external_group("someone", "session", b"secret")
    log = MemoryLog()
    rewarder = Rewarder(log, keep_s=0, orphan_s=100)
    put(
        log,
        *(
            msgspec.structs.replace(e, group_id=session)
            for e in (*episodes_of(0)[:1], *episodes_of(1)[:1])
        ),
    )
    put(log, *(msgspec.structs.replace(reward(i, 1.0, 0), group_id=session) for i in (0, 1)))
    rewarder.run()
    log.now += HOUR
    rewarder.start()
    put(log, msgspec.structs.replace(make_reward(0, 0, 5.0, at=log.now), group_id=session))
    rewarder.run()
    assert rewarder.revisions() == 1
    rewarder.run(200_000)
    assert (rewarder.revisions(), rewarder.all_acked()) == (2, True)


def test_validation_groups_are_closed_without_a_word() -> None:
    log = MemoryLog()
    rewarder = Rewarder(log, keep_s=0)
    episode = stitch(
        [make_call(0, 0, at=NOW, mode=Mode.val), make_status(0, 0, at=NOW, mode=Mode.val)]
    )
    assert episode is not None
    put(log, msgspec.structs.replace(episode, group_id=GROUP), reward(0, 1.0, 0))
    rewarder.run()
    put(log, reward(0, 2.0, 10))
    rewarder.run()
    assert rewarder.all_acked()
    assert log.events(TRAJECTORIES) == []


def test_what_has_no_place_is_rejected() -> None:
    rewarder = Rewarder(MemoryLog())
    ack = AckOrder().add(lambda: None)
    with pytest.raises(Rejected):
        finish(rewarder.partition.consume(EPISODES, DECLARED, ack))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_the_newest_revision_depends_on_what_there_is_and_on_nothing_else(seed: int) -> None:
    chance = random.Random(seed)
    events = everything()
    # Revisions of one episode come in their order; everything else in any, and some of it twice.
    order = chance.sample(events, len(events)) + chance.choices(events, k=chance.randrange(4))
    first, second = episodes_of(0)
    if order.index(first) > order.index(second):
        order = [
            first if e is second or e == second else second if e == first else e for e in order
        ]
    log = MemoryLog()
    rewarder = Rewarder(
        log,
        keep_s=chance.choice([0, 600]),
        amend_every_s=chance.choice([0, 30]),
        orphan_s=1_000 * HOUR,
        amend_within_s=1_000 * HOUR,
    )
    for event in order:
        put(log, event)
        if chance.random() < 0.7:
            if chance.random() < 0.3:
                log.dies_after = chance.randrange(3)
            try:
                rewarder.run(
                    chance.choice([1_000, 5_000, 100_000, 24 * HOUR])
                    if chance.random() < 0.5
                    else 100
                )
            except Cut:
                rewarder.start()
            log.dies_after = None
        if chance.random() < 0.3:
            rewarder.start(chance.choice([0, 600_000]))
    for _ in range(3):
        rewarder.run(11 * HOUR)
    assert rewarder.newest() == outcome(events)
    assert rewarder.all_acked()
    by_id: dict[str, Event] = {}
    for topic in (TRAJECTORIES, TRAINING_LEDGER):
        for event in log.events(topic):
            assert by_id.setdefault(event.event_id, event) == event


def attempts() -> list[Episode]:
    """A rollout that failed and was tried again, and another, with one action in each attempt; and
    the other with a call that came late.
    """
    failed = make_status(
        0, 0, StatusKind.failed, at=NOW + 10, failure=FailureKind.infrastructure, will_retry=True
    )
    inputs: list[list[Input]] = [
        [DECLARED, make_call(0, 0, at=NOW), failed],
        [
            DECLARED,
            make_call(0, 0, attempt=1, at=NOW + 20),
            make_status(0, 0, attempt=1, at=NOW + 30),
        ],
        [DECLARED, make_call(0, 1, at=NOW), make_status(0, 1, at=NOW + 30)],
    ]
    inputs.append([*inputs[2], make_call(0, 1, 1, at=NOW + 5)])
    return [
        msgspec.structs.replace(episode, group_id=GROUP)
        for episode in map(stitch, inputs)
        if episode is not None
    ]


def discrepancies(log: MemoryLog) -> int:
    """The remainder of the books."""

    def entries(events: Iterable[Event]) -> list[Entry]:
        return [
            Record(0, offset, NOW, None, b"", event, None) for offset, event in enumerate(events)
        ]

    episodes = [event for event in log.events(EPISODES) if isinstance(event, Episode)]
    calls = {
        call.call_id: msgspec.structs.replace(call, group_id=GROUP)
        for episode in episodes
        for call in episode.calls
    }
    sources = Sources(
        updates=(),
        dead_letters=entries(log.events(DEAD_LETTERS)),
        ledger=entries(log.events(TRAINING_LEDGER)),
        trajectories=entries(log.events(TRAJECTORIES)),
        episodes=entries(episodes),
        statuses=entries([DECLARED]),
        calls=entries(calls.values()),
    )
    books = balance(sources, CODEC.decode, NOW)
    assert books.actions == len(calls)
    return books.remainder


@pytest.mark.parametrize("restart", [False, True])
def test_an_attempt_whose_episode_comes_after_that_of_the_next_is_accounted_for(
    restart: bool,
) -> None:
    first, again, other, _ = attempts()
    rewarder = Rewarder(MemoryLog())
    put(rewarder.log, again, other, reward(0, 1.0, 40), reward(1, 0.0, 40))
    rewarder.run()
    assert rewarder.revisions() == 1
    if restart:
        rewarder.start()
    put(rewarder.log, first)
    rewarder.run()
    assert rewarder.newest() == outcome(
        [first, again, other, reward(0, 1.0, 40), reward(1, 0.0, 40)]
    )
    (entry,) = (output for output in rewarder.newest() if isinstance(output, LedgerEntry))
    assert (entry.reason, entry.actions) == (
        FilterReason.superseded,
        (action_id(first.calls[0].call_id, 0),),
    )
    assert rewarder.all_acked()
    assert discrepancies(rewarder.log) == 0


def test_excluded_calls_are_accounted_for_and_wait_for_no_reward() -> None:
    done = make_status(0, 0, at=NOW + 10)
    task, title = make_call(0, 0, 0, at=NOW), make_call(0, 0, 1, at=NOW, agent="title")
    both = stitch([DECLARED, task, title, done])
    only = stitch(
        [DECLARED, make_call(0, 1, 0, at=NOW, agent="title"), make_status(0, 1, at=NOW + 10)]
    )
    assert both is not None
    assert only is not None
    rewarder = Rewarder(MemoryLog(), excluded_calls='[{"agent": "title"}]')
    group = [msgspec.structs.replace(episode, group_id=GROUP) for episode in (both, only)]
    put(rewarder.log, *group, reward(0, 1.0, 40))
    rewarder.run()
    assert rewarder.revisions() == 1, "it is closed before its deadline"
    (entry,) = rewarder.log.events(TRAINING_LEDGER)
    assert isinstance(entry, LedgerEntry)
    assert (entry.reason, set(entry.actions)) == (
        FilterReason.excluded,
        {action_id(title.call_id, 0), action_id(only.calls[0].call_id, 0)},
    )
    assert discrepancies(rewarder.log) == 0


def test_live_traffic_that_is_opted_in_waits_for_its_reward_and_a_late_one_closes_it_again() -> (
    None
):
    live = make_call(0, 0, 0, at=NOW, mode=Mode.live, use=TrainingUse.live)
    silent = make_status(0, 0, StatusKind.timed_out, at=NOW + 10, mode=Mode.live)
    episode = stitch([live, silent])
    assert episode is not None
    rewarder = Rewarder(MemoryLog(), live_wait_s=300)
    put(rewarder.log, msgspec.structs.replace(episode, group_id=GROUP))
    rewarder.run(ms=290_000)
    assert rewarder.closings() == []
    rewarder.run(ms=60_000)
    entry, stone = rewarder.newest()
    assert isinstance(entry, LedgerEntry)
    assert isinstance(stone, Tombstone)
    assert (entry.reason, stone.reason) == (FilterReason.no_reward, FilterReason.no_reward)
    put(rewarder.log, reward(0, 1.0, 400_000))
    rewarder.run()
    (row,) = rewarder.newest()
    assert isinstance(row, Trajectory)
    assert (row.mode, row.episode_reward) == (Mode.train, 1.0)
    assert rewarder.all_acked()
    assert discrepancies(rewarder.log) == 0


def test_one_killed_between_entries_and_rows_gives_no_action_two_terms_when_more_comes() -> None:
    first, again, other, more_of_other = attempts()
    fewer: list[Episode | AgentReward] = [
        first,
        again,
        other,
        reward(0, 1.0, 40),
        reward(1, None, 40),
    ]
    for after in range(5):
        for more in ([reward(1, 0.5, 50)], [more_of_other], [reward(0, None, 50)]):
            rewarder = Rewarder(MemoryLog())
            put(rewarder.log, *fewer)
            rewarder.log.dies_after = after
            with contextlib.suppress(Cut):
                rewarder.run()
            assert after == 0 or rewarder.log.events(TRAINING_LEDGER)
            rewarder.log.dies_after = None
            # What was begun is never finished: the next closing has more to say.
            put(rewarder.log, *more)
            rewarder.start()
            rewarder.run()
            assert rewarder.newest() == outcome([*fewer, *more])
            assert discrepancies(rewarder.log) == 0
            assert rewarder.all_acked()


def test_a_group_that_cannot_be_closed_is_a_dead_letter_until_it_is_redriven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = GroupState.close

    def closed_but_for(
        gathered: GroupState, group_id: str, rules: FailureRules
    ) -> tuple[Output, ...]:
        if group_id == GROUP:
            raise OverflowError("cannot convert float infinity")
        return close(gathered, group_id, rules)

    monkeypatch.setattr(GroupState, "close", closed_but_for)
    log = MemoryLog()
    rewarder = Rewarder(log)
    other = stitch(
        [
            make_declared(1, 1, at=NOW, deadline=DEADLINE),
            make_call(1, at=NOW),
            make_status(1, at=NOW + 10),
        ]
    )
    assert other is not None
    put(
        log,
        episodes_of(0)[0],
        episodes_of(1)[0],
        other,
        reward(0, 1.0, 20),
        reward(1, 0.0, 20),
        make_reward(1, 0, 1.0, at=NOW),
    )
    rewarder.run()
    letters = [event for event in log.events(DEAD_LETTERS) if isinstance(event, DeadLetter)]
    assert {letter.error_type for letter in letters} == {"OverflowError"}
    assert sorted(action for letter in letters for action in letter.actions) == sorted(
        action_id(call.call_id, 0) for index in (0, 1) for call in episodes_of(index)[0].calls
    )
    assert {row.group_id for row in log.events(TRAJECTORIES) if isinstance(row, Trajectory)} == {
        other.group_id
    }
    assert rewarder.all_acked()

    rewarder.start()
    put(log, reward(0, 1.0, 50))
    rewarder.run(300_000)
    rewarder.run(300_000)
    assert {letter.event_id for letter in log.events(DEAD_LETTERS)} == {
        letter.event_id for letter in letters
    }, "the same, told again"
    assert rewarder.all_acked()

    monkeypatch.undo()
    rewarder.start()
    for letter in letters:
        event = CODEC.decode(letter.value or b"")
        assert isinstance(event, Episode)
        put(log, event)
    rewarder.run(300_000)
    rewarder.run(300_000)
    rows = [
        row
        for row in log.events(TRAJECTORIES)
        if isinstance(row, Trajectory) and row.group_id == GROUP
    ]
    assert {row.episode_reward for row in rows} == {0.0, 1.0}, "its rewards are found too"
    assert {row.group_id for row in log.events(TRAJECTORIES) if isinstance(row, Trajectory)} == {
        other.group_id,
        GROUP,
    }
    assert rewarder.all_acked()


def test_a_row_that_no_message_can_hold_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    publish = log.publish

    async def refusing(topic: Topic, events: Iterable[tuple[str, Event]]) -> None:
        if topic is TRAJECTORIES:
            raise EventTooLarge("trajectories: Broker: Message size too large")
        await publish(topic, events)

    monkeypatch.setattr(log, "publish", refusing)
    rewarder = Rewarder(log)
    put(log, episodes_of(0)[0], episodes_of(1)[0], reward(0, 1.0, 20), reward(1, 0.0, 20))
    rewarder.run()
    assert {
        letter.error_type for letter in log.events(DEAD_LETTERS) if isinstance(letter, DeadLetter)
    } == {"EventTooLarge"}
    assert rewarder.all_acked()


def test_an_episode_that_ended_in_the_far_future_waits_no_longer_than_others() -> None:
    call = make_call(7, at=NOW, mode=Mode.live)
    episode = stitch([call, make_status(7, at=NOW + 10 * 365 * 24 * HOUR, mode=Mode.live)])
    assert episode is not None
    group = Group()
    group.take(episode, AckOrder().add(lambda: None, NOW))
    assert group.closes_at(RewarderSettings(live_wait_s=300)) == NOW + 60_000 + 300_000
    paid = Group()
    paid.take(make_reward(7, at=2**60), AckOrder().add(lambda: None, NOW))
    assert paid.closes_at(RewarderSettings(orphan_s=3_600)) == NOW + 60_000 + HOUR
