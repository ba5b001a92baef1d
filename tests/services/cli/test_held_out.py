"""What versions earned on held-out tasks, from the log, and files of such tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.enums import Mode
from services.cli.held_out import Earned, collect, is_version, pairs, tasks_of
from services.cli.pin import append
from services.replay.errors import BadArgument
from services.replay.leaving_out import LeftOut
from services.runner.options import task_id
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call, make_declared, make_reward, make_status


def play(
    log: MemoryLog,
    group: int,
    task: str,
    reward: float | None,
    *versions: str,
    mode: Mode = Mode.val,
) -> None:
    log.append(make_declared(group, 1, task=task, mode=mode))
    for turn, version in enumerate(versions):
        log.append(make_call(group, 0, turn, mode=mode, version=version))
    log.append(make_status(group, 0))
    if reward is not None:
        log.append(make_reward(group, 0, reward))


def gathered(log: MemoryLog, *models: str, tasks: set[str] | None = None) -> list[Earned]:
    left_out = LeftOut()
    found = collect(log.groups(), models, tasks, left_out)
    assert left_out.lines == []
    return found


@pytest.fixture
def log() -> MemoryLog:
    found = MemoryLog()
    play(found, 1, '{"q": 1}', 0.0, "policy@1.3")
    play(found, 2, '{"q": 1}', 1.0, "policy@1.8")
    play(found, 3, '{"q": 2, "a": 0}', 0.5, "policy@1.3", "policy@1.3")
    play(found, 4, '{"a": 0, "q": 2}', 0.5, "policy@1.8")
    play(found, 5, '{"q": 2}', 1.0, "policy@1.3", "policy@1.8")
    play(found, 6, '{"q": 1}', 1.0, "policy@1.3", mode=Mode.train)
    play(found, 7, '{"q": 3}', None, "policy@1.8")
    return found


def test_rollouts_of_one_version_count_for_it(log: MemoryLog) -> None:
    before, after = gathered(log, "policy@1.3", "policy@1.8")
    first, second = '{"q":1}', '{"a":0,"q":2}'
    assert before.rewards == {first: [0.0], second: [0.5]}
    assert after.rewards == {first: [1.0], second: [0.5]}
    assert (before.unscored, after.unscored) == (0, 1)
    assert before.mean is not None
    assert before.mean.mean == 0.25
    (pair,) = pairs([before, after])
    assert pair.difference is not None
    assert (pair.baseline, pair.difference.estimate.mean) == ("policy@1.3", 0.5)
    assert (pair.difference.better, pair.difference.worse) == (1, 0)


def test_groups_that_name_a_prompt_version_say_nothing_of_the_policy(log: MemoryLog) -> None:
    before = [one.rewards for one in gathered(log)]
    log.append(make_declared(8, 1, task='{"q": 9}', mode=Mode.val, prompt_version="prompt@1"))
    log.append(make_call(8, 0, mode=Mode.val, version="policy@1.3"))
    log.append(make_status(8, 0))
    log.append(make_reward(8, 0, 1.0))
    assert [one.rewards for one in gathered(log)] == before


def test_without_names_every_version_is_compared(log: MemoryLog) -> None:
    assert [one.model for one in gathered(log)] == ["policy@1.3", "policy@1.8"]


def test_an_alias_counts_what_was_declared_for_it(log: MemoryLog) -> None:
    (found,) = gathered(log, "policy")
    assert sum(map(len, found.rewards.values())) == 5
    assert found.unscored == 1


def test_only_the_chosen_tasks_count(log: MemoryLog) -> None:
    (found,) = gathered(log, "policy@1.3", tasks={task_id({"q": 1})})
    assert list(found.rewards) == ['{"q":1}']


def test_what_another_version_answered_does_not_count() -> None:
    earned = Earned("policy@1.3")
    earned.add("task", 1.0, ["policy@1.4"])
    earned.add("task", 1.0, ["policy@1.3", "policy@1.4"])
    earned.add("task", 1.0, [])
    assert (earned.others, earned.rewards, earned.mean) == (3, {}, None)
    alias = Earned("gpt")
    alias.add("task", 1.0, [])
    assert alias.rewards == {"task": [1.0]}


def test_pairs_without_a_common_task_have_no_difference() -> None:
    one, other, third = Earned("a", {"x": [1.0]}), Earned("b", {"y": [1.0]}), Earned("c", {})
    assert [pair.difference for pair in pairs([one, other, third])] == [None] * 3


def test_a_version_is_told_from_an_alias() -> None:
    assert is_version("policy@1.3")
    assert not is_version("gpt-4o")


def test_a_task_is_added_once(tmp_path: Path) -> None:
    path = tmp_path / "held-out.jsonl"
    assert append(path, {"question": "1+1", "reference": "2"})
    assert not append(path, {"reference": "2", "question": "1+1"})
    path.write_text(path.read_text().rstrip("\n"))
    assert append(path, {"question": "2+2"})
    assert append(path, {"question": "a\u2028b"})
    assert not append(path, {"question": "a\u2028b"})
    assert tasks_of(path) == [
        {"question": "1+1", "reference": "2"},
        {"question": "2+2"},
        {"question": "a\u2028b"},
    ]
    path.write_text("no task\n")
    with pytest.raises(BadArgument, match="line 1: not JSON"):
        append(path, {"question": "3+3"})
