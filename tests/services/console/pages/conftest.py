from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.services.console.recording import Recording, events


@pytest.fixture
def empty(tmp_path: Path) -> Generator[Recording]:
    recording = Recording(tmp_path / "empty.duckdb")
    yield recording
    recording.close()


@pytest.fixture
def recording(tmp_path: Path) -> Generator[Recording]:
    recording = Recording(tmp_path / "index.duckdb")
    recording.write(events())
    yield recording
    recording.close()
