"""What becomes of events while the log is away, by mode: who is refused, who is answered, and in
what order the log gets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import restore
from fulgurite.enums import Mode
from fulgurite.events import AgentStatus, LlmCall
from fulgurite.topics import AGENT_STATUS, LLM_CALLS, MAX_MESSAGE_BYTES
from services.common.blobs.blob_store import redeemed
from services.common.kafka.settings import KafkaSettings
from services.gateway.errors import Unavailable
from services.gateway.recording.recorder import Recorder
from services.gateway.recording.spool_file import Segment
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics
from tests.services.gateway.memory_producer import MemoryProducer
from tests.synthetic import make_call, make_status

NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")


class Bench:
    """A recorder over a log in memory."""

    def __init__(self, producer: MemoryProducer, folder: Path, settings: dict[str, Any]) -> None:
        quick = {
            "log_patience_s": 0.05,
            "log_stall_s": 0.1,
            "ack_timeout_s": 0.5,
            "data_dir": folder,
        }
        self.producer = producer
        self.metrics = Metrics()
        self.recorder = Recorder(
            producer,
            NOWHERE,
            Codec(),
            GatewaySettings.model_validate(quick | settings),
            self.metrics,
        )

    async def say(self, number: int, *, key: str = "k", mode: Mode = Mode.live) -> AgentStatus:
        event = make_status(at=number, mode=mode)
        await self.recorder.publish(AGENT_STATUS, key, event, mode=mode)
        return event

    async def drained(self) -> None:
        for _ in range(500):
            if not (self.recorder.spool_report() or {})["events"]:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("events stay in the spool")

    def metric(self, name: str) -> float:
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in self.metrics.render().decode().splitlines()
            if line.startswith(f"fulgurite_gateway_{name}")
        )


@asynccontextmanager
async def bench(
    folder: Path, producer: MemoryProducer | None = None, **settings: Any
) -> AsyncGenerator[Bench]:
    made = Bench(producer or MemoryProducer(), folder, settings)
    made.recorder.start()
    try:
        yield made
    finally:
        await made.recorder.close()


def ids(*events: AgentStatus) -> list[str]:
    return [event.event_id for event in events]


class LaggingProducer(MemoryProducer):
    """As librdkafka: an event is counted as pending until its delivery report was looked at, which
    is after its future has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def pending(self) -> int:
        self.looks += 1
        return super().pending() + (1 if self.log and not self.stuck else 0)


async def test_the_way_out_of_the_spool_does_not_wait_for_its_own_delivery_reports(
    tmp_path: Path,
) -> None:
    producer = LaggingProducer()
    async with bench(tmp_path, producer, spool_dir=tmp_path / "spool") as made:
        producer.away = True
        said = [await made.say(number) for number in range(40)]
        producer.stuck.clear()
        producer.away = False
        await made.drained()
    assert producer.ids() == ids(*said)
    assert producer.looks < 40, "one look for each event: each may have to pause"


async def test_spooled_events_reach_the_log_in_order_once_it_is_back(tmp_path: Path) -> None:
    async with bench(tmp_path, spool_dir=tmp_path / "spool") as made:
        said = [await made.say(0)]
        made.producer.away = True
        said += [await made.say(number) for number in range(1, 6)]
        assert made.metric("spool_events") == 5
        assert made.producer.ids() == ids(said[0])
        made.producer.come_back()
        said.append(await made.say(6))
        await made.drained()
        said.append(await made.say(7))
        assert made.producer.ids() == ids(*said)
        assert made.recorder.problem() is None


async def test_what_still_waits_for_kafka_goes_to_the_spool_before_what_comes_later(
    tmp_path: Path,
) -> None:
    async with bench(
        tmp_path, spool_dir=tmp_path / "spool", log_patience_s=0.3, log_stall_s=10
    ) as made:
        made.producer.away = True
        first = asyncio.create_task(made.say(1))
        await asyncio.sleep(0.2)
        second = asyncio.create_task(made.say(2))
        said = [await first, await made.say(3), await second]
        # Kafka never got those that its producer held.
        made.producer.stuck.clear()
        made.producer.come_back()
        await made.drained()
        assert made.producer.ids() == ids(said[0], said[2], said[1])


async def test_what_the_producer_still_holds_goes_before_the_spool(tmp_path: Path) -> None:
    async with bench(tmp_path, spool_dir=tmp_path / "spool") as made:
        made.producer.away = True
        held = asyncio.create_task(made.say(1, mode=Mode.train))
        await asyncio.sleep(0)
        spooled = await made.say(2)
        made.producer.away = False
        await asyncio.sleep(0.1)
        assert made.producer.ids() == []
        first = made.producer.stuck[0][1].event_id
        made.producer.come_back()
        await made.drained()
        assert made.producer.ids() == [first, spooled.event_id]
        with pytest.raises(Unavailable):
            await held


