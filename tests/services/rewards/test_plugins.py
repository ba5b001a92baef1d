"""Reward functions in their processes: what they may return, how they may fail, what they may take."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import Episode
from fulgurite.groups.rewards import EpisodeRewards, combine, counted, is_complete
from fulgurite.ids import action_id
from services.rewards.errors import (
    OutOfMemory,
    PluginError,
    ProcessEnded,
    RewardFailed,
    TookTooLong,
)
from services.rewards.functions import Value
from services.rewards.plugins import RewardPlugin
from services.rewards.sandbox import Limits, Sandbox
from tests.synthetic import make_call, make_declared, make_status

CODE = """
import asyncio
import os
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
import numpy
from beside import VALUE

asked = []

def rewards(episode):
    return globals()[episode.task["question"]](episode)

def number(episode): return VALUE
def calls(episode): return len(episode.record.calls)
def named(episode): return {"reward": 1, "style": 0.5}
def nothing(episode): return None
def text(episode): return "1"
def infinite(episode): return float("inf")
def raises(episode): return episode.task["no such key"]
def process(episode): return os.getpid()
def greedy(episode): return len(bytearray(2**29))
def keeps(episode):
    while True: asked.append(bytes(2**22))
def held(episode): return len(asked)
def hangs(episode): time.sleep(600)
def ends(episode): os._exit(7)
async def later(episode):
    asked.append(asyncio.get_running_loop())
    await asyncio.sleep(0)
    return len(set(asked))
async def never(episode): await asyncio.sleep(600)
def exits(episode): sys.exit(3)
def exits_at_once(episode): os._exit(0)
def interrupted(episode): raise KeyboardInterrupt
async def exits_later(episode): sys.exit(3)
async def cancelled(episode): raise asyncio.CancelledError
class Mute(Exception):
    def __str__(self): raise RuntimeError("no")
class Shy:
    def __repr__(self): raise RuntimeError("no")
def mute(episode): raise Mute
def shy(episode): return Shy()
def half(episode): raise ValueError("a\\ud83c")
def half_name(episode): return {"a\\ud83c": 1.0}
def long(episode): raise ValueError("x" * 9_000_000)
def long_name(episode): return {"x" * 9_000_000: 1.0}
def long_text(episode): return "x" * 9_000_000
def no_name(episode): return {"": 1.0}
def many_names(episode): return {str(number): 1.0 for number in range(101)}
def huge(episode): return 10**400
def very_huge(episode): return 10**5000
def large(episode): return 1e39
def not_a_number(episode): return float("nan")
def a_list(episode): return [1.0]
def a_complex(episode): return 1j
def a_row(episode): return numpy.array([0.5])
def numpy_text(episode): return numpy.str_("0.5")
def f32(episode): return numpy.float32(0.5)
def numpy_bool(episode): return numpy.bool_(True)
def numpy_int(episode): return numpy.int64(2)
def array_0d(episode): return numpy.array(0.5)
def decimal(episode): return Decimal("0.5")
def fraction(episode): return Fraction(1, 2)
def named_f32(episode): return {"reward": numpy.float32(1)}
class Name(str):
    def __reduce__(self): return os.mkdir, (os.path.join(os.path.dirname(__file__), "unpickled"),)
def odd_name(episode): return {Name("odd"): 1.0}
def by_call(episode): return {"steps": {call.call_id: 0.5 for call in episode.calls}, "score": 1}
def by_choice(episode): return {"score": {f"{call.call_id}#1": numpy.float32(0.5) for call in episode.calls}}
def of_no_call(episode): return {"score": {"call_nobody_made\\ud83c": 0.5}}
def text_by_call(episode): return {"score": {call.call_id: "1" for call in episode.calls}}
def by_no_call(episode): return {"score": {}}
def forks(episode):
    if os.fork() == 0: raise ValueError("the copy")
    return 0.5
def leaves(episode):
    left = os.fork()
    if left == 0: time.sleep(600)
    started = subprocess.Popen(["sleep", "600"])
    with open(os.path.join(os.path.dirname(__file__), episode.task["question"]), "w") as told: print(left, started.pid, file=told)
    return left
def leaves_and_hangs(episode): leaves(episode); time.sleep(600)
def leaves_and_ends(episode): leaves(episode); os._exit(7)
not_a_function = 1
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "beside.py").write_text("VALUE = 0.25\n")
    (folder / "rewards.py").write_text(CODE)
    return folder / "rewards.py"


@pytest.fixture(scope="module")
def sandbox(rewards: Path) -> Iterator[Sandbox]:
    running = RewardPlugin(f"{rewards}:rewards", "score").sandbox(
        Limits(processes=1, timeout_s=1.0, memory_mb=256)
    )
    yield running
    running.close()


