"""How a run shows itself where there is no terminal, and that warnings reach people and programs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fulgurite.versions import base_version
from services.runner import progress
from services.runner.options import RunOptions
from services.runner.progress import JsonWatcher, TerminalWatcher
from services.runner.scoreboard import Scoreboard

OPTIONS = RunOptions(tasks=Path("t"), command=("agent",), run_id="r")


def a_run() -> Any:
    """What a watcher looks at."""
    pace = SimpleNamespace(served=base_version("policy"))
    return SimpleNamespace(
        board=Scoreboard((), {}),
        options=OPTIONS,
        share=0.5,
        updates=0,
        pace=pace,
        ended=3,
        running=1,
        groups=2,
        seconds=10.0,
    )


def test_a_line_is_written_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    written = io.StringIO()
    with TerminalWatcher(Console(file=written, force_terminal=False, width=80), "run") as watcher:
        for second in range(91):
            now[0] = float(second)
            watcher.on_change(a_run())
        watcher.on_warning("all 4 groups gave no training signal")
    lines = written.getvalue().splitlines()
    assert len(lines) == 4, "three of progress within 90 seconds, and the warning"
    assert "3 ended, 2 groups" in lines[0]
    assert lines[-1] == "all 4 groups gave no training signal"


def test_a_warning_is_a_line_of_json_for_programs() -> None:
    written: list[str] = []
    JsonWatcher(written.append).on_warning("the reward 'reward' failed")
    assert [json.loads(line) for line in written] == [
        {"event": "warning", "text": "the reward 'reward' failed"}
    ]
