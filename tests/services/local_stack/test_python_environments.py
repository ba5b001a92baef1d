"""Environments of agents: made once, made anew where the making failed, named by their pins."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.local_stack.errors import RequirementMissing
from services.local_stack.python_environments import environment_folder, install_python, make_once


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))


def test_an_environment_is_made_once_and_anew_after_a_failure(tmp_path: Path) -> None:
    folder, made = tmp_path / "agents" / "one", list[str]()

    def install(*, fails: bool) -> None:
        folder.mkdir(parents=True)
        made.append("failed" if fails else "made")
        if fails:
            raise RequirementMissing("no network")

    with pytest.raises(RequirementMissing):
        make_once(folder, lambda: install(fails=True))
    for _ in range(2):
        make_once(folder, lambda: install(fails=False))
    assert made == ["failed", "made"]


def test_other_pins_are_another_environment(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("one==1")
    before = environment_folder("examples/one", [pins])
    assert before == environment_folder("examples/one", [pins])
    pins.write_text("one==2")
    assert before != environment_folder("examples/one", [pins])


def test_what_cannot_be_installed_is_told(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("not a requirement")
    with pytest.raises(RequirementMissing, match=r"requirements\.txt.*failed"):
        install_python(pins, tmp_path / "environment")
