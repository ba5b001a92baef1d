"""`fulgurite diagnose`: what it prints of facts, and wrong input."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fulgurite.diagnosis.facts import Facts
from fulgurite.diagnosis.findings import find
from services.cli.diagnose import show
from services.cli.main import app
from services.common.runtime.terminal import make_console


def printed(facts: Facts, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show(facts, find(facts), make_console())
    return capsys.readouterr().out.splitlines()


def test_each_finding_is_followed_by_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    facts = Facts(rollouts=4, groups=2, groups_without_signal=2, actions={"truncated": 4})
    lines = printed(facts, capsys)
    assert lines[:4] == [
        "4 rollouts; 2 closed groups of mode `train`, 0 of 4 actions trained",
        "2 of 2 groups gave no training signal (100%)",
        "0 of 4 actions trained: 4 truncated",
        "truncated",
    ]
    assert "raise max_tokens" in lines[4]


def test_a_run_that_learns_has_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(Facts(rollouts=4, groups=2, actions={"trained": 4}), capsys)
    assert lines[1:] == ["Nothing was found that keeps the policy from learning."]


def test_a_time_that_is_none_is_refused() -> None:
    done = CliRunner().invoke(app, ["diagnose", "--since", "yesterday"])
    assert (done.exit_code, "'yesterday' is neither a span" in done.stderr) == (1, True)