def wait_for_end(pid: int) -> None:
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def process_of(rewards: dict[str, Value], name: str) -> int:
    """The process id that was given as a reward."""
    value = rewards[name]
    assert isinstance(value, float)
    return int(value)


def asking(question: str) -> Episode:
    made = stitch([make_declared(task=f'{{"question": "{question}"}}'), make_call(), make_status()])
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("number", {"score": 0.25}),
        ("named", {"reward": 1.0, "style": 0.5}),
        ("nothing", {}),
        ("later", {"score": 1.0}),
        ("f32", {"score": 0.5}),
        ("numpy_bool", {"score": 1.0}),
        ("numpy_int", {"score": 2.0}),
        ("array_0d", {"score": 0.5}),
        ("decimal", {"score": 0.5}),
        ("fraction", {"score": 0.5}),
        ("named_f32", {"reward": 1.0}),
        ("odd_name", {"odd": 1.0}),
        ("forks", {"score": 0.5}),
    ],
)
async def test_values(sandbox: Sandbox, function: str, expected: dict[str, float]) -> None:
    assert await sandbox.score(asking(function)) == expected


@pytest.mark.parametrize(
    ("function", "failure", "told"),
    [
        (
            "text",
            RewardFailed,
            r"rewards.py:rewards returned '1' \(str\) for 'score': expected a number from -1000000 "
            r"to 1000000",
        ),
        (
            "infinite",
            RewardFailed,
            r"rewards.py:rewards returned inf \(float\) for 'score': expected a number",
        ),
        ("large", RewardFailed, "returned 1e"),
        ("not_a_number", RewardFailed, "returned nan"),
        ("huge", RewardFailed, "returned 10000.*cut.*expected a number"),
        ("very_huge", RewardFailed, r"returned \(cannot be shown\) \(int\)"),
        ("a_list", RewardFailed, r"returned \[1.0\] \(list\)"),
        ("a_complex", RewardFailed, r"returned 1j \(complex\)"),
        ("a_row", RewardFailed, r"\(ndarray\)"),
        ("numpy_text", RewardFailed, r"\(str_\)"),
        ("exits", RewardFailed, "SystemExit: 3"),
        ("exits_later", RewardFailed, "SystemExit: 3"),
        ("exits_at_once", TookTooLong, "no value within 1 s"),
        ("interrupted", RewardFailed, "KeyboardInterrupt: "),
        ("cancelled", RewardFailed, "CancelledError: "),
        ("mute", RewardFailed, r"Mute: \(its text cannot be read\)"),
        ("shy", RewardFailed, r"returned \(cannot be shown\) \(Shy\)"),
        ("half", RewardFailed, r"ValueError: a\\ud83c"),
        ("half_name", RewardFailed, "a name must have 1 to 128 characters"),
        ("long", RewardFailed, "cut: 9000012 characters"),
        ("long_name", RewardFailed, "a name must have 1 to 128 characters"),
        ("long_text", RewardFailed, r"\(str\) for 'score'"),
        ("no_name", RewardFailed, "a name must have 1 to 128 characters"),
        ("text_by_call", RewardFailed, r"returned '1' \(str\) for '.*': expected a number"),
        ("many_names", RewardFailed, "returned 101 rewards; at most 100 are allowed"),
        ("raises", RewardFailed, "KeyError: 'no such key'"),
        ("never", TookTooLong, "no value within 1 s"),
        ("hangs", TookTooLong, "no value within 1 s"),
        ("greedy", OutOfMemory, "it wanted more than 256 MiB"),
        ("keeps", OutOfMemory, "it wanted more than 256 MiB"),
        ("ends", ProcessEnded, "its process ended with code 7"),
    ],
)
async def test_failures_are_told_and_the_next_episode_is_judged(
    sandbox: Sandbox, function: str, failure: type[RewardFailed], told: str
) -> None:
    with pytest.raises(failure, match=told):
        await sandbox.score(asking(function))
    assert await sandbox.score(asking("number")) == {"score": 0.25}


async def test_every_failure_is_an_event_that_can_be_written(
    rewards: Path, sandbox: Sandbox
) -> None:
    plugin = RewardPlugin(f"{rewards}:rewards", "score")
    for function in ("half", "half_name", "long", "long_name", "long_text", "mute", "exits"):
        (reward,) = (await plugin.score(sandbox, asking(function))).rewards
        assert (reward.name, reward.value) == ("score", None)
        assert len(Codec().encode(reward)) < 10_000


