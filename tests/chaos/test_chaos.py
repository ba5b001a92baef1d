"""kill -9 of aggregator, rewarder, reward worker and brokers during traffic, rebalances, and the
end is that of an undisturbed run.

Two runs get the same traffic at the same time: one is left alone, in the other everything dies
again and again. `FULGURITE_CHAOS_CALLS`, `FULGURITE_CHAOS_BROKERS` and `FULGURITE_CHAOS_SEED` size
it; README.md says what was run, and what it promises.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition

from fulgurite.enums import Mode
from fulgurite.events import AgentStatus, DeadLetter, LlmCall
from fulgurite.topics import (
    AGENT_STATUS,
    DEAD_LETTERS,
    EPISODES,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from fulgurite.trajectories.building import successful_actions
from services.cli.ledger import read_books
from services.common.kafka.consumer import make_consumer, watermarks
from services.common.runtime.clock import now_ms
from services.local_stack.kafka_local import LocalKafka
from tests import synthetic
from tests.chaos.conftest import BROKERS
from tests.chaos.judging import Books, differences
from tests.chaos.processes import VICTIMS, Hand, Processes
from tests.chaos.traffic import Made, Part, Traffic, calls_in, repeated

pytestmark = pytest.mark.engine

CALLS = int(os.environ.get("FULGURITE_CHAOS_CALLS", "300"))
SEED = int(os.environ.get("FULGURITE_CHAOS_SEED", "1"))
RATE = float(os.environ.get("FULGURITE_CHAOS_RATE", "0")) or (30.0 if CALLS < 1_000 else 120.0)
"""Calls a second, so that death comes in the middle of the traffic and not after it."""

DEADLINE_MS = 8_000 if BROKERS == 1 else 60_000
"""Of rollouts that never end. A broker's death holds up what is published for some ten seconds."""

PART = 60
LATE_BY = 4
"""Parts."""

PATIENCE_S = 240.0
"""Without any progress."""

REWARD = "def fn(episode):\n    return {'reward': (len(episode.calls) % 4) / 2, 'style': 0.5}\n"
DERIVED: tuple[Topic, ...] = (EPISODES, TRAJECTORIES, TRAINING_LEDGER)


@pytest.fixture
def runs(
    calm: LocalKafka, harmed: LocalKafka, tmp_path: Path
) -> Iterator[tuple[Processes, Processes]]:
    """One that is left alone, one that is not."""
    function = tmp_path / "rewards.py"
    function.write_text(REWARD)
    both = [
        Processes(kafka.bootstrap_servers, f"{name}.", tmp_path / name, f"{function}:fn")
        for name, kafka in (("calm", calm), ("harmed", harmed))
    ]
    yield both[0], both[1]
    for one in both:
        one.close()


def test_what_is_killed_at_random_writes_what_an_undisturbed_run_writes(
    runs: tuple[Processes, Processes], harmed: LocalKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(SEED, CALLS, now_ms, DEADLINE_MS)
    monkeypatch.setattr(synthetic, "group_id", traffic.group_id)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Processes.start_all, runs))
    calm, disturbed = runs
    hand = Hand(disturbed, harmed, SEED, pause_s=1.5 if CALLS < 1_000 else 6.0)
    began = time.monotonic()
    hand.start()
    with ThreadPoolExecutor(2) as pool:

        def publish(events: Sequence[Made]) -> None:
            list(pool.map(Processes.publish, runs, [events, events]))

        published, punctual, after = pump(traffic, publish)
        print(  # noqa: T201 - minutes pass
            f"published {calls_in(published)} calls in {time.monotonic() - began:.0f} s", flush=True
        )
        hand.stop()
        wait_for_verdicts(runs, published, hand.supervise)
        hand.kill_processors()
        publish(after)
    books = settled(runs, punctual, hand.supervise)
    seconds = time.monotonic() - began
    told = differences(*books, punctual)
    assert not told, f"seed {SEED}: {len(told)} groups differ, the smallest first:\n" + "\n".join(
        told[:3]
    )

    ledger = read_books(disturbed.kafka)
    actions = {a for e in published + after for a in actions_of(e)}
    assert (ledger.remainder, ledger.actions, ledger.overdue) == (0, len(actions), ()), (
        ledger.discrepancies[:5]
    )
    for run in runs:
        assert [event for event in run.read(DEAD_LETTERS) if isinstance(event, DeadLetter)] == []
    assert all(process.is_running for process in calm.processes.values())
    assert set(hand.killed) >= {*VICTIMS, *(["broker"] if BROKERS > 1 else [])}
    print(  # noqa: T201
        f"seed {SEED}: {calls_in(published + after)} calls in {len(traffic.minted)} groups "
        f"({len(punctual)} punctual), {BROKERS} broker(s), killed {hand.killed}, gave up "
        f"{hand.ended}, {books[1].repeated} records repeated, {seconds:.0f} s; {ledger.actions} "
        f"actions, {ledger.terms}, remainder {ledger.remainder}"
    )


