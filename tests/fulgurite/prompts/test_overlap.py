"""What counts as text of a task in a prompt, and what does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fulgurite.prompts.overlap import RUN, SHORTEST, OverlapGuard

LONG = "In the town of Aven there are 17 bridges, 4 of which were built of oak before the flood."


def found(prompt: str, *tasks: object) -> str | None:
    overlap = OverlapGuard([{"question": task} for task in tasks]).find([prompt])
    return None if overlap is None else overlap.text


def test_a_whole_short_question_is_an_overlap_and_its_form_is_none() -> None:
    assert found("Q: what is 12 * 7?", "What is 12 * 7?") == "what is 12 * 7 ?"
    assert found("Q: what is 12 * 8?", "What is 12 * 7?") is None
    assert found("The answer is 42.", "42") is None, "too short to say anything"


def test_of_a_long_text_eight_words_are_enough_and_the_longest_run_is_shown() -> None:
    copied = "Remember: there are 17 bridges, 4 of which were built, and others."
    assert found(copied, LONG) == "there are 17 bridges , 4 of which were built"
    assert found("there are 17 bridges, 4 of", LONG) is None
    twice = "the town of Aven there are 17 bridges; of which were built of oak before the flood."
    assert found(twice, LONG) == "of which were built of oak before the flood ."


def test_what_many_tasks_share_is_their_form() -> None:
    form = "Work out the sum and write the answer in the last line: "
    tasks = [f"{form}{number} + {number}" for number in range(1000, 1010)]
    assert found(form, *tasks) is None
    assert found(f"{form}1003 + 1003", *tasks) == ("the answer in the last line : 1003 + 1003")
    assert found(form, tasks[0]) is not None, "of one task nothing is shared"


def test_texts_are_found_wherever_they_stand_in_a_task() -> None:
    task = {"parts": [{"text": LONG}, 3], "more": {"inner": "a b c d"}, "none": None}
    guard = OverlapGuard([task])
    overlap = guard.find(["x", "A B C D"])
    assert overlap is not None
    assert (overlap.field, overlap.text) == ("more", "a b c d")
    assert str(overlap) == "'a b c d' stands in the field 'more' of a task"
    assert OverlapGuard([]).find([LONG]) is None


@given(st.lists(st.sampled_from("abcdef"), min_size=SHORTEST, max_size=3 * RUN))
def test_a_copied_text_is_always_found(words: list[str]) -> None:
    text = " ".join(words)
    assert found(f"see: {text}!", text) == text
