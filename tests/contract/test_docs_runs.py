"""Runs that the pages show are read by the learner, with every key and value."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest

from services.learner.config_file import load_all, variable
from services.learner.errors import ConfigInvalid
from tests.contract.test_docs import ROOT, pages

BLOCK = re.compile(r"^( *)```toml[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OTHER_FILES = {"agent": "an example", "currency": "prices"}
"""TOML that is no run, by a key that only such a file has."""


def shown_runs(page: Path) -> list[str]:
    """The runs that a page shows, or parts of them."""
    blocks = [dedent(text) for _, text in BLOCK.findall(page.read_text())]
    return [text for text in blocks if not OTHER_FILES.keys() & tomllib.loads(text).keys()]


RUNS = [
    pytest.param(run, id=f"{page.relative_to(ROOT)}-{number}")
    for page in pages()
    for number, run in enumerate(shown_runs(page))
]


@pytest.mark.parametrize("run", RUNS)
def test_shown_runs_can_be_read(run: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(run)
    assert load_all(file, {variable("policy.model"): "/models/base"})


def test_a_run_with_an_unknown_key_is_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"optimizer\.lrr: there is no such key"):
        test_shown_runs_can_be_read("[optimizer]\nlrr = 1e-5\n", tmp_path)


def test_runs_were_found() -> None:
    assert len(RUNS) > 8
