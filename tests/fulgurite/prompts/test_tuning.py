"""What a tuning knows of itself: a function of the log."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.enums import PromptKind, TuningStage
from fulgurite.events import Event, PromptCost, PromptScore, PromptTuning, PromptUpdate
from fulgurite.prompts.tuning import Budget, TuningState, add_costs, edits_of, error_of, score_id
from tests.fulgurite.prompts.prompt_updates import version

COST = PromptCost(calls=2, prompt_tokens=10, completion_tokens=5, money=0.5)


def started(baseline: str | None = None) -> PromptTuning:
    return PromptTuning(
        event_id="begin", event_time=1, alias="policy", tuning="t", method="gepa", baseline=baseline, train_tasks=2, validation_tasks=2, seed=0, author="",
    )  # fmt: skip


def candidate(number: int, tuning: str | None = "t", **fields: Any) -> PromptUpdate:
    made = version(number, **fields)
    return msgspec.structs.replace(made, kind=PromptKind.candidate, tuning=tuning)


def score(
    prompt: str | None,
    task: str,
    *rewards: float,
    stage: TuningStage = TuningStage.validation,
    tuning: str = "t",
    unscored: int = 0,
) -> PromptScore:
    return PromptScore(
        event_id=score_id(tuning, prompt, stage, task), event_time=1, alias="policy", tuning=tuning, version=prompt, stage=stage, task=task, group_id="g", rewards=rewards, unscored=unscored, cost=COST,
    )  # fmt: skip


def state(*events: Event | None) -> TuningState:
    found = TuningState("policy", "t")
    for event in events:
        found.apply(event)
    return found


def test_candidates_are_those_of_the_tuning_whose_number_counts() -> None:
    own, lost = candidate(2, system="a"), candidate(2, system="b")
    other = candidate(3, "another", system="c")
    found = state(started(), version(1), own, lost, other, None)
    assert found.candidates() == [own]
    assert found.same_edits({"system": "a"}) == own
    assert found.same_edits({"system": "c"}) is None


def test_the_baseline_is_what_was_in_force_at_the_start() -> None:
    before = version(1, system="old")
    found = state(before, started("prompt@1"), version(2, system="newer"), started("prompt@2"))
    assert found.baseline() == before
    assert found.same_edits({"system": "old"}) == before
    assert state(before).baseline() is None
    assert state(before, started()).baseline() is None


def test_each_task_is_scored_once_and_missing_ones_are_named() -> None:
    events = [
        candidate(1),
        score("prompt@1", "a", 1.0),
        score("prompt@1", "a", 0.0),
        score("prompt@1", "b", 1.0, tuning="another"),
    ]
    found = state(*events, *events)
    assert found.rewards("prompt@1", TuningStage.validation) == {"a": (1.0,)}
    assert found.missing("prompt@1", TuningStage.validation, ["a", "b"]) == ["b"]
    assert found.missing("prompt@1", TuningStage.comparison, ["a"]) == ["a"]
    assert found.spent == COST
    assert found.rollouts == 1


def test_the_best_is_the_first_of_those_with_the_highest_mean() -> None:
    tasks = ["a", "b"]
    found = state(
        *(candidate(number) for number in (1, 2, 3, 4, 5)),
        score("prompt@1", "a", 0.0, 1.0), score("prompt@1", "b", 1.0),
        score("prompt@2", "a", unscored=1), score("prompt@2", "b", 0.75, 0.75),
        score("prompt@3", "a", 1.0),
        score("prompt@4", "a", unscored=1), score("prompt@4", "b", unscored=1),
        score("prompt@5", "a", 0.5), score("prompt@5", "b", 1.0),
    )  # fmt: skip
    assert [found.mean(f"prompt@{number}", tasks) for number in (1, 2, 3, 4)] == [
        0.75, 0.75, None, None,
    ]  # fmt: skip
    best = found.best(tasks)
    assert best is not None
    assert best.version == "prompt@1"
    assert state(candidate(1)).best(tasks) is None


def test_what_a_model_wrote_is_found_by_its_question() -> None:
    written = candidate(1, reflection="q1", cost=COST)
    refused = msgspec.structs.replace(
        candidate(9, reflection="q2", cost=COST), kind=PromptKind.refused, version=None
    )
    found = state(written, refused)
    assert found.written_after("q1") == written
    assert found.written_after("q2") == refused
    assert found.written_after("q3") is None
    assert found.refused == [refused]
    assert found.spent.calls == 4


def test_a_decision_is_kept() -> None:
    made = candidate(1)
    decided = msgspec.structs.replace(made, event_id="d", kind=PromptKind.promoted)
    found = state(made, decided)
    assert found.decided == decided
    assert found.history.current("policy", None) == made


@pytest.mark.parametrize(
    ("budget", "rollouts", "allowed"),
    [
        (Budget(), 10_000, True),
        (Budget(calls=8), 3, True),
        (Budget(calls=7), 3, False),
        (Budget(money=2.0), 3, True),
        (Budget(money=1.9), 3, False),
    ],
)
def test_a_budget_has_room_at_the_cost_so_far(budget: Budget, rollouts: int, allowed: bool) -> None:
    assert state(score(None, "a", 1.0)).allows(budget, rollouts) is allowed


def test_before_the_first_rollout_each_is_taken_for_one_call() -> None:
    assert state().allows(Budget(calls=5), 5)
    assert not state().allows(Budget(calls=5), 6)


def test_costs_add_up_and_money_is_that_of_what_has_a_price() -> None:
    free = msgspec.structs.replace(COST, money=None)
    assert add_costs(free, free).money is None
    assert add_costs(free, COST).money == 0.5
    assert add_costs(COST, COST) == PromptCost(
        calls=4, prompt_tokens=20, completion_tokens=10, money=1.0
    )


def test_edits_are_the_fields_that_change_requests() -> None:
    assert edits_of(version(1, system="a", tools={"t": "d"})) == {
        "system": "a",
        "tools": {"t": "d"},
    }
    assert edits_of(None) == {}


def compared(prompt: str | None, task: str, tuning: str = "t", alias: str = "policy") -> Event:
    found = score(prompt, task, 1.0, stage=TuningStage.comparison, tuning=tuning)
    return msgspec.structs.replace(found, alias=alias)


def test_verdicts_on_the_same_tasks_are_counted_over_all_tunings() -> None:
    other = msgspec.structs.replace(started(), event_id="other", tuning="other")
    elsewhere = msgspec.structs.replace(started(), event_id="x", alias="x")
    found = state(
        elsewhere, other, started("prompt@1"),
        score("prompt@9", "a", 1.0, tuning="other"),
        compared(None, "a", "other"), compared("prompt@2", "a", "other"),
        compared("prompt@2", "b", "other"),
        compared("prompt@3", "a", "x", alias="x"),
        compared("prompt@1", "b"), compared("prompt@4", "b"),
        compared("prompt@5", "c"), compared("prompt@4", "b"),
    )  # fmt: skip
    assert found.verdict_number("prompt@4", ["b"]) == 2
    assert found.verdict_number("prompt@5", ["a", "c"]) == 2
    assert found.verdict_number("prompt@5", ["c"]) == 1


def test_all_verdicts_together_err_with_five_percent() -> None:
    errors = [error_of(number) for number in range(1, 100_000)]
    assert errors[0] == pytest.approx(0.0304, abs=1e-4)
    assert errors == sorted(errors, reverse=True)
    assert 0.0499 < sum(errors) < 0.05
