"""A judge's verdicts in a replay with unchanged rules: the same rows with the same scores, and no
question to any model.
"""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.enums import FilterReason
from fulgurite.events import AgentStatus, Event, GroupClosed, LlmCall, Tombstone, Trajectory
from fulgurite.topics import TRAJECTORIES
from services.judge.errors import BadVerdict
from services.judge.groups import WaitingRoom
from services.judge.prompt import Question, Score
from services.judge.scores import GroupJudge
from services.replay.closings import Changes
from services.replay.replay import run
from services.rewarder.closing_settings import ClosingSettings
from tests.services.replay.memory_log import CODEC, LiveProcessors, MemoryLog
from tests.synthetic import make_call, make_declared, make_status


class Answers:
    """A model that gives these scores; without any, none."""

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    async def scores(self, question: Question) -> list[Score]:
        if not self._values:
            raise BadVerdict("no")
        return [Score(str(number), "so", value) for number, value in enumerate(self._values, 1)]


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.rows: list[Event] = []

    def put(self, partition: int, rows: Sequence[Event]) -> None:
        self.rows.extend(rows)

    def close(self) -> None:
        """Nothing to finish."""


async def judged(*values: float) -> tuple[MemoryLog, list[Event]]:
    """The log of a group of two with a judge's verdicts, told twice as after a crash; and what a
    replay of it writes.
    """
    log = MemoryLog()
    live = LiveProcessors(log)
    events: list[LlmCall | AgentStatus] = [
        make_declared(1, 2, expected=("judge",), deadline=10_000)
    ]
    for index in range(2):
        said: dict[str, object] = {"role": "assistant", "content": f"{index}"}
        events += [
            make_call(1, index, messages=[{"role": "user", "content": "1+1"}], replies=[said]),
            make_status(1, index),
        ]
    live.take(events)
    room = WaitingRoom()
    for episode in log.groups()[0].episodes():
        room.apply(0, 0, episode)
    [group] = room.due(0, 0, lambda _partition, _offset: False)
    verdicts = await GroupJudge("judge", "big", "fair", 10_000).judge(
        group.attempts(), Answers(values)
    )
    live.take([*verdicts, *verdicts])
    live.close()
    sink = Kept()
    run(log.groups(), sink, source=log, codec=CODEC, changes=Changes(), settings=ClosingSettings())
    return log, sink.rows


async def test_scores_are_kept_to_the_byte() -> None:
    log, rows = await judged(0.25, 1.0)
    assert [row.episode_reward for row in rows if isinstance(row, Trajectory)] == [0.25, 1.0]
    written = [raw.value for partition in range(8) for raw in log.read((TRAJECTORIES,), partition)]
    assert [CODEC.encode(row) for row in rows] == written


async def test_a_judge_that_failed_trains_nothing() -> None:
    _, rows = await judged()
    assert [row.reason for row in rows if isinstance(row, Tombstone)] == [
        FilterReason.reward_failed
    ] * 2
    assert [type(row) for row in rows[2:]] == [GroupClosed]
