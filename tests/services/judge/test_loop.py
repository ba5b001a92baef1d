"""The judge's loop over a log in memory: what is asked, when it is committed, what becomes of it
when partitions move or it is stopped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import Any

import pytest

from fulgurite.enums import Mode, TrainingUse
from fulgurite.episodes.stitching import stitch
from fulgurite.episodes.view import EpisodeView
from fulgurite.events import AgentReward, DeadLetter, Episode
from fulgurite.topics import AGENT_REWARDS, Topic
from services.common.kafka.consumer import Record
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.judge import groups as judge_groups
from services.judge import main as module
from services.judge.main import Judge
from services.judge.model import JudgeModel
from services.judge.prompt import DEFAULT_RUBRIC, Question, Score, question
from services.judge.scores import GroupJudge
from services.judge.settings import JudgeSettings
from tests.integration.stub_upstream import running_stub
from tests.services.gateway.memory_producer import MemoryProducer
from tests.services.memory_episodes import MemoryConsumer, MemoryEpisodes
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

FAR = 10**15
"""A deadline that no test sees."""


def settings(**changed: Any) -> JudgeSettings:
    return JudgeSettings.model_validate(
        {
            "base_url": "http://127.0.0.1:1/v1",
            "retries": 0,
            "retry_wait_s": 0.0,
            "grace_s": 0.0,
            **changed,
        }
    )


class Model(JudgeModel):
    """Scores every trajectory 0.5, once it may."""

    def __init__(self) -> None:
        super().__init__("big", "judge", settings())
        self.may = asyncio.Event()
        self.may.set()
        self.asked = 0

    async def scores(self, question: Question) -> list[Score]:
        self.asked += 1
        await self.may.wait()
        count = question.messages[1]["content"].count("<trajectory id=")
        return [Score(str(number), "so", 0.5) for number in range(1, count + 1)]


class Bench:
    """A log, and judges of one group on it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.log = MemoryEpisodes()
        patch.setattr(module, "read_all", self._read_all)

    def _read_all(
        self,
        _kafka: KafkaSettings,
        _topic: object,
        _codec: object,
        *,
        partitions: list[int],
        **_: Any,
    ) -> Iterator[Record]:
        return self.log.read(partitions[0])

    @asynccontextmanager
    async def judge(
        self,
        *partitions: int,
        model: JudgeModel | None = None,
        run_id: str | None = None,
        live: bool = False,
    ) -> AsyncGenerator[Judging]:
        """A judge that runs, and is stopped at the end."""
        one = Judging(self._patch, self.log, model or Model(), run_id, live=live)
        one.consumer.give(*partitions)
        running = one.running = asyncio.create_task(one.judge.run())
        try:
            yield one
        finally:
            one.judge.stop()
            await asyncio.wait_for(running, 10)