async def test_one_late_acknowledgement_is_soon_forgotten(tmp_path: Path) -> None:
    async with bench(tmp_path, log_unavailable_live="serve") as made:
        made.producer.away = True
        await made.say(1)
        made.producer.come_back()
        await made.say(2)
        await asyncio.sleep(0.15)
        assert made.recorder.problem() is None


async def test_a_predecessors_events_go_first_and_others_come_behind_them(tmp_path: Path) -> None:
    gone = MemoryProducer()
    gone.away = True
    async with bench(tmp_path, gone, spool_dir=tmp_path / "spool") as made:
        said = [await made.say(number) for number in range(3)]
    producer = MemoryProducer()
    producer.failing = 3
    async with bench(tmp_path, producer, spool_dir=tmp_path / "spool", ack_timeout_s=20) as made:
        refusing = asyncio.create_task(made.say(3, mode=Mode.train))
        await asyncio.sleep(0)
        spooling = [await made.say(4), await made.say(0, key="another")]
        assert not refusing.done(), "its promise is Kafka's"
        said.append(await refusing)
        await made.drained()
        assert producer.ids("k") == ids(*said, spooling[0])
        assert producer.ids("another") == ids(spooling[1])


async def test_refused_modes_are_refused_while_others_are_answered(tmp_path: Path) -> None:
    async with bench(tmp_path, spool_dir=tmp_path / "spool") as made:
        made.producer.away = True
        made.producer.unreachable = 1.0
        await made.say(1)
        for mode in (Mode.train, Mode.val):
            with pytest.raises(Unavailable, match="Nothing was generated"):
                made.recorder.check(mode)
        made.recorder.check(Mode.live)
        assert made.recorder.welcome()
        with pytest.raises(Unavailable, match="did not acknowledge this in time"):
            await made.say(2, mode=Mode.train)


async def test_a_full_spool_refuses_everyone_and_says_why(tmp_path: Path) -> None:
    async with bench(tmp_path, spool_dir=tmp_path / "spool", spool_max_bytes=1024**2) as made:
        made.producer.away = True
        made.producer.unreachable = 1.0
        call = make_call(mode=Mode.live, messages=[{"content": "x" * 470_000}])
        for _ in range(2):
            made.recorder.check(Mode.live)
            await made.recorder.record_call(call)
        for mode in Mode:
            with pytest.raises(Unavailable, match="spool is full"):
                made.recorder.check(mode)
        await made.say(1)
        with pytest.raises(Unavailable, match="in time"):
            await made.recorder.record_call(call)


async def test_without_a_spool_live_traffic_is_refused_or_served_as_it_is_set(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as made:
        made.producer.unreachable = 1.0
        with pytest.raises(Unavailable):
            made.recorder.check(Mode.live)
        assert (made.recorder.spool_report(), made.recorder.welcome()) == (None, False)
    async with bench(tmp_path, log_unavailable_live="serve") as made:
        made.producer.away = True
        for number in range(3):
            made.recorder.check(Mode.live)
            await made.say(number)
        assert made.metric("unlogged_total") == 3
        await asyncio.sleep(0.2)
        assert made.recorder.problem() is not None
        await made.say(3)
        made.producer.come_back()
        await made.say(4)
        assert made.metric("unlogged_total") == 5, (
            "until something is tried nobody knows that it is back"
        )
        await asyncio.sleep(0.01)
        assert made.recorder.problem() is None
        await made.say(5)
        assert made.metric("unlogged_total") == 5


def test_a_spool_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="FULGURITE_SPOOL_DIR"):
        GatewaySettings.model_validate({"log_unavailable_train": "spool"}).outage_modes()


async def test_an_event_beyond_the_logs_limit_does_not_block_the_spool(tmp_path: Path) -> None:
    async with bench(
        tmp_path, spool_dir=tmp_path / "spool", claim_check_bytes=MAX_MESSAGE_BYTES // 2
    ) as made:
        made.producer.away = True
        made.producer.unreachable = 1.0
        huge = make_call(mode=Mode.live, answers=[range(2_000_000)])
        with pytest.raises(Unavailable):
            await made.recorder.publish(LLM_CALLS, "k", huge)
        assert made.metric("spool_events") == 0


async def test_an_event_that_cannot_be_read_back_is_put_aside(tmp_path: Path) -> None:
    async with bench(tmp_path, spool_dir=tmp_path / "spool") as made:
        made.producer.away = True
        made.producer.unreachable = 1.0
        await made.say(1)
        assert made.recorder.spool_report() is not None
        backlog = made.recorder._backlog  # pyright: ignore[reportPrivateUsage]
        assert backlog is not None
        await backlog.spool.append(b"of another kind")
        backlog._tickets.append(backlog._tickets[0])  # pyright: ignore[reportPrivateUsage]
        said = await made.say(2)
        made.producer.unreachable = 0.0
        made.producer.come_back()
        await made.drained()
        assert made.producer.ids()[-1] == said.event_id
        assert len(list((tmp_path / "spool").glob("*.torn"))) == 1


