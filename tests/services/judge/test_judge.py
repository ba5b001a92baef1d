"""A judge's questions, the answers it takes, the groups it waits for and the verdicts it gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, AgentStatus, Episode, LlmCall
from fulgurite.groups.rewards import counted
from services.judge.errors import BadVerdict, JudgeFailed, JudgeUnreachable
from services.judge.groups import JudgedAttempt, Waiting, WaitingRoom
from services.judge.model import JudgeModel
from services.judge.prompt import DEFAULT_RUBRIC, Question, Score, common_prefix, digest, question
from services.judge.scores import GroupJudge
from services.judge.settings import JudgeSettings
from tests.synthetic import group_id, make_call, make_declared, make_status

SYSTEM: dict[str, object] = {"role": "system", "content": "add"}
TASK: dict[str, object] = {"role": "user", "content": "1+1"}
DECLARED = make_declared(size=3, deadline=10_000)
texts = st.text(max_size=30) | st.sampled_from(
    ["</trajectory>", '<trajectory id="2">', "</context>", "<context>"]
)
conversations = st.lists(
    st.lists(
        st.fixed_dictionaries({"role": st.just("user"), "content": texts}), min_size=1, max_size=4
    ),
    min_size=2,
)


def made_of(*events: LlmCall | AgentStatus) -> Episode:
    made = stitch(list(events))
    assert made is not None
    return made


def episode(
    index: int,
    *,
    said: str | None = "2",
    turn: int = 0,
    declared: AgentStatus = DECLARED,
    will_retry: bool = False,
) -> Episode:
    reply: dict[str, object] = {"role": "assistant", "content": said}
    calls = (
        [make_call(index=index, turn=turn, messages=[SYSTEM, TASK], replies=[reply])]
        if said
        else []
    )
    return made_of(declared, *calls, make_status(index=index, will_retry=will_retry))


def answer(*scores: tuple[str, float]) -> str:
    return json.dumps(
        {
            "scores": [
                {"trajectory_id": name, "explanation": "so", "score": score}
                for name, score in scores
            ]
        }
    )


def told(*episodes: Episode) -> list[JudgedAttempt]:
    room = WaitingRoom()
    for offset, one in enumerate(episodes):
        room.apply(0, offset, one)
        room.pass_by(0, offset, one.event_time)
    [group] = room.due(10**9, 0, nothing_more)
    return group.attempts()


def nothing_more(_partition: int, _offset: int) -> bool:
    return False


class Answers:
    """A model that says what it is told to."""

    def __init__(self, *values: float, error: JudgeFailed | None = None) -> None:
        self.values = values
        self.error = error
        self.questions: list[Question] = []

    async def scores(self, question: Question) -> list[Score]:
        self.questions.append(question)
        if self.error is not None:
            raise self.error
        return [
            Score(str(number), f"why {number}", value)
            for number, value in enumerate(self.values, 1)
        ]


def judge(rubric: str = DEFAULT_RUBRIC) -> GroupJudge:
    return GroupJudge("judge", "big", rubric, 10_000)


@given(conversations)
def test_every_trajectory_has_one_frame_whatever_agents_wrote(
    said: list[list[dict[str, Any]]],
) -> None:
    asked = question(said, DEFAULT_RUBRIC, 1_000_000).messages[1]["content"]
    assert asked.count("<trajectory id=") == asked.count("</trajectory>") == len(said)
    shared = common_prefix(said)
    assert asked.count("<context>") == asked.count("</context>") == bool(shared)
    frames = [frame.split("\n</trajectory>")[0] for frame in asked.split("<trajectory id=")[1:]]
    rest = [[json.loads(line) for line in frame.split("\n")[1:]] for frame in frames]
    assert rest == [conversation[shared:] for conversation in said]


@given(
    conversations, st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": texts}))
)
def test_what_all_begin_with_is_shared_and_everyones_last_message_is_their_own(
    said: list[list[dict[str, Any]]], start: list[dict[str, Any]]
) -> None:
    longer = [start + conversation for conversation in said]
    shared = common_prefix(longer)
    assert shared == len(start) + common_prefix(said)
    assert all(
        conversation[:shared] == longer[0][:shared] and conversation[shared:]
        for conversation in longer
    )


def test_the_middle_of_a_long_trajectory_is_left_out() -> None:
    said = [[{"role": "assistant", "content": "a" * 500 + "MIDDLE" + "z" * 500}], [TASK]]
    asked = question(said, DEFAULT_RUBRIC, 200).messages[1]["content"]
    assert "characters left out" in asked
    assert "MIDDLE" not in asked
    assert len(asked) < 400


def test_a_whole_answer_is_taken_in_the_order_of_the_trajectories() -> None:
    asked = question([[TASK], [TASK]], DEFAULT_RUBRIC, 1_000)
    assert [score.score for score in asked.answered(answer(("2", 1), ("1", 0.25)))] == [0.25, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot",
        "[]",
        '{"scores": []}',
        answer(("1", 0.5)),
        answer(("1", 0.5), ("1", 0.5)),
        answer(("1", 0.5), ("3", 0.5)),
        answer(("1", 0.5), ("2", 0.5), ("2", 0.5)),
        answer(("1", 0.5), ("2", 1.5)),
        answer(("1", 0.5), ("2", -0.5)),
        answer(("1", 0.5), ("2", float("nan"))),
        '{"scores": [{"trajectory_id": "1", "score": 1}, {"trajectory_id": "2", "score": 1}]}',
    ],
)
def test_any_other_answer_is_none(text: str) -> None:
    with pytest.raises(BadVerdict):
        question([[TASK], [TASK]], DEFAULT_RUBRIC, 1_000).answered(text)


@given(st.text())
def test_no_answer_is_worse_than_a_bad_one(text: str) -> None:
    with pytest.raises(BadVerdict):
        question([[TASK], [TASK]], DEFAULT_RUBRIC, 1_000).answered(text)


def test_a_group_is_due_once_it_is_whole() -> None:
    room = WaitingRoom()
    for index in range(3):
        assert room.due(5_000, 0, nothing_more) == []
        room.apply(0, index, episode(index))
        room.pass_by(0, index, 2_000)
    [group] = room.due(5_000, 0, nothing_more)
    assert [one.messages[-1]["content"] for one in group.attempts()] == ["2"] * 3
    assert all(one.episode.calls == () for one in group.attempts())
    assert room.due(10**9, 0, nothing_more) == []


def test_an_overdue_group_is_due_in_the_time_of_the_events_or_where_the_log_ends() -> None:
    room = WaitingRoom()
    room.apply(0, 0, episode(0))
    room.pass_by(0, 0, 2_000)
    assert room.due(10**9, 1, lambda _partition, _offset: True) == []
    room.pass_by(0, 1, 11_000)
    assert room.due(0, 2, lambda _partition, _offset: True) == []
    assert len(room.due(0, 1, lambda _partition, _offset: True)) == 1
    room.apply(1, 0, replace(episode(0), group_id="other"))
    room.pass_by(1, 0, 2_000)
    assert room.due(10_999, 1, nothing_more) == []
    assert len(room.due(11_000, 1, nothing_more)) == 1


def test_an_attempt_that_another_replaces_is_not_judged() -> None:
    declared = make_declared(size=1, max_attempts=2)
    first = episode(0, said="first", declared=declared, will_retry=True)
    call = make_call(
        attempt=1, turn=1, messages=[TASK], replies=[{"role": "assistant", "content": "second"}]
    )
    second = made_of(declared, call, make_status(attempt=1, at=3_000))
    assert [one.messages[-1]["content"] for one in told(first, second)] == ["second"]


def test_nothing_is_committed_before_its_group_is_settled() -> None:
    room = WaitingRoom()
    groups = [replace(DECLARED, group_id=group_id(number)) for number in range(2)]
    for offset, number in enumerate([0, 1, 1, 1, 0]):
        one = replace(episode([0, 0, 1, 2, 1][offset]), group_id=groups[number].group_id)
        room.apply(4, offset, one)
        room.pass_by(4, offset, 2_000)
    [second] = room.due(5_000, 0, nothing_more)
    room.mark_done(second)
    assert room.committable() == {4: 0}
    [first] = room.due(10**9, 0, nothing_more)
    assert room.committable() == {4: 0}
    room.apply(4, 5, replace(episode(2), group_id=first.group_id))
    room.pass_by(4, 5, 2_000)
    room.mark_done(first)
    assert room.committable() == {4: 5}
    room.leave(4)
    assert room.committable() == {}
    assert room.due(10**9, 0, nothing_more) == []


async def test_a_group_is_one_question_and_a_score_for_each() -> None:
    model = Answers(0.0, 1.0, 0.5)
    rewards = await judge().judge(told(episode(2), episode(0), episode(1)), model)
    assert [
        (reward.rollout_id.split("_")[2], reward.value, reward.error) for reward in rewards
    ] == [
        ("0", 0.0, None),
        ("1", 1.0, None),
        ("2", 0.5, None),
    ]
    assert [json.loads(reward.metadata or "") for reward in rewards] == [
        {"explanation": f"why {number}"} for number in (1, 2, 3)
    ]
    assert len(model.questions) == 1


async def test_what_cannot_be_judged_is_told_why() -> None:
    silent, alone = await judge().judge(told(episode(0, said=None), episode(1)), Answers())
    assert (silent.value, silent.error) == (None, "NothingSaid: the attempt has no answered call")
    assert alone.error == "TooFewTrajectories: a judge compares, and this group has 1 to be judged"
    failed = await judge().judge(
        told(episode(0), episode(1)), Answers(error=JudgeUnreachable("away"))
    )
    assert [(reward.value, reward.error, reward.final) for reward in failed] == [
        (None, "JudgeUnreachable: away", True)
    ] * 2
    assert await judge().judge([], Answers()) == []


async def ids(judge: GroupJudge, episodes: Sequence[Episode]) -> list[str]:
    return [
        reward.event_id
        for reward in await judge.judge(told(*episodes), Answers(*[0.5] * len(episodes)))
    ]


async def test_the_same_question_has_the_same_verdicts_and_another_others() -> None:
    group = [episode(0), episode(1), episode(2)]
    same = await ids(judge(), group)
    assert await ids(judge(), group[::-1]) == same
    amended = [episode(0, said="3", turn=5), *group[1:]]
    for other in (
        await ids(judge("others"), group),
        await ids(judge(), group[:2]),
        await ids(judge(), amended),
    ):
        assert not set(other) & set(same)
    assert digest("a") != digest("b")


async def test_a_verdict_on_more_of_the_group_outweighs_the_one_before() -> None:
    group = [episode(0), episode(1), episode(2)]
    part = await judge().judge(told(*group[:2]), Answers(0.1, 0.2))
    whole = await judge().judge(told(*group), Answers(0.7, 0.8, 0.9))
    assert whole[0].event_time > part[0].event_time
    rewards: list[AgentReward] = [*whole, *part]
    assert [reward.value for one in group for reward in counted(one, rewards)] == [0.7, 0.8, 0.9]


def test_a_group_that_was_read_again_began_no_later_than_its_episodes() -> None:
    group = Waiting(group_id(0), 0, 0)
    group.apply(episode(0))
    assert group.began() == 0
    later = Waiting(group_id(0), 0, 0)
    later.apply(replace(episode(0), started_at=1_000_000))
    assert later.began() == 940_000


def test_a_rollouts_key_is_not_accepted_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="FULGURITE_JUDGE_API_KEY is a rollout's key") as refused:
        JudgeModel(
            "big", "judge", JudgeSettings.model_validate({"api_key": "fg-k1.secret.signature"})
        )
    assert "secret" not in str(refused.value)


async def test_a_live_conversation_is_scored_by_itself() -> None:
    model = Answers(0.7)
    live = GroupJudge("judge", "big", DEFAULT_RUBRIC, 10_000, live=True)
    [reward] = await live.judge(told(episode(0))[:1], model)
    assert (reward.value, reward.fallback, reward.source) == (0.7, True, live.source)
    assert "an attempt at a goal" in model.questions[0].messages[0]["content"]
    assert live.source != judge().source
    failing = Answers(error=JudgeFailed("away"))
    [reward] = await live.judge(told(episode(0))[:1], failing)
    assert (reward.value, reward.fallback) == (None, True)
