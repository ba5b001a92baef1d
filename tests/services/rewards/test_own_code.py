"""What is part of a user's reward function: its file and the user's own modules behind it, and
nothing that is installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.rewards.functions import source_of
from services.rewards.own_code import code_of

REWARDS = """
import json, numpy
from fulgurite.episodes.view import EpisodeView
import words
from shop import prices
def fn(episode): return 1.0
"""
PROJECT = {
    "rewards.py": REWARDS,
    "words.py": "def first(): from late import LAST; return LAST\n",
    "late.py": "LAST = 1\n",
    "shop/__init__.py": "from .tax import RATE\n",
    "shop/tax.py": "from . import rates\nRATE = rates.LOW\n",
    "shop/rates.py": "LOW = 1\n",
    "shop/prices.py": "from ..nowhere import none\nfrom shop.deep.est import X\n",
    "shop/deep/est.py": "import rewards, words\nX = 1\n",
    "idle.py": "import words\n",
    "data.json": "{}",
}
BEHIND = [
    "words.py",
    "late.py",
    "shop/__init__.py",
    "shop/tax.py",
    "shop/rates.py",
    "shop/prices.py",
    "shop/deep/est.py",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return made(tmp_path / "project", PROJECT)


def made(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("edited", ["rewards.py", *BEHIND])
def test_an_edit_behind_a_function_makes_it_another(project: Path, edited: str) -> None:
    before = source_of(f"{project}/rewards.py:fn")
    with (project / edited).open("a") as file:
        file.write("# another\n")
    after = source_of(f"{project}/rewards.py:fn")
    assert after.partition("#")[0] == before.partition("#")[0] == "rewards.py:fn"
    assert after != before


@pytest.mark.parametrize("edited", ["idle.py", "data.json"])
def test_an_edit_elsewhere_does_not(project: Path, edited: str) -> None:
    before = source_of(f"{project}/rewards.py:fn")
    (project / edited).write_text("other")
    assert source_of(f"{project}/rewards.py:fn") == before


def test_a_helper_that_takes_anothers_content_is_another(project: Path) -> None:
    before = source_of(f"{project}/rewards.py:fn")
    texts = [(project / name).read_text() for name in ("late.py", "shop/rates.py")]
    for name, text in zip(("shop/rates.py", "late.py"), texts, strict=True):
        (project / name).write_text(text)
    assert source_of(f"{project}/rewards.py:fn") != before


def test_it_is_the_same_wherever_it_lies_and_from_wherever_it_is_asked(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = source_of(f"{project}/rewards.py:fn")
    elsewhere = made(tmp_path / "elsewhere", PROJECT)
    monkeypatch.chdir(elsewhere)
    assert source_of("rewards.py:fn") == here
    monkeypatch.chdir(tmp_path)
    assert source_of(f"{project}/rewards.py:fn") == here


def test_what_lies_in_the_working_directory_is_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(
        tmp_path, {"rewards/rewards.py": "import own\ndef fn(e): return 1.0\n", "own.py": "A = 1\n"}
    )
    monkeypatch.chdir(tmp_path)
    before = source_of("rewards/rewards.py:fn")
    (tmp_path / "own.py").write_text("A = 2\n")
    assert source_of("rewards/rewards.py:fn") != before


def test_a_file_alone_is_its_content_whatever_is_installed_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import tool\nfrom fulgurite import ids\nfrom services.common.kafka.logged_calls import "
        "read_calls\n"
    )
    installed = made(tmp_path / "site-packages", {"rewards.py": text, "tool.py": "A = 1\n"})
    monkeypatch.chdir(Path(__file__).parents[3])
    assert code_of(installed / "rewards.py") == text.encode()


@pytest.mark.parametrize("broken", [b"def fn(:\n", b"a = '\0'\n", b"# coding: none\n", b"\xff\xfe"])
def test_what_cannot_be_parsed_is_its_bytes(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "rewards.py").write_bytes(broken)
    assert code_of(tmp_path / "rewards.py") == broken
