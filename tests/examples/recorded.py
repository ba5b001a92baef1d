"""The examples' own modules, and calls and episodes as the log would have them for their reward
functions.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulgurite import EpisodeView
from fulgurite.enums import CallOutcome, EpisodeOutcome, Identity, LogprobsMode, Mode
from fulgurite.events import Choice, Declaration, Episode, LlmCall
from tests.synthetic import SAMPLING

PROJECT = Path(__file__).parents[2]


def load(file: Path) -> Any:
    """Import a program that lies in no package; it finds what lies beside it."""
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def make_call(
    number: int, messages: list[dict[str, Any]], answer: dict[str, Any], agent: str = ""
) -> LlmCall:
    """A call with these messages, and the assistant's answer."""
    return LlmCall(
        event_id=f"call{number}",
        event_time=number,
        call_id=f"call{number}",
        group_id="g",
        rollout_id="r",
        attempt=0,
        mode=Mode.train,
        agent=agent,
        identity=Identity.scoped_key,
        api="chat.completions",
        alias="policy",
        backend="vllm",
        stream=False,
        outcome=CallOutcome.success,
        request=json.dumps({"messages": messages}),
        choices=(Choice(index=0, message=json.dumps({"role": "assistant", **answer})),),
        sampling=SAMPLING,
        logprobs_mode=LogprobsMode.processed,
        started_at=number,
        finished_at=number,
    )


def make_task_view(calls: Sequence[LlmCall], task: dict[str, Any]) -> EpisodeView:
    """The finished episode of a declared task."""
    declaration = Declaration(
        deadline=0, credit_rule="identical", alias="policy", task=json.dumps(task), max_attempts=1
    )
    return make_view(calls, declaration)


def make_tool_view(
    task: dict[str, Any], turns: Sequence[tuple[str, dict[str, Any], str] | str]
) -> EpisodeView:
    """The finished episode of these turns: a tool's name, arguments and result, or a text."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    calls: list[LlmCall] = []
    for number, turn in enumerate(turns):
        if isinstance(turn, str):
            said: dict[str, Any] = {"content": turn}
        else:
            said = tool_turn(turn[0], turn[1], number)
        calls.append(make_call(number, list(messages), said))
        messages.append({"role": "assistant", **said})
        if not isinstance(turn, str):
            messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": turn[2]})
    return make_task_view(calls, task)


def tool_turn(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    """An answer that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "content": None,
        "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}],
    }


def make_view(calls: Sequence[LlmCall], declaration: Declaration | None = None) -> EpisodeView:
    """The finished episode of these calls."""
    return EpisodeView(
        Episode(
            event_id="e",
            event_time=0,
            episode_id="r/0",
            revision="x",
            group_id="g",
            rollout_id="r",
            attempt=0,
            mode=Mode.train,
            rule="1",
            outcome=EpisodeOutcome.finished,
            will_retry=False,
            started_at=0,
            ended_at=1,
            declaration=declaration,
            calls=tuple(calls),
        )
    )
