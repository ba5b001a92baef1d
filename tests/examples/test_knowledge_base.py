"""The knowledge-base example: a search that finds facts, questions that are apart, and what is paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from tests.examples.recorded import PROJECT, load, make_tool_view

FOLDER = PROJECT / "examples" / "knowledge_base"
knowledge = load(FOLDER / "knowledge.py")
tasks = load(FOLDER / "tasks.py")
rewards = load(FOLDER / "rewards.py")
expert = load(FOLDER / "expert.py")

CITY = knowledge.Passage("Njeru", "Njeru is a city in Uganda. It has 178800 inhabitants.")
AIRPORT = knowledge.Passage("High Field", "High Field is an airport in Njeru. Its code is XXXX.")
CAPITAL = knowledge.Passage("capital of Uganda", "The capital of Uganda is Kampala.")
REFERENCE = {
    "answer": "Kampala",
    "queries": ["High Field", "Njeru", "capital Uganda"],
    "passages": [AIRPORT.text, CITY.text, CAPITAL.text],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "knowledge.db"
    knowledge.build(knowledge.Knowledge((CITY, AIRPORT, CAPITAL), (), {}), path)
    return path


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("Njeru", CITY.text),
        ("njeru", CITY.text),
        ("capital Uganda", CAPITAL.text),
        ("capital of Uganda?", CAPITAL.text),
        ('High "Field" OR (', knowledge.NOTHING),
        ("What is the capital of the country that Njeru is in?", knowledge.NOTHING),
        ("", knowledge.NOTHING),
        ("?!*", knowledge.NOTHING),
    ],
)
def test_the_best_passage_with_all_the_words_is_found(file: Path, query: str, found: str) -> None:
    assert knowledge.search(str(file), query) == found


def made_up(count: int) -> Any:
    """Cities and airports of two countries, with names of plain words."""
    countries = {
        name: {what: f"{what[:3].title()}{name}" for what in knowledge.PROPERTIES}
        for name in (f"Land{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    }
    cities = [f"Town{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(count)]
    where = {city: list(countries)[n % 26] for n, city in enumerate(cities)}
    entities = [knowledge.Entity("city", city, (city,), where[city]) for city in cities]
    entities += [
        knowledge.Entity("airport", f"{city} Field", (f"{city} Field", city), where[city])
        for city in cities
    ]
    passages = [
        knowledge.Passage(f"{what} of {name}", f"The {what} of {name} is {value}.")
        for name, values in countries.items()
        for what, value in values.items()
    ]
    passages += [knowledge.Passage(c, f"{c} is a city in {where[c]}. It is.") for c in cities]
    passages += [
        knowledge.Passage(f"{c} Field", f"{c} Field is an airport in {c}. Its code is X.")
        for c in cities
    ]
    return knowledge.Knowledge(tuple(passages), tuple(entities), countries)


def test_questions_can_be_answered_and_are_apart(tmp_path: Path) -> None:
    known, path = made_up(200), tmp_path / "knowledge.db"
    knowledge.build(known, path)
    training = tasks.make_tasks(known, path, "train", 60, 0)
    held_out = tasks.make_tasks(known, path, "heldout", 30, 0)
    stretch = tasks.make_tasks(known, path, "heldout", 30, 0, (tasks.STRETCH,))
    tasks.assert_disjoint(training, held_out + stretch)
    assert all(tasks.is_answerable(task) for task in training + held_out)
    assert {task.what for task in stretch} == {tasks.STRETCH}
    assert tasks.STRETCH not in {task.what for task in training + held_out}
    assert {task.entity.kind for task in training} == {"city", "airport"}
    with pytest.raises(AssertionError, match="share entities"):
        tasks.assert_disjoint(training, training)
    with pytest.raises(ValueError, match="only"):
        tasks.make_tasks(known, path, "train", 1000, 0)
    hidden = training[0]._replace(answer="something else")
    assert not tasks.is_answerable(hidden)


def episode(*turns: tuple[str, str] | str) -> EpisodeView:
    """An episode of searches (query and result) and of texts."""
    searches = [
        turn if isinstance(turn, str) else ("search", {"query": turn[0]}, turn[1]) for turn in turns
    ]
    return make_tool_view({"question": "?", "reference": REFERENCE}, searches)


FIRST, SECOND, THIRD = (
    (query, passage)
    for query, passage in zip(REFERENCE["queries"], REFERENCE["passages"], strict=True)
)
NOTHING = ("x", "nothing found")


@pytest.mark.parametrize(
    ("turns", "answer", "paid"),
    [
        ((FIRST, SECOND, THIRD, "answer: Kampala"), 1, {0: 1, 1: 1, 2: 1, 3: 3}),
        ((FIRST, NOTHING, SECOND, THIRD, " Answer: kampala."), 1, {0: 1, 2: 1, 3: 1, 4: 3}),
        ((FIRST, SECOND, "answer: Njeru"), 0, {0: 1, 1: 1}),
        # A guess is no step, and neither is what was found before it.
        ((THIRD, SECOND, "answer: Kampala"), 1, {2: 3}),
        ((THIRD, FIRST, "answer: Entebbe"), 0, {1: 1}),
        # The same passage twice is paid once.
        ((FIRST, FIRST, FIRST, "answer: ?"), 0, {0: 1}),
        # What lists everything, or says more, is wrong.
        (("answer: Kampala, Njeru, Uganda",), 0, {}),
        (("answer: Entebbe answer: Kampala",), 0, {}),
        (("Kampala",), 0, {}),
        # What the last search found was in no call.
        ((FIRST,), 0, {}),
        ((), 0, {}),
    ],
)
def test_answers_and_steps_are_paid(
    turns: tuple[Any, ...], answer: int, paid: dict[int, int]
) -> None:
    view = episode(*turns)
    assert rewards.outcome(view)["reward"] == rewards.outcome(view)["answer"] == answer
    given: dict[str, float] = rewards.steps(view)["reward"] or {}
    found = {call: share for call, share in given.items() if share}
    assert found == pytest.approx({f"call{n}": sixths / 6 for n, sixths in paid.items()})


def test_the_expert_finds_the_way() -> None:
    messages: list[dict[str, Any]] = [{"role": "system"}, {"role": "user"}]
    said: list[Any] = []
    for _ in range(4):
        said.append(expert.answer({"reference": REFERENCE}, messages))
        messages += [{"role": "assistant"}, {"role": "tool"}]
    assert [turn["tool_calls"][0]["arguments"]["query"] for turn in said[:3]] == (
        REFERENCE["queries"]
    )
    assert said[3] == "answer: Kampala"