@pytest.mark.parametrize(
    ("function", "paid", "total"),
    [
        ("by_call", {0: 0.5}, {"steps": 0.5, "score": 1.0}),
        ("by_choice", {1: 0.5}, {"score": 0.5}),
        ("by_no_call", {}, {"score": 0.0}),
    ],
)
async def test_single_actions_can_be_paid(
    rewards: Path, sandbox: Sandbox, function: str, paid: dict[int, float], total: dict[str, float]
) -> None:
    call = make_call(answers=((7, 9), (8, 9)))
    episode = stitch(
        [
            make_declared(task=f'{{"question": "{function}"}}', expected=("score",)),
            call,
            make_status(),
        ]
    )
    assert episode is not None
    plugin = RewardPlugin(f"{rewards}:rewards", "score")
    given = (await plugin.score(sandbox, episode)).rewards
    assert (given[-1].name, given[-1].call_id, given[-1].final) == ("score", None, True)
    assert all(reward.final is (reward.call_id is None) for reward in given)
    assert len({reward.event_id for reward in given}) == len(given)
    assert not is_complete(episode.declaration, given[:-1])
    combined = combine(episode.declaration, counted(episode, reversed(given)))
    assert isinstance(combined, EpisodeRewards)
    assert combined.named == total
    assert combined.actions == {
        action_id(call.call_id, choice): value for choice, value in paid.items()
    }


async def test_a_call_that_the_episode_does_not_have_is_not_paid(
    rewards: Path, sandbox: Sandbox
) -> None:
    plugin = RewardPlugin(f"{rewards}:rewards", "score")
    (reward,) = (await plugin.score(sandbox, asking("of_no_call"))).rewards
    assert (reward.value, reward.call_id) == (None, None)
    assert "which is no successful call of the episode" in (reward.error or "")


async def test_nothing_that_a_function_returns_is_run_here(rewards: Path, sandbox: Sandbox) -> None:
    (name,) = await sandbox.score(asking("odd_name"))
    assert type(name) is str
    assert not (rewards.parent / "unpickled").exists()


@pytest.mark.parametrize("function", ["leaves_and_hangs", "leaves_and_ends"])
async def test_what_a_function_started_ends_with_its_process(
    rewards: Path, sandbox: Sandbox, function: str
) -> None:
    with pytest.raises(RewardFailed):
        await sandbox.score(asking(function))
    for pid in (rewards.parent / function).read_text().split():
        await asyncio.to_thread(wait_for_end, int(pid))


async def test_what_a_function_started_ends_with_the_sandbox(rewards: Path) -> None:
    sandbox = RewardPlugin(f"{rewards}:leaves", "pid").sandbox(
        Limits(processes=1, timeout_s=30.0, memory_mb=0)
    )
    await sandbox.score(asking("started"))
    sandbox.close()
    for pid in (rewards.parent / "started").read_text().split():
        await asyncio.to_thread(wait_for_end, int(pid))


