"""Processes of the fork server, executed and forked: what they get, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.common.processes.errors import ForkServerFailed
from services.common.processes.fork_server import ForkServer, ProcessResult, Program
from tests.services.common.processes import programs

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENVIRONMENT = {"PATH": PATH, "HOME": os.environ.get("HOME", "/")}


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    async with ForkServer(sys.executable, ["xml.dom"], ENVIRONMENT) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["executed", "forked"])
def preload(request: pytest.FixtureRequest) -> bool:
    return request.param


def _program(folder: Path, source: str, preload: bool, *arguments: str) -> Program:
    path = folder / "agent.py"
    path.write_text(source)
    if preload:
        return Program(arguments, sys.executable, script=str(path))
    return Program((sys.executable, str(path), *arguments))


async def _run(server: ForkServer, program: Program, folder: Path, **options: Any) -> ProcessResult:
    return await server.run(
        program, environment=options.pop("environment", ENVIRONMENT), cwd=folder, **options
    )


async def test_an_agent_gets_its_input_and_nothing_but_its_environment(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    os.environ["SECRET_OF_THE_RUNNER"] = "1"
    environment = {**ENVIRONMENT, "OPENAI_API_KEY": "key"}
    program = _program(tmp_path, programs.ECHO, preload, "--flag")
    ended = await _run(server, program, tmp_path, environment=environment, stdin=b'{"question": 1}')
    seen = json.loads(ended.output)
    added_by_the_interpreter = {"LC_CTYPE"}
    assert {
        name: value
        for name, value in seen["environ"].items()
        if name not in added_by_the_interpreter
    } == environment
    assert seen["stdin"] == '{"question": 1}'
    assert seen["argv"] == [str(tmp_path / "agent.py"), "--flag"]
    assert (seen["path0"], seen["cwd"], seen["name"]) == (str(tmp_path), str(tmp_path), "__main__")
    assert seen["leader"]
    assert seen["open"] == []
    assert seen["json_preloaded"] is preload
    assert ended.exit_code == 0


@pytest.mark.parametrize("code", [0, 3, 75])
async def test_exit_code_and_error_output_are_in_the_result(
    server: ForkServer, tmp_path: Path, preload: bool, code: int
) -> None:
    ended = await _run(server, _program(tmp_path, programs.EXITS, preload, str(code)), tmp_path)
    assert (ended.exit_code, ended.error_output, ended.is_overdue) == (code, "last words", False)


async def test_an_exception_ends_with_1_and_the_scripts_own_traceback(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    ended = await _run(server, _program(tmp_path, programs.RAISES, preload), tmp_path)
    assert ended.exit_code == 1
    assert ended.error_output.startswith(
        f'Traceback (most recent call last):\n  File "{tmp_path / "agent.py"}", line 4'
    )
    assert ended.error_output.endswith("KeyError: 'what'\n")


async def test_the_deadline_ends_the_whole_group(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    ended = await _run(
        server,
        _program(tmp_path, programs.SLEEPS, preload, str(tmp_path / "pids")),
        tmp_path,
        limit_s=1.5,
    )
    assert ended.is_overdue
    assert ended.exit_code == -signal.SIGTERM
    assert all(programs.is_soon_dead(int(pid)) for pid in (tmp_path / "pids").read_text().split())


async def test_a_process_that_ignores_sigterm_is_killed(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    ended = await _run(
        server, _program(tmp_path, programs.IGNORES_SIGTERM, preload), tmp_path, limit_s=1.5
    )
    assert (ended.exit_code, ended.is_overdue) == (-signal.SIGKILL, True)


async def test_children_of_a_process_that_ended_are_killed(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    ended = await _run(
        server,
        _program(tmp_path, programs.LEAVES_A_CHILD, preload, str(tmp_path / "pids")),
        tmp_path,
    )
    assert ended.exit_code == 0
    assert programs.is_soon_dead(int((tmp_path / "pids").read_text()))


async def test_cancelling_kills_the_group(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    pids = tmp_path / "pids"
    running = asyncio.create_task(
        _run(server, _program(tmp_path, programs.SLEEPS, preload, str(pids)), tmp_path)
    )
    await _appears(pids)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert all(programs.is_soon_dead(int(pid)) for pid in pids.read_text().split())


async def test_closing_kills_everything(tmp_path: Path, preload: bool) -> None:
    pids = tmp_path / "pids"
    async with ForkServer(sys.executable, [], ENVIRONMENT) as server:
        running = asyncio.create_task(
            _run(server, _program(tmp_path, programs.SLEEPS, preload, str(pids)), tmp_path)
        )
        await _appears(pids)
    with pytest.raises(ForkServerFailed):
        await running
    assert all(programs.is_soon_dead(int(pid)) for pid in pids.read_text().split())


async def test_a_parent_ended_by_sigkill_leaves_no_process(tmp_path: Path, preload: bool) -> None:
    pids = tmp_path / "pids"
    program = _program(tmp_path, programs.SLEEPS, preload, str(pids))
    source = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom services.common.processes.fork_server import "
        "ForkServer, Program\n"
        "async def main():\n"
        f"    async with ForkServer(sys.executable, [], {ENVIRONMENT!r}) as server:\n"
        f"        await server.run(Program({program.argv!r}, {program.python!r}, "
        f"{program.script!r}),"
        f" environment={ENVIRONMENT!r}, cwd=Path({str(tmp_path)!r}))\n"
        "asyncio.run(main())\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", source], cwd=Path(__file__).parents[3])  # noqa: ASYNC220 - the test waits for it
    await _appears(pids)
    runner.kill()
    runner.wait()
    assert all(programs.is_soon_dead(int(pid)) for pid in pids.read_text().split())


async def test_many_processes_at_once(server: ForkServer, tmp_path: Path, preload: bool) -> None:
    program = _program(tmp_path, programs.ECHO, preload)
    ended = await asyncio.gather(
        *(_run(server, program, tmp_path, stdin=str(number).encode()) for number in range(30))
    )
    assert [json.loads(one.output)["stdin"] for one in ended] == [
        str(number) for number in range(30)
    ]


async def test_only_the_end_of_long_output_is_kept(
    server: ForkServer, tmp_path: Path, preload: bool
) -> None:
    program = _program(tmp_path, "print('x' * 3_000_000 + 'end')", preload)
    ended = await _run(server, program, tmp_path)
    assert len(ended.output) <= 4096
    assert ended.output.endswith("xend\n")


async def test_a_module_is_run(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "solver.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    program = Program(("a",), sys.executable, module="solver")
    assert (await _run(server, program, tmp_path)).output == "__main__ ['a']\n"


async def test_a_module_that_cannot_be_imported_is_reported() -> None:
    with pytest.raises(ForkServerFailed, match="cannot import no_such_module"):
        async with ForkServer(sys.executable, ["no_such_module"], ENVIRONMENT):
            pass


async def test_a_module_that_starts_threads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), "
        "daemon=True).start()\n"
    )
    with pytest.raises(ForkServerFailed, match="started 1 threads"):
        async with ForkServer(
            sys.executable, ["threaded"], {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
        ):
            pass


async def test_a_program_that_is_gone_ends_with_127(server: ForkServer, tmp_path: Path) -> None:
    ended = await _run(server, Program((str(tmp_path / "gone"),)), tmp_path)
    assert ended.exit_code == 127
    assert "No such file" in ended.error_output


async def _appears(path: Path) -> None:
    """Wait until an agent has written its line."""
    await asyncio.to_thread(programs.wait_for_line, path)
