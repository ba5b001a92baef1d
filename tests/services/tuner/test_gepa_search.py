"""Reflection with a scripted model: it asks with what went wrong, refuses copies, and after a kill
asks nothing again.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.enums import PromptKind
from fulgurite.events import PromptCost, PromptScore, PromptUpdate
from fulgurite.prompts.overlap import OverlapGuard
from fulgurite.prompts.tuning import Budget
from services.tuner.errors import CannotTune, ReflectionFailed
from services.tuner.gepa_search import search_by_reflection
from services.tuner.plan import Method, Plan
from services.tuner.scoring import Scorer
from services.tuner.verdict import Verdict, decide
from tests.services.tuner.tuned_agent import SYSTEM, Agent, Killed, Topic, tasks

TRAIN, VALIDATION = tasks("train", 4, reference="right"), tasks("test", 8)
COST = PromptCost(calls=1, prompt_tokens=100, completion_tokens=10)


def plan(**changed: Any) -> Plan:
    default = Plan(
        method=Method.gepa,
        train=TRAIN,
        validation=VALIDATION,
        guard=OverlapGuard([one.task for one in (*TRAIN, *VALIDATION)]),
        n=1,
        candidates=4,
        budget=Budget(),
        seed=0,
        slots=2,
        pool=4,
        least_reward=1.0,
        start=None,
        minibatch=2,
        promote=True,
    )
    return msgspec.structs.replace(default, **changed)


class Reflector:
    """Answers by a script, and remembers what it was asked."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def ask(self, prompt: str) -> tuple[str, PromptCost]:
        self.asked.append(prompt)
        place = min(len(self.asked), len(self._answers)) - 1
        return f"So:\n```\n{self._answers[place]}\n```", COST


def by_stars(messages: list[dict[str, Any]]) -> float:
    """A model that is better with each star in its system prompt; task 0 is beyond it."""
    if messages[-1]["content"].endswith("0"):
        return 0.0
    return messages[0]["content"].count("*") / 4


def tune(topic: Topic, agent: Agent, model: Any, chosen: Plan) -> Verdict:
    log = topic.log()
    log.begin(method="gepa", train_tasks=4, validation_tasks=8, seed=0)
    scorer = Scorer(log, agent, agent, None, lambda _: None)
    search_by_reflection(chosen, log, scorer, model)
    return decide(chosen, log, scorer)


def test_it_climbs_and_puts_the_best_in_force() -> None:
    topic = Topic()
    model = Reflector("Answer *", "Answer **", "Answer ***", "Answer ****")
    verdict = tune(topic, Agent(topic, by_stars), model, plan())
    assert verdict.candidate is not None
    assert verdict.candidate.system == "Answer ****"
    assert verdict.decision is not None
    assert verdict.decision.kind is PromptKind.promoted
    found = topic.log().state
    assert [one.system for one in found.candidates()] == [
        "Answer *", "Answer **", "Answer ***", "Answer ****",
    ]  # fmt: skip
    parents = [one.parent for one in found.candidates()]
    assert parents[0] is None
    assert set(parents[1:]) <= {"prompt@1", "prompt@2", "prompt@3"}
    assert all(one.cost == COST for one in found.candidates())
    first = model.asked[0]
    assert SYSTEM in first
    assert 'Reference: "right"' in first
    assert "Rewards: 0." in first
    assert "reply to train question" in first
    assert not any("test question" in asked for asked in model.asked), "validation stays unseen"


def test_a_copy_of_a_task_is_refused_with_the_overlap() -> None:
    topic = Topic()
    model = Reflector("**** To train question number 2 say right.", "Answer ****")
    verdict = tune(topic, Agent(topic, by_stars), model, plan(candidates=1))
    assert verdict.candidate is not None
    assert verdict.candidate.system == "Answer ****"
    [refused] = topic.log().state.refused
    assert "'train question number 2' stands in the field 'question'" in refused.reason
    assert refused.cost == COST


def test_texts_that_better_nothing_end_with_what_to_change() -> None:
    topic = Topic()
    verdict = tune(topic, Agent(topic, by_stars), Reflector("Say A", "Say B", "Say C"), plan())
    assert verdict.candidate is None
    assert "none earned more than its parent on its minibatch" in (verdict.why_not or "")
    assert len(topic.log().state.candidates()) == 3


def test_a_model_without_new_ideas_ends_the_search() -> None:
    topic = Topic()
    model = Reflector(" ", SYSTEM, "Answer *", "Answer *")
    tune(topic, Agent(topic, by_stars), model, plan(candidates=16))
    state = topic.log().state
    assert [one.system for one in state.candidates()] == ["Answer *"]
    reasons = {one.reason for one in state.refused}
    assert "the reflection model wrote nothing" in reasons
    assert "prompt@1 says the same" in reasons