async def test_a_large_call_leaves_its_text_in_the_claims_folder(tmp_path: Path) -> None:
    async with bench(tmp_path, claim_check_bytes=16 * 1024) as made:
        call = make_call(messages=[{"content": "x" * 20_000}])
        await made.recorder.record_call(call)
        [(_, logged)] = made.producer.log
        assert logged.event_id == call.event_id
        assert (made.metric("claim_checks_total"), len(list((tmp_path / "claims").rglob("*")))) == (
            1,
            2,
        )
        (tmp_path / "claims").rename(tmp_path / "away")
        (tmp_path / "claims").write_text("not a folder")
        with pytest.raises(
            Unavailable, match=r"claims store \(FULGURITE_CLAIMS_URL\) cannot be written"
        ):
            await made.recorder.record_call(make_call(turn=1, messages=[{"content": "y" * 20_000}]))


def picture(number: int, size: int = 300_000) -> dict[str, object]:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{number}" + "A" * size},
    }


def large_turns(count: int) -> list[LlmCall]:
    """An agent that looks at the same large picture in each turn, after ever more talk."""
    question: dict[str, object] = {"type": "text", "text": "what is it?"}
    seen: list[dict[str, object]] = [{"role": "user", "content": [picture(0), question]}]
    calls: list[LlmCall] = []
    for turn in range(count):
        seen.append({"role": "assistant", "content": f"turn {turn}"})
        seen.append({"role": "user", "content": "word " * 400})
        calls.append(make_call(turn=turn, prompt=None, messages=list(seen)))
    return calls


async def test_turns_that_repeat_a_large_picture_leave_it_once_and_are_deltas(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, claim_check_bytes=100 * 1024) as made:
        calls = large_turns(6)
        for call in calls:
            await made.recorder.record_call(call)
        logged = [event for _, event in made.producer.log if isinstance(event, LlmCall)]
    files = [path for path in (tmp_path / "claims").rglob("*") if path.is_file()]
    assert len(files) == 1, "one picture, one file"
    assert [call.parent is not None for call in logged] == [False, True, True, True, True, True]
    assert all(
        len(call.request or "") < 6_000 and len(call.pieces) == 1 and call.claim_check is None
        for call in logged
    )
    whole = logged[0]
    for call, event in zip(calls, logged, strict=True):
        whole = event if event.parent is None else restore(event, whole)
        assert redeemed(whole) == call


async def test_many_middling_texts_are_left_each_for_itself_and_a_mass_of_short_ones_together(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path, claim_check_bytes=100 * 1024, delta_logging=False) as made:
        middling = make_call(
            turn=0,
            messages=[{"role": "tool", "content": f"{number:02}" * 2_600} for number in range(30)],
        )
        short = make_call(
            turn=1, messages=[{"role": "tool", "content": "short " * 20} for _ in range(3_000)]
        )
        for call in (middling, short):
            await made.recorder.record_call(call)
        by_pieces, at_once = (event for _, event in made.producer.log if isinstance(event, LlmCall))
    assert (len(by_pieces.pieces), by_pieces.claim_check) == (30, None)
    assert (at_once.pieces, at_once.claim_check is None) == ((), False)
    assert [redeemed(by_pieces), redeemed(at_once)] == [middling, short]


async def test_a_spool_whose_disk_fails_refuses_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.recording.recorder._PROBE_S", 0.05)
    monkeypatch.setattr("services.gateway.recording.spool._RETRY_S", 0.2)

    def fails(_segment: Segment, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    async with bench(tmp_path, spool_dir=tmp_path / "spool") as made:
        made.producer.away = True
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "append", fails)
            with pytest.raises(Unavailable):
                await made.say(1)
            await asyncio.sleep(0.11)
            with pytest.raises(Unavailable, match="No space left"):
                made.recorder.check(Mode.live)
        made.producer.come_back()
        await asyncio.sleep(0.25)
        made.recorder.check(Mode.live)
        said = await made.say(2)
        assert (made.producer.ids()[-1], made.recorder.problem()) == (said.event_id, None)


async def test_what_is_served_is_served_behind_a_full_spool_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "spool_dir": tmp_path / "spool",
        "spool_max_bytes": 1024**2,
        "log_unavailable_val": "serve",
    }
    async with bench(tmp_path, **settings) as made:
        made.producer.away = True
        made.producer.unreachable = 1.0
        for _ in range(2):
            await made.recorder.record_call(
                make_call(mode=Mode.live, messages=[{"content": "x" * 500_000}])
            )
        made.recorder.check(Mode.val)
        await made.recorder.record_call(
            make_call(turn=1, mode=Mode.val, messages=[{"content": "x" * 500_000}])
        )
        assert made.metric("unlogged_total") == 1