class Judging:
    """One judge, with what it reads from and writes to."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        log: MemoryEpisodes,
        model: JudgeModel,
        run_id: str | None,
        *,
        live: bool,
    ) -> None:
        self.running: asyncio.Task[None] | None = None
        self.consumer = MemoryConsumer(log)
        self.producer = MemoryProducer()
        patch.setattr(module, "EventProducer", partial(_given, self.producer))
        patch.setattr(module, "episodes_consumer", partial(_given, self.consumer))
        self.judge = Judge(
            GroupJudge("judge", "big", DEFAULT_RUBRIC, 10_000, live=live),
            model,
            run_id,
            KafkaSettings(),
            settings(concurrency=1, live_wait_s=10.0),
        )

    @property
    def rewards(self) -> list[AgentReward]:
        return [event for _, event in self.producer.log if isinstance(event, AgentReward)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def episode(
    group: int, index: int, *, turns: int = 1, deadline: int = FAR, run_id: str | None = None
) -> Episode:
    task: dict[str, object] = {"role": "user", "content": "1+1"}
    calls = [make_call(group, index, turn, messages=[task]) for turn in range(turns)]
    made = stitch(
        [make_declared(group, deadline=deadline, run_id=run_id), *calls, make_status(group, index)]
    )
    assert made is not None
    return made


def _given(what: object, *_: object) -> object:
    return what


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110 - another thread and the judge's tasks get there
            await asyncio.sleep(0.005)


async def test_a_group_is_asked_about_once_though_an_episode_comes_twice(bench: Bench) -> None:
    model = Model()
    bench.log.append(3, episode(0, 0, deadline=1_000), episode(0, 1, deadline=1_000))
    async with bench.judge(3, model=model) as judge:
        await until(lambda: bench.log.committed.get(3) == 2)
        bench.log.append(3, episode(0, 1, deadline=1_000))
        await until(lambda: bench.log.committed.get(3) == 3)
        assert [(reward.group_id, reward.value) for reward in judge.rewards] == [
            (group_id(0), 0.5)
        ] * 2
    assert model.asked == 1


async def test_a_group_that_is_not_whole_holds_back_what_is_committed_and_is_read_again_after_a_restart(
    bench: Bench,
) -> None:
    bench.log.append(0, episode(0, 0), episode(1, 0), episode(1, 1))
    async with bench.judge(0) as first:
        await until(lambda: len(first.rewards) == 2)
    assert bench.log.committed == {0: 0}
    bench.log.append(0, episode(0, 1))
    async with bench.judge(0) as second:
        await until(lambda: bench.log.committed == {0: 4})
    told = {reward.event_id for reward in second.rewards}
    assert {reward.event_id for reward in first.rewards} < told
    assert len(told) == 4


async def test_nothing_is_committed_that_was_not_acknowledged(bench: Bench) -> None:
    bench.log.append(0, episode(0, 0), episode(0, 1))
    with pytest.raises(LogUnavailable):  # noqa: PT012 - the judge ends while it is looked at
        async with bench.judge(0) as judge:
            judge.producer.away = True
            await until(lambda: judge.running is not None and judge.running.done())
            assert len(judge.producer.stuck) == 2
    assert bench.log.committed.get(0, 0) == 0


async def test_other_runs_and_what_cannot_be_read_are_passed_by(bench: Bench) -> None:
    bench.log.append(
        0,
        episode(0, 0, run_id="other"),
        b"no frame",
        episode(1, 0, run_id="mine"),
        episode(1, 1, run_id="mine"),
    )
    async with bench.judge(0, run_id="mine") as judge:
        await until(lambda: bench.log.committed == {0: 4})
    assert {reward.group_id for reward in judge.rewards} == {group_id(1)}
    [letter] = [event for _, event in judge.producer.log if isinstance(event, DeadLetter)]
    assert (letter.stage, letter.offset) == ("judge", 1)


async def test_an_episode_that_cannot_be_read_is_buried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable(EpisodeView):
        @cached_property
        def messages(self) -> list[dict[str, Any]]:
            if self.record.group_id == group_id(0):
                raise TypeError("no conversation")
            return super().messages

    monkeypatch.setattr(judge_groups, "EpisodeView", Unreadable)
    bench.log.append(0, episode(0, 0), episode(1, 0), episode(1, 1))
    async with bench.judge(0) as judge:
        await until(lambda: bench.log.committed == {0: 3})
    assert [reward.value for reward in judge.rewards] == [0.5, 0.5]
    (letter,) = [event for _, event in judge.producer.log if isinstance(event, DeadLetter)]
    assert (letter.error_type, letter.error) == ("TypeError", "no conversation")


async def test_a_later_revision_is_judged_with_the_whole_group(bench: Bench) -> None:
    model = Model()
    bench.log.append(0, episode(0, 0, deadline=1_000), episode(0, 1, deadline=1_000))
    async with bench.judge(0, model=model) as judge:
        await until(lambda: bench.log.committed.get(0) == 2)
        first = {reward.rollout_id: reward.event_id for reward in judge.rewards[-2:]}
        bench.log.append(0, episode(0, 1, turns=2, deadline=1_000))
        await until(lambda: bench.log.committed.get(0) == 3)
        second = {reward.rollout_id: reward.event_id for reward in judge.rewards[-2:]}
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    assert [reward.value for reward in judge.rewards[-2:]] == [0.5, 0.5]


async def test_no_more_is_read_while_many_groups_wait(bench: Bench) -> None:
    model = Model()
    model.may.clear()
    bench.log.append(0, *(episode(group, index) for group in range(8) for index in (0, 1)))
    async with bench.judge(0, model=model) as judge:
        await until(lambda: judge.consumer.paused)
        bench.log.append(0, episode(8, 0), episode(8, 1))
        assert model.asked == 1
        model.may.set()
        await until(lambda: bench.log.committed == {0: 18})
        assert not judge.consumer.paused
    assert model.asked == 9


async def test_a_partition_that_moves_midway_is_judged_to_its_end_by_the_next_owner(
    bench: Bench,
) -> None:
    slow = Model()
    slow.may.clear()
    for partition, groups in ((0, (0, 1)), (1, (2, 3))):
        bench.log.append(
            partition, *(episode(group, index) for group in groups for index in (0, 1))
        )
    async with bench.judge(0, 1, model=slow) as first:
        await until(lambda: slow.asked == 1)
        first.consumer.give(1)
        await until(lambda: [place.partition for place in first.consumer.assignment()] == [1])
        async with bench.judge(0) as second:
            await until(lambda: bench.log.committed.get(0) == 4)
            assert len(second.rewards) == 4
            slow.may.set()
            await until(lambda: bench.log.committed == {0: 4, 1: 4})
    # What the first was at when the partition left is told twice, as the same events.
    ids = [reward.event_id for reward in (*first.rewards, *second.rewards)]
    assert len(ids) > len(set(ids)) == 8
    assert {reward.group_id for reward in second.rewards} == {group_id(0), group_id(1)}


async def test_a_settled_group_of_a_partition_that_left_commits_nothing(bench: Bench) -> None:
    slow = Model()
    slow.may.clear()
    bench.log.append(0, episode(0, 0), episode(0, 1))
    async with bench.judge(0, model=slow) as judge:
        await until(lambda: slow.asked == 1)
        judge.consumer.give()
        await until(lambda: not judge.consumer.assignment())
        slow.may.set()
        await until(lambda: len(judge.rewards) == 2)
    assert bench.log.committed.get(0, 0) == 0


async def test_a_judge_that_is_stopped_while_it_asks_says_nothing_of_that_group(
    bench: Bench,
) -> None:
    bench.log.append(0, episode(0, 0), episode(0, 1))
    async with running_stub() as stub:
        stub.reset(hang=True)
        model = JudgeModel("big", "judge", settings(base_url=stub.url + "/v1"))
        async with bench.judge(0, model=model) as stopped:
            await until(stub.asked.is_set)
        assert stopped.producer.log == []
        assert bench.log.committed.get(0, 0) == 0

        scores = [
            {"trajectory_id": str(number), "explanation": "so", "score": 0.5} for number in (1, 2)
        ]
        stub.reset(words=[json.dumps({"scores": scores})])
        async with bench.judge(
            0, model=JudgeModel("big", "judge", settings(base_url=stub.url + "/v1"))
        ) as again:
            await until(lambda: bench.log.committed.get(0) == 2)
        assert [reward.value for reward in again.rewards] == [0.5, 0.5]


async def test_a_group_that_cannot_be_judged_is_a_dead_letter_and_the_judge_goes_on(
    bench: Bench,
) -> None:
    class Broken(Model):
        async def scores(self, question: Question) -> list[Score]:
            if "poison" in question.messages[1]["content"]:
                raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")
            return await super().scores(question)

    def told(index: int, text: str) -> Episode:
        made = stitch(
            [
                make_declared(0),
                make_call(0, index, messages=[{"role": "user", "content": text}]),
                make_status(0, index),
            ]
        )
        assert made is not None
        return made

    bench.log.append(0, told(0, "poison"), told(1, "poison"), episode(1, 0), episode(1, 1))
    async with bench.judge(0, model=Broken()) as judge:
        await until(lambda: bench.log.committed == {0: 4})
        [letter] = [event for _, event in judge.producer.log if isinstance(event, DeadLetter)]
        assert (letter.error_type, letter.stage, letter.actions) == (
            "UnicodeEncodeError",
            "judge",
            (),
        )
        assert [reward.group_id for reward in judge.rewards] == [group_id(1)] * 2


def test_half_a_surrogate_pair_can_be_put_to_a_judge() -> None:
    asked = question(
        [[{"role": "user", "content": "\ud83d"}], [{"role": "user", "content": "x"}]], "", 1_000
    )
    assert b"ud83d" in asked.messages[1]["content"].encode()


def live_episode(group: int, use: TrainingUse = TrainingUse.live, ended_at: int = 2_000) -> Episode:
    task: dict[str, object] = {"role": "user", "content": "1+1"}
    made = stitch(
        [
            make_call(group, messages=[task], mode=Mode.live, use=use),
            make_status(group, at=ended_at, mode=Mode.live),
        ]
    )
    assert made is not None
    return made


async def test_live_conversations_without_a_vote_are_judged_once_the_wait_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voted on, open to votes, not opted in, declared: only the first of five is judged."""
    votes = [make_reward(1), make_reward(0, fallback=True)]

    def read_all(_kafka: object, topic: Topic, *_: object, **options: Any) -> Iterator[Record]:
        assert topic is AGENT_REWARDS
        for event in votes:
            if event.group_id.encode() in options["keys"]:
                yield Record(0, 0, 1, b"", b"", event, None)

    model = Model()
    bench.log.append(
        0,
        live_episode(0),
        live_episode(1),
        live_episode(3, TrainingUse.by_mode),
        episode(4, 0, deadline=1_000),
        live_episode(2, ended_at=FAR),
    )
    monkeypatch.setattr(module, "read_all", read_all)
    async with bench.judge(0, model=model, live=True) as judge:
        await until(lambda: bench.log.committed.get(0) == 4)
        assert [(one.group_id, one.fallback) for one in judge.rewards] == [(group_id(0), True)]
    assert model.asked == 1


async def test_a_judge_of_live_traffic_belongs_to_no_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        await module.run(["--model", "big", "--live", "--run-id", "r"])
    assert "belongs to no run" in capsys.readouterr().err
