"""The command line's front door: quick help that names every command, and the right one behind each
name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from services.cli.main import COMMANDS, app, load

HEAVY = ("torch", "vllm", "verl", "confluent_kafka", "aiohttp", "fastavro", "pydantic")


def test_help_names_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys, services.cli.main as m; m.app(['--help'], standalone_mode=False); print([n "
        f"for n in {HEAVY} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert all(name in done.stdout for name in (*COMMANDS, "topics"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert f"fulgurite {name}" in done.output.replace("root", "fulgurite")
    assert len(load(name).help or "") > 60
    untold = [
        line
        for line in done.output.splitlines()
        if re.search(r"--\w", line) and ("<str>" in line or "<list[str]>" in line)
    ]
    assert not untold, "an option whose value is named by its Python type"


def test_an_unknown_command_is_refused() -> None:
    done = CliRunner().invoke(app, ["trian"])
    assert done.exit_code == 2
    assert "trian" in done.output


def test_topics_create_explains_itself() -> None:
    done = CliRunner().invoke(app, ["topics", "create", "--help"])
    assert done.exit_code == 0
    assert "FULGURITE_REPLICATION" in done.output


def test_the_version_is_told() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"fulgurite {metadata.version('fulgurite')}\n")