def actions_of(event: Made) -> tuple[str, ...]:
    """Training actions."""
    return (
        successful_actions(event) if isinstance(event, LlmCall) and event.mode is Mode.train else ()
    )


def pump(
    traffic: Traffic, publish: Callable[[Sequence[Made]], None]
) -> tuple[list[Made], set[str], list[Made]]:
    """Publish everything at an even rate, some of it again; what was published, punctual groups,
    and what has to wait for verdicts.
    """
    chance = random.Random(SEED)
    published: list[Made] = []
    punctual: set[str] = set()
    after: list[Made] = []
    late: list[list[Made]] = []
    began, calls = time.monotonic(), 0

    def send(part: Part) -> None:
        nonlocal calls
        publish(part.events)
        assert part.deadline is None or now_ms() < part.deadline, (
            "this machine was too slow to tell anything: raise DEADLINE_MS"
        )
        publish(repeated(part.events, chance))
        late.append(part.late)
        if len(late) > LATE_BY:
            due = late.pop(0)
            publish(due)
            published.extend(due)
        published.extend(part.events)
        punctual.update(part.punctual)
        after.extend(part.after_verdicts)
        calls += calls_in(part.events)
        time.sleep(max(0.0, began + calls / RATE - time.monotonic()))

    for part in traffic.parts(PART):
        send(part)
    for due in late:
        publish(due)
        published.extend(due)
    return published, punctual, after


def wait_for_verdicts(
    runs: Sequence[Processes], published: Sequence[Made], supervise: Callable[[], None]
) -> None:
    """Until both runs have timed out whom they must: three rollouts of every troubled group."""
    declared = [
        event for event in published if isinstance(event, AgentStatus) and event.declaration
    ]
    groups = {
        e.group_id
        for e in declared
        if e.declaration and e.declaration.deadline == e.event_time + DEADLINE_MS
    }
    deadline = time.monotonic() + DEADLINE_MS / 1000 + PATIENCE_S
    for run in runs:
        while len(found := verdicts(run, groups)) < 3 * len(groups):
            assert time.monotonic() < deadline, (
                f"{len(found)} of {3 * len(groups)} rollouts were timed out"
            )
            supervise()
            time.sleep(0.5)


def verdicts(run: Processes, groups: set[str]) -> set[str]:
    """Ids of the time-outs of these groups."""
    statuses = [event for event in run.read(AGENT_STATUS) if isinstance(event, AgentStatus)]
    return {
        event.event_id
        for event in statuses
        if event.source == "aggregator" and event.group_id in groups
    }


def settled(
    runs: tuple[Processes, Processes], punctual: set[str], supervise: Callable[[], None]
) -> tuple[Books, Books]:
    """Wait until both runs are what they should be, or nothing has moved for long."""
    ends, moved = -1, time.monotonic()
    while True:
        supervise()
        now = sum(written(run) for run in runs)
        if now != ends:
            ends, moved = now, time.monotonic()
            time.sleep(2)
            continue
        books = Books(runs[0]), Books(runs[1])
        if not differences(*books, punctual) or time.monotonic() - moved > PATIENCE_S:
            return books
        time.sleep(1)


def written(run: Processes) -> int:
    """How many records there are of what processors write."""
    consumer = make_consumer(run.kafka)
    try:
        places = [
            TopicPartition(run.kafka.topic(topic), p)
            for topic in DERIVED
            for p in range(topic.partitions)
        ]
        return sum(watermarks(consumer, place)[1] for place in places)
    finally:
        consumer.close()
