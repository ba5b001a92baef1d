"""Reward functions loaded by file: what they may return, and how they may fail."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fulgurite.events import Episode
from fulgurite.stitching import stitch
from services.rewarder.reward_plugins import PluginError, RewardFailed, RewardPlugin
from tests.synthetic import make_call, make_declared, make_status

CODE = """
import asyncio
from beside import VALUE

def number(episode): return VALUE
def named(episode): return {"reward": 1, "style": 0.5}
def nothing(episode): return None
def text(episode): return "1"
def infinite(episode): return float("inf")
def raises(episode): return episode.task["no such key"]
async def later(episode):
    await asyncio.sleep(0)
    return len(episode.calls)
async def never(episode): await asyncio.sleep(600)
not_a_function = 1
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("VALUE = 0.25\n")
    (tmp_path / "rewards.py").write_text(CODE)
    return tmp_path / "rewards.py"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def episode() -> Episode:
    made = stitch([make_declared(), make_call(), make_status()])
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("function", "expected"),
    [("number", {"score": 0.25}), ("named", {"reward": 1.0, "style": 0.5}), ("nothing", {}), ("later", {"score": 1.0})],
)
async def test_values(rewards: Path, pool: ThreadPoolExecutor, function: str, expected: dict[str, float]) -> None:
    plugin = RewardPlugin(f"{rewards}:{function}", "score")
    assert await plugin.judge(episode(), pool, 5.0) == expected
    assert plugin.source.startswith(f"rewards.py:{function}#")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("text", "'score' is '1': expected a finite number"),
        ("infinite", "'score' is inf: expected a finite number"),
        ("raises", "KeyError: 'no such key'"),
        ("never", "no value within 0.1 s"),
    ],
)
async def test_failures(rewards: Path, pool: ThreadPoolExecutor, function: str, told: str) -> None:
    with pytest.raises(RewardFailed, match=told):
        await RewardPlugin(f"{rewards}:{function}", "score").judge(episode(), pool, 0.1 if function == "never" else 5.0)


def test_what_cannot_be_loaded_says_why(rewards: Path) -> None:
    broken = rewards.parent / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    for reference, told in (
        ("rewards", "expected FILE.py:FUNCTION"),
        (f"{rewards.parent}/none.py:fn", "expected FILE.py:FUNCTION with an existing file"),
        (f"{rewards}:missing", "has no function 'missing'"),
        (f"{rewards}:not_a_function", "has no function 'not_a_function'"),
        (f"{broken}:fn", "cannot be imported: ModuleNotFoundError"),
    ):
        with pytest.raises(PluginError, match=told):
            RewardPlugin(reference, "score")