def test_an_import_that_takes_too_long_is_told(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(PluginError, match="importing it took more than 1 s"):
        RewardPlugin(f"{tmp_path}/sleeps.py:fn", "score", load_timeout_s=1.0)


def test_an_import_that_exits_is_told(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(PluginError, match="cannot be imported: SystemExit: 2"):
        RewardPlugin(f"{tmp_path}/program.py:fn", "score")


async def test_an_import_that_is_slow_only_when_it_matters_is_a_failure(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, time\nif pathlib.Path(__file__).with_name('once').exists(): "
        "time.sleep(600)\ndef fn(episode): return 1\n"
    )
    (tmp_path / "later.py").write_text(code)
    plugin = RewardPlugin(f"{tmp_path}/later.py:fn", "score")
    (tmp_path / "once").touch()
    sandbox = plugin.sandbox(Limits(processes=1, timeout_s=30.0, memory_mb=0, load_timeout_s=0.5))
    with pytest.raises(ProcessEnded):
        await sandbox.score(asking("number"))
    sandbox.close()


@pytest.mark.parametrize("function", ["greedy", "keeps"])
async def test_what_wanted_too_much_memory_leaves_nothing_to_the_next_episode(
    sandbox: Sandbox, function: str
) -> None:
    process = await sandbox.score(asking("process"))
    with pytest.raises(OutOfMemory):
        await sandbox.score(asking(function))
    assert await sandbox.score(asking("process")) != process
    assert await sandbox.score(asking("held")) == {"score": 0.0}


async def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_replaced(
    sandbox: Sandbox,
) -> None:
    process = process_of(await sandbox.score(asking("process")), "score")
    os.kill(process, signal.SIGKILL)
    await asyncio.to_thread(wait_for_end, process)
    assert (
        await asyncio.gather(*(sandbox.score(asking("number")) for _ in range(4)))
        == [{"score": 0.25}] * 4
    )


async def test_an_async_function_has_one_loop_for_all_episodes(sandbox: Sandbox) -> None:
    assert [await sandbox.score(asking("later")) for _ in range(2)] == [{"score": 1.0}] * 2


def test_a_function_runs_in_a_process_of_its_own_that_ends_with_the_sandbox(rewards: Path) -> None:
    sandbox = RewardPlugin(f"{rewards}:process", "pid").sandbox(
        Limits(processes=1, timeout_s=30.0, memory_mb=0)
    )
    pid = process_of(asyncio.run(sandbox.score(asking("process"))), "pid")
    sandbox.close()
    assert pid != os.getpid()
    wait_for_end(pid)


def test_a_source_tells_which_code_it_is(rewards: Path) -> None:
    assert RewardPlugin(f"{rewards}:number", "score").source.startswith("rewards.py:number#")
    assert RewardPlugin("builtin:f1", "score").source.startswith(
        "builtin:f1(reference=reference, after=)#"
    )


def test_what_cannot_be_loaded_says_why(rewards: Path) -> None:
    broken = rewards.parent / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    for reference, told in (
        ("rewards", "expected FILE.py:FUNCTION"),
        (
            f"{rewards.parent}/none.py:fn",
            "expected FILE.py:FUNCTION with an existing file, or builtin:NAME",
        ),
        (f"{rewards}:missing", "has no function 'missing'"),
        (f"{rewards}:not_a_function", "has no function 'not_a_function'"),
        (f"{broken}:fn", "cannot be imported: ModuleNotFoundError"),
        (
            "builtin:bleu",
            "no built-in reward 'bleu'; there are exact_match, f1, json_schema, math, sql",
        ),
        ("builtin:f1(answer=reference)", "no parameter 'answer'; f1 has reference, after"),
    ):
        with pytest.raises(PluginError, match=told):
            RewardPlugin(reference, "score")


async def test_of_verdicts_on_revisions_the_one_on_the_last_counts(rewards: Path) -> None:
    plugin = RewardPlugin(f"{rewards}:calls", "reward")
    inputs: list[Input] = [make_declared(), make_call(), make_status()]
    # Calls that were made before the end, and came after it: no revision is later than the other by
    # its time.
    revisions = [
        stitch([*inputs, *(make_call(turn=turn) for turn in range(1, late + 1))])
        for late in range(6)
    ]
    assert len({episode.event_time for episode in revisions if episode}) == 1
    sandbox = plugin.sandbox(Limits(processes=1, timeout_s=30.0, memory_mb=0))
    told = [(await plugin.score(sandbox, episode)).rewards[0] for episode in revisions if episode]
    sandbox.close()
    assert [reward.value for reward in told] == [float(newest + 1) for newest in range(6)]
    for newest in range(6):
        episode = revisions[newest]
        assert episode is not None
        assert counted(episode, told[: newest + 1]) == (told[newest],)


def test_an_import_that_ends_its_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(PluginError, match="importing it ended its process with code 3"):
        RewardPlugin(f"{tmp_path}/ends.py:fn", "score")


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        (("score",), {"score": None}),
        (("score", "style"), {"score": None}),
        (("style",), {"reward": 1.0, "style": 0.5}),
        ((), {"reward": 1.0, "style": 0.5}),
    ],
)
async def test_a_name_that_the_group_waits_for_and_the_function_does_not_give_is_a_failure(
    rewards: Path, sandbox: Sandbox, expected: tuple[str, ...], told: dict[str, float | None]
) -> None:
    episode = stitch(
        [make_declared(task='{"question": "named"}', expected=expected), make_call(), make_status()]
    )
    assert episode is not None
    scored = await RewardPlugin(f"{rewards}:rewards", "score").score(sandbox, episode)
    assert {reward.name: reward.value for reward in scored.rewards} == told
    if scored.failure is not None:
        assert str(scored.failure).startswith(
            "it returned 'reward', 'style', but not 'score', which the group waits for"
        )
        assert scored.rewards[0].error == str(scored.failure)


SLOW_TO_START = """
import asyncio, sys, time
from fulgurite.episodes.stitching import stitch
from services.rewards.sandbox import Limits, Sandbox
from tests.synthetic import make_call, make_declared, make_status

if __name__ == "__main__":
    episode = stitch([make_declared(), make_call(), make_status()])
    sandbox = Sandbox("builtin:exact_match(reference=question)", "score", Limits(processes=6, timeout_s=60.0, memory_mb=0))
    print(asyncio.run(sandbox.score(episode)))
    sandbox.close()
else:
    time.sleep(0.3)
"""


def test_processes_that_have_only_begun_to_start_end_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SLOW_TO_START)
    argv = [sys.executable, str(tmp_path / "program.py")]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        argv, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("{'score': 0.0}\n", "")
