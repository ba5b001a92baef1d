"""The tutorial's files work as they stand on its page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from tests.examples.recorded import make_call, make_view

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
FILES: dict[str, str] = dict(
    re.findall(r'^```[a-z]+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
)


def reward_function(name: str) -> Callable[[EpisodeView], float]:
    namespace: dict[str, Any] = {}
    exec(compile(FILES[name], name, "exec"), namespace)
    return namespace["score"]


def episode(answer: str) -> EpisodeView:
    asked = [{"role": "user", "content": "Which animal barks?"}]
    return make_view([make_call(0, asked, {"content": answer})])


@pytest.mark.parametrize(
    ("answer", "one_word", "strict"),
    [
        ("Dog", 1.0, 1.0),
        (" Dog\n", 1.0, 1.0),
        ("dog", 1.0, 0.0),
        ("Dog.", 1.0, 0.0),
        ("A dog barks.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_its_rewards_pay_what_the_page_says(answer: str, one_word: float, strict: float) -> None:
    assert reward_function("rewards.py")(episode(answer)) == one_word
    assert reward_function("strict.py")(episode(answer)) == strict


def test_its_tasks_are_enough_for_a_step_of_the_learner() -> None:
    tasks = [json.loads(line) for line in FILES["tasks.jsonl"].splitlines()]
    assert len(tasks) >= 8
    assert all(set(task) == {"question"} for task in tasks)


def test_its_programs_are_python() -> None:
    for name in ("agent.py", "alone.py"):
        compile(FILES[name], name, "exec")
