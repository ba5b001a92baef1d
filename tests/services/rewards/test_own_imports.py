"""A project's own `services`, beside its reward function or in the working directory: the
function's processes start, and find it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

JUDGES = """
import asyncio, os, sys
from services.rewards.errors import PluginError
from services.rewards.plugins import RewardPlugin
from services.rewards.sandbox import Limits
from tests.synthetic import make_call, make_declared, make_status
from fulgurite.episodes.stitching import stitch

def main():
    sandbox = RewardPlugin(sys.argv[1], "score").sandbox(Limits(processes=1, timeout_s=60.0, memory_mb=0))
    try:
        print(asyncio.run(sandbox.score(stitch([make_declared(), make_call(), make_status()]))))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        sandbox.close()
    print(os.environ.get("PYTHONSAFEPATH"))

if __name__ == "__main__":
    main()
"""

PRICE = "VALUE = 0.75\n"
READS = """
import os
from services.pricing import VALUE
def score(episode): return VALUE
def fails(episode): return VALUE / 0
def safe(episode): return float(os.environ.get("PYTHONSAFEPATH", "-1"))
"""


@pytest.fixture
def scorers(tmp_path: Path) -> Path:
    """A program outside the project, as an installed command is."""
    path = tmp_path / "bin" / "scorers.py"
    path.parent.mkdir()
    path.write_text(JUDGES)
    return path


def project(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "project"


def told(scorers: Path, folder: Path, reference: str, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, str(scorers), reference],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "own",
    [
        {"services/__init__.py": "", "services/pricing.py": PRICE},
        {"services/pricing.py": PRICE},
        {
            "services/__init__.py": "from services import pricing",
            "services/pricing.py": PRICE,
            "services/common/kafka/consumer.py": "raise SystemExit",
        },
    ],
    ids=["package", "folder", "package with names of ours"],
)
@pytest.mark.parametrize("reference", ["rewards.py:score", "rewards/rewards.py:score"])
def test_a_function_imports_what_its_project_calls_services(
    scorers: Path, tmp_path: Path, own: dict[str, str], reference: str
) -> None:
    folder = project(tmp_path, {**own, reference.partition(":")[0]: READS})
    assert told(scorers, folder, reference) == ["{'score': 0.75}", "None"]


def test_a_module_of_that_name_is_found_too(scorers: Path, tmp_path: Path) -> None:
    folder = project(
        tmp_path,
        {"services.py": PRICE, "rewards.py": READS.replace("services.pricing", "services")},
    )
    assert told(scorers, folder, "rewards.py:score")[0] == "{'score': 0.75}"


def test_a_built_in_reward_is_found_whatever_the_project_has(scorers: Path, tmp_path: Path) -> None:
    folder = project(tmp_path, {"services/__init__.py": ""})
    assert told(scorers, folder, "builtin:f1")[0].startswith(
        "RewardFailed: the task has no field 'reference'"
    )


def test_a_function_that_fails_is_told_of(scorers: Path, tmp_path: Path) -> None:
    folder = project(
        tmp_path, {"services/__init__.py": "", "services/pricing.py": PRICE, "rewards.py": READS}
    )
    assert (
        told(scorers, folder, "rewards.py:fails")[0]
        == "RewardFailed: ZeroDivisionError: float division by zero"
    )


@pytest.mark.parametrize(("environment", "expected"), [({}, -1.0), ({"PYTHONSAFEPATH": "1"}, 1.0)])
def test_programs_that_a_function_starts_look_where_they_always_did(
    scorers: Path, tmp_path: Path, environment: dict[str, str], expected: float
) -> None:
    folder = project(
        tmp_path, {"services/__init__.py": "", "services/pricing.py": PRICE, "rewards.py": READS}
    )
    assert told(scorers, folder, "rewards.py:safe", **environment)[0] == f"{{'score': {expected}}}"