@pytest.mark.parametrize("events", [2, 5, 9, 10, 11, 12, 14, 20, 30, 40])
def test_after_a_kill_nothing_is_scored_or_asked_again(events: int) -> None:
    answers = ("Answer *", "**** train question number 2", "Answer **", "Answer ***", "Answer ****")
    whole = Topic()
    expected = tune(whole, Agent(whole, by_stars), Reflector(*answers), plan())
    topic = Topic()
    agent, model = Agent(topic, by_stars), Reflector(*answers)
    topic.limit = events
    with pytest.raises(Killed):
        tune(topic, agent, model, plan())
    lost_scores = len(agent.ran) - _scores(topic)
    lost_answers = len(model.asked) - _answers(topic)
    topic.limit = None
    if lost_answers:
        model = _repeating(model, answers)
    verdict = tune(topic, agent, model, plan())
    assert verdict.candidate is not None
    assert expected.candidate is not None
    assert verdict.candidate.system == expected.candidate.system
    assert len(agent.ran) == _scores(topic) + lost_scores
    assert len(model.asked) == _answers(topic) + lost_answers
    assert lost_scores <= 8
    assert lost_answers <= 1


def _repeating(model: Reflector, answers: tuple[str, ...]) -> Reflector:
    """The model, with the answer that was lost given once more."""
    place = len(model.asked) - 1
    again = Reflector(*answers[: place + 1], *answers[place:])
    again.asked = list(model.asked)
    return again


def _scores(topic: Topic) -> int:
    return sum(isinstance(event, PromptScore) for event in topic.events)


def _answers(topic: Topic) -> int:
    updates = (event for event in topic.events if isinstance(event, PromptUpdate))
    return sum(event.reflection is not None for event in updates)


def test_the_budget_counts_reflection_and_leaves_room_for_the_comparison() -> None:
    topic = Topic()
    model = Reflector("Answer *", "Answer **", "Answer ***", "Answer ****")
    tune(topic, Agent(topic, by_stars), model, plan(budget=Budget(calls=60)))
    state = topic.log().state
    assert state.candidates()
    assert len(state.candidates()) < 4
    assert state.spent.calls <= 60


def test_a_reflection_that_fails_is_an_error_and_no_silent_end() -> None:
    class Broken(Reflector):
        def ask(self, prompt: str) -> tuple[str, PromptCost]:
            super().ask(prompt)
            raise ReflectionFailed("it is away")

    topic, model = Topic(), Broken("")
    with pytest.raises(ReflectionFailed, match="it is away"):
        tune(topic, Agent(topic, by_stars), model, plan())
    assert len(model.asked) == 1


def first_version(topic: Topic, **edits: Any) -> None:
    topic.publish(
        "policy",
        PromptUpdate(
            event_id="first", event_time=1, alias="policy", kind=PromptKind.set, version="prompt@1", reason="", author="", **edits,
        ),
    )  # fmt: skip


def test_it_begins_with_the_system_prompt_in_force_and_keeps_other_edits() -> None:
    topic = Topic()
    first_version(topic, system="Answer *", tools={"calc": "described"})
    model = Reflector("Answer ****")
    verdict = tune(topic, Agent(topic, by_stars), model, plan(candidates=1))
    assert "Answer *" in model.asked[0]
    assert verdict.baseline == "prompt@1"
    assert verdict.candidate is not None
    assert verdict.candidate.tools == {"calc": "described"}


def test_a_text_to_begin_with_is_a_candidate_itself() -> None:
    topic = Topic()
    model = Reflector("Answer ****")
    tune(topic, Agent(topic, by_stars), model, plan(start="Answer **", candidates=2))
    written = topic.log().state.candidates()
    assert [(one.system, one.reflection is None) for one in written] == [
        ("Answer **", True),
        ("Answer ****", False),
    ]


def test_a_text_to_begin_with_that_copies_a_task_is_an_error() -> None:
    agent, model = Agent(Topic(), by_stars), Reflector("Answer ****")
    start = "Answer *, for example test question number 3"
    with pytest.raises(CannotTune, match="--start copies a task: 'test question number 3' stands"):
        tune(Topic(), agent, model, plan(start=start))
    assert not agent.ran
    assert not model.asked


class SilentAgent(Agent):
    """Sends no system prompt."""

    def sent(self, question: str) -> list[dict[str, object]]:
        return [{"role": "user", "content": question}]


def test_without_a_text_to_begin_with_it_says_so() -> None:
    topic = Topic()
    agent = SilentAgent(topic, lambda _: 0.0)
    with pytest.raises(CannotTune, match="sends no system prompt to policy"):
        tune(topic, agent, Reflector(""), plan())
    other = Topic()
    first_version(other, prefix="Answer *")
    with pytest.raises(CannotTune, match="prompt@1 edits a part of the system prompt"):
        tune(other, Agent(other, by_stars), Reflector(""), plan())
