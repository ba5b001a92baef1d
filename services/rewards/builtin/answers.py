"""What the built-in rewards compare: the answer, and the task's reference."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from fulgurite.episodes.view import EpisodeView
from services.rewards.errors import RewardFailed

_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


def answer_of(episode: EpisodeView, after: str) -> str:
    """The last answer's text; of it what follows the last `after`, nothing where that is
    not said.
    """
    text = episode.final_text()
    if after:
        text = text.rpartition(after)[2] if after in text else ""
    return text.strip()


def code_of(text: str) -> str:
    """The last fenced block, or the text where there is none."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1] if blocks else text).strip()


def field_of(episode: EpisodeView, name: str) -> Any:
    """A field of the task. Raises RewardFailed."""
    task: Any = episode.task
    if not isinstance(task, dict) or name not in task:
        raise RewardFailed(
            f"the task has no field {name!r}: put what is expected there, or name the field "
            "that has it"
        )
    return cast("dict[str, Any]", task)[name]


def references_of(episode: EpisodeView, name: str) -> list[str]:
    """The accepted answers: the field's text or number, or a list of them. Raises RewardFailed."""
    value: object = field_of(episode, name)
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str | int | float) for one in values):
        raise RewardFailed(
            f"the task's {name!r} is {json.dumps(value)[:80]}: expected a text, a number, or a "
            "list of them"
        )
    return [str(one) for one in values]
