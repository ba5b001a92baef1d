"""Agents as processes of their own, that know a model server's address and a key and nothing else
of this project.
"""

from __future__ import annotations

import asyncio
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.agents.environments import Environment
from tests.agents.quickstarts import Cut, Quickstart

LIMIT_S = 180.0
_NOTEBOOK = Path(__file__).with_name("notebook.py")
SILENCE = {
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "CREWAI_TESTING": "true",
    "OTEL_SDK_DISABLED": "true",
    "ANONYMIZED_TELEMETRY": "false",
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}
"""Frameworks that call home are asked not to: a test talks to this machine only."""


class Done(NamedTuple):
    """How an agent ended."""

    code: int | None
    said: str


def variables(rollout: Mapping[str, Any], home: Path) -> dict[str, str]:
    """All that an agent is given."""
    address, key = str(rollout["base_url"]), str(rollout["api_key"])
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "OPENAI_BASE_URL": address,
        "OPENAI_API_KEY": key,
        "ANTHROPIC_BASE_URL": address.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": key,
        **SILENCE,
    }


async def run_quickstart(
    quickstart: Quickstart,
    cut: Cut,
    environment: Environment,
    rollout: Mapping[str, Any],
    folder: Path,
) -> Done:
    """From start to end, in a folder of its own."""
    given = variables(rollout, folder)
    given |= {
        name: string.Template(value).substitute(given)
        for name, value in quickstart.environment.items()
    }
    for command in quickstart.scaffold:
        made = await run(
            [str(environment.folder / "bin" / command[0]), *command[1:]], given, folder
        )
        assert made.code == 0, made.said
    script = write(quickstart.name, cut, environment)
    return await run(
        _command(quickstart, environment, script, folder), given, folder, quickstart.stdin
    )


def write(name: str, cut: Cut, environment: Environment) -> Path:
    """Both versions of it, where whoever wants to can read them; the one that runs."""
    suffix = ".ts" if environment.node else ".py"
    environment.scripts.mkdir(parents=True, exist_ok=True)
    (environment.scripts / f"{name}.original{suffix}").write_text(cut.original)
    script = environment.scripts / f"{name}{suffix}"
    script.write_text(cut.running)
    return script


def _command(
    quickstart: Quickstart, environment: Environment, script: Path, folder: Path
) -> Sequence[str]:
    if quickstart.entry is not None:
        source, module, function = quickstart.entry.split(":")
        start = (
            f"import sys; sys.path.insert(0, {str(folder / source)!r}); from {module} "
            f"import {function}; "
            f"{function}()"
        )
        return [str(environment.folder / "bin" / "python"), "-c", start]
    if quickstart.notebook:
        return [str(environment.folder / "bin" / "python"), "-P", str(_NOTEBOOK), str(script)]
    return environment.command(script)


async def run(argv: Sequence[str], given: Mapping[str, str], folder: Path, stdin: str = "") -> Done:
    """A process with these variables only; killed if it takes too long."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=folder, env=given, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(stdin.encode()), LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return Done(None, f"killed after {LIMIT_S:.0f} s")
    return Done(process.returncode, said.decode("utf-8", "replace"))
