"""The search over demonstrations: it finds what helps, stays within its budget, and goes on after a
kill without doing anything twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fulgurite.enums import Mode, PromptKind, TrainingUse
from fulgurite.events import PromptScore, PromptUpdate
from fulgurite.prompts.examples import Example
from fulgurite.prompts.overlap import OverlapGuard
from fulgurite.prompts.tuning import Budget
from services.tuner.demonstrations import search_demonstrations
from services.tuner.errors import CannotTune
from services.tuner.plan import Method, Plan
from services.tuner.rollouts import RolloutResult, example_of
from services.tuner.scoring import Scorer
from services.tuner.verdict import Verdict, decide
from tests.services.tuner.tuned_agent import Agent, Killed, Topic, make_episode, tasks
from tests.synthetic import make_call


def plan(**changed: Any) -> Plan:
    default = Plan(
        method=Method.demonstrations,
        train=tasks("train", 6),
        validation=tasks("test", 8),
        guard=OverlapGuard([]),
        n=1,
        candidates=12,
        budget=Budget(),
        seed=0,
        slots=2,
        pool=4,
        least_reward=1.0,
        start=None,
        minibatch=3,
        promote=True,
    )
    return msgspec.structs.replace(default, **changed)


def helped_by(question: str, *, spoilt_by: str = "never") -> Any:
    """A model that succeeds where it is shown one example and not another; of training tasks it
    always does.
    """

    def judge(messages: list[dict[str, Any]]) -> float:
        asked, shown = messages[-1]["content"], [one["content"] for one in messages[:-1]]
        knows = question in shown and spoilt_by not in shown
        return float(asked.startswith("train") or (knows and not asked.endswith("7")))

    return judge


def tune(
    topic: Topic,
    agent: Agent,
    chosen: Plan,
    tuning: str = "t",
    warn: Callable[[str], None] = lambda _: None,
) -> Verdict:
    log = topic.log(tuning)
    log.begin(method="demonstrations", train_tasks=6, validation_tasks=8, seed=0)
    scorer = Scorer(log, agent, agent, None, lambda _: None)
    search_demonstrations(chosen, log, scorer, agent, warn)
    return decide(chosen, log, scorer)


GOOD, BAD = "train question number 2", "train question number 0"


def test_it_finds_the_example_that_helps_and_puts_it_in_force() -> None:
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD, spoilt_by=BAD))
    verdict = tune(topic, agent, plan())
    assert verdict.candidate is not None
    contents = [one.content for one in verdict.candidate.demonstrations]
    assert GOOD in contents
    assert BAD not in contents
    assert verdict.difference is not None
    assert verdict.difference.estimate.mean == 7 / 8
    assert verdict.decision is not None
    assert verdict.decision.kind is PromptKind.promoted
    state = topic.log().state
    assert state.history.current("policy", None) == verdict.candidate
    assert len(verdict.candidate.examples) == len(contents) / 2
    assert state.spent.calls == len(agent.ran) == state.rollouts
    assert len(set(agent.ran)) == len(agent.ran) - 2 * 8, "only the comparison runs tasks again"


def test_a_candidate_that_was_taken_back_is_put_in_force_again() -> None:
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD, spoilt_by=BAD))
    first = tune(topic, agent, plan()).decision
    written = len(topic.events)
    assert tune(topic, agent, plan()).decision == first
    assert len(topic.events) == written, "it is in force already"
    topic.publish(
        "policy",
        PromptUpdate(
            event_id="back", event_time=1, alias="policy", kind=PromptKind.rollback, reason="", author="",
        ),
    )  # fmt: skip
    assert topic.log().state.history.current("policy", None) is None
    verdict = tune(topic, agent, plan())
    assert verdict.decision is not None
    assert topic.log().state.history.current("policy", None) == verdict.candidate


def test_without_the_flag_it_only_proposes() -> None:
    topic = Topic()
    verdict = tune(topic, Agent(topic, helped_by(GOOD)), plan(promote=False))
    assert verdict.decision is not None
    assert verdict.decision.kind is PromptKind.proposed
    assert topic.log().state.history.current("policy", None) is None


def test_what_is_not_better_is_not_proposed() -> None:
    topic = Topic()
    verdict = tune(topic, Agent(topic, helped_by("never shown")), plan())
    assert verdict.decision is None
    assert "no candidate earned more" in (verdict.why_not or "")


def test_who_tunes_again_on_the_same_tasks_needs_a_surer_gain() -> None:
    topic = Topic()
    first, second = plan(promote=False), plan(promote=False, seed=1)
    agent = Agent(topic, helped_by(GOOD))
    once, twice = tune(topic, agent, first), tune(topic, agent, second, "again")
    assert (once.number, twice.number) == (1, 2)
    assert once.decision is not None
    assert twice.decision is not None
    assert "with 96.96% confidence as verdict 1 on these tasks" in once.decision.reason
    assert "with 99.24% confidence as verdict 2 on these tasks" in twice.decision.reason
    assert once.difference is not None
    assert twice.difference is not None
    assert once.difference.estimate.mean == twice.difference.estimate.mean
    assert (twice.difference.estimate.low or 0) < (once.difference.estimate.low or 0)
    assert tune(topic, agent, first) == once, "a verdict stays what it was"
    others = tasks("other", 8)
    fresh = tune(topic, agent, plan(promote=False, validation=others), "fresh")
    assert fresh.number == 1


def test_a_version_set_meanwhile_is_not_replaced() -> None:
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD))
    log = topic.log()
    log.begin(method="demonstrations", train_tasks=6, validation_tasks=8, seed=0)
    scorer = Scorer(log, agent, agent, None, lambda _: None)
    search_demonstrations(plan(), log, scorer, agent, lambda _: None)
    number = topic.log().state.history.next_version("policy")
    topic.publish(
        "policy",
        PromptUpdate(
            event_id="mine", event_time=1, alias="policy", kind=PromptKind.set, version=number, system="Mine.", reason="", author="",
        ),
    )  # fmt: skip
    verdict = decide(plan(), log, scorer)
    assert verdict.decision is not None
    assert verdict.decision.kind is PromptKind.proposed
    assert f"{number} was put in force meanwhile" in (verdict.why_not or "")


@pytest.mark.parametrize("events", [1, 2, 5, 8, 14, 15, 16, 20, 30, 50])
def test_after_a_kill_it_goes_on_where_the_log_ends(events: int) -> None:
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD, spoilt_by=BAD))
    topic.limit = events
    with pytest.raises(Killed):
        tune(topic, agent, plan())
    lost = len(agent.ran) - sum(isinstance(event, PromptScore) for event in topic.events)
    topic.limit = None
    verdict = tune(topic, agent, plan())
    assert verdict.decision is not None
    scored = [event for event in topic.events if isinstance(event, PromptScore)]
    assert len({event.event_id for event in scored}) == len(scored), "nothing is scored twice"
    assert len(agent.ran) == len(scored) + lost, "only what was not logged ran again"
    again = tune(topic, agent, plan())
    assert again.candidate == verdict.candidate
    assert len(agent.ran) == len(scored) + lost, "a finished tuning runs nothing"


def test_the_budget_leaves_room_for_the_comparison() -> None:
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD, spoilt_by=BAD))
    tune(topic, agent, plan(budget=Budget(calls=52)))
    state = topic.log().state
    assert len(state.candidates()) == 3
    assert state.spent.calls <= 52


def by_any_example(messages: list[dict[str, Any]]) -> float:
    """Right where an example is shown, and on one training task."""
    asked = messages[-1]["content"]
    return float(asked.endswith("number 2") if asked.startswith("train") else len(messages) > 2)


@pytest.mark.parametrize("calls", [37, 42, 56])
def test_examples_are_gathered_only_as_far_as_a_candidate_fits(calls: int) -> None:
    topic = Topic()
    agent = Agent(topic, by_any_example)
    limited = plan(train=tasks("train", 24), pool=5, budget=Budget(calls=calls))
    verdict = tune(topic, agent, limited)
    assert verdict.difference is not None
    assert topic.log().state.spent.calls <= calls
    ran = len(agent.ran)
    assert tune(topic, agent, limited) == verdict
    assert len(agent.ran) == ran, "a tuning that has spent its budget still has its examples"


def test_without_room_for_a_batch_of_training_tasks_it_says_so() -> None:
    agent = Agent(Topic(), by_any_example)
    with pytest.raises(CannotTune, match="the budget has no room for training tasks"):
        tune(Topic(), agent, plan(budget=Budget(calls=35)))
    assert not agent.ran, "4 training tasks, and 32 rollouts afterwards"


def test_a_budget_without_room_for_a_candidate_is_not_begun() -> None:
    agent, warm = (Agent(Topic(), helped_by(GOOD)) for _ in range(2))
    outcome = warm.submit(tasks("train", 3)[2], "none").result()
    example = example_of(outcome.rollouts[0], outcome.group_id, "policy", None)
    assert example is not None
    agent.earlier = [example]
    with pytest.raises(CannotTune, match="no room for the 32 rollouts"):
        tune(Topic(), agent, plan(budget=Budget(calls=20)))
    assert not agent.ran


def test_examples_of_the_log_are_enough() -> None:
    earlier = Agent(Topic(), helped_by(GOOD))
    outcomes = [earlier.submit(task, "none").result() for task in tasks("train", 4)]
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD))
    made = [example_of(one.rollouts[0], one.group_id, "policy", None) for one in outcomes]
    agent.earlier = [example for example in made if example is not None]
    assert len(agent.earlier) == 4
    tune(topic, agent, plan())
    assert not any(question.startswith("train") for question, _ in agent.ran)


def test_it_says_when_too_few_examples_end_it() -> None:
    warnings: list[str] = []
    topic = Topic()
    one_is_right = Agent(topic, lambda messages: 1.0 if messages[-1]["content"] == GOOD else 0.5)
    tune(topic, one_is_right, plan(), warn=warnings.append)
    (warning,) = warnings
    assert "nearly all sets of the examples that were found (1) have been tried" in warning
    assert len(topic.log().state.candidates()) == 1


def test_it_says_nothing_when_its_limits_end_it() -> None:
    warnings: list[str] = []
    topic = Topic()
    tune(topic, Agent(topic, helped_by(GOOD)), plan(), warn=warnings.append)
    assert warnings == []
    assert len(topic.log().state.candidates()) == plan().candidates


def test_what_is_left_out_of_training_is_no_example() -> None:
    call = make_call(
        messages=[{"role": "user", "content": "a question"}],
        replies=[{"role": "assistant", "content": "an answer"}],
        mode=Mode.val,
    )

    def example(use: TrainingUse) -> Example | None:
        episode = make_episode(calls=(msgspec.structs.replace(call, training_use=use),))
        return example_of(RolloutResult("r", 1.0, None, episode), "task", "policy", None)

    assert example(TrainingUse.by_mode) is not None
    assert example(TrainingUse.excluded) is None


def test_without_a_good_rollout_there_is_nothing_to_show() -> None:
    topic = Topic()
    with pytest.raises(CannotTune, match="no rollout of the 6 training tasks earned 1 and"):
        tune(topic, Agent(topic, lambda _: 0.5), plan())


def test_a_version_that_no_call_was_served_with_is_an_error() -> None:
    topic = Topic()
    agent = Agent(topic, helped_by(GOOD))
    submit = agent.submit
    agent.submit = lambda task, prompt_version: submit(task, "none")  # type: ignore[method-assign]
    with pytest.raises(CannotTune, match="prompt@1 does not fit the requests for policy"):
        tune(topic, agent, plan())
