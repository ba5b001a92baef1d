"""Programs of this environment come before those of the machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from services.common.processes.program_path import own_programs_first


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_python_is_this_one(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if path is None:
        monkeypatch.delenv("PATH")
    else:
        monkeypatch.setenv("PATH", path)
    found = shutil.which("python", path=own_programs_first())
    assert found is not None
    assert Path(found).parent == Path(sys.executable).parent
