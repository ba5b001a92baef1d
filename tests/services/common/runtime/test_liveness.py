"""A service's sign of life is a file, touched no more often than once a second, and only where one
is named.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.runtime import liveness


def test_a_beat_touches_the_named_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_last", float("-inf"))
    liveness.beat()
    monkeypatch.setenv("FULGURITE_PULSE", str(tmp_path / "pulse"))
    liveness.beat()
    assert (tmp_path / "pulse").exists()
    (tmp_path / "pulse").unlink()
    liveness.beat()
    assert not (tmp_path / "pulse").exists(), "within a second it is touched once"


def test_a_disk_that_refuses_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_last", float("-inf"))
    monkeypatch.setenv("FULGURITE_PULSE", str(tmp_path / "missing" / "pulse"))
    liveness.beat()
