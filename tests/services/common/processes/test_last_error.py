"""The last error in logs of our services, of Python programs and of Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.processes.last_error import last_error

OURS = '{"level": "error", "event": "the learner cannot continue", "error": "no checkpoint"}'
FINE = '{"level": "info", "event": "stopped"}'
RAISED = (
    '{"level": "error", "event": "crashed", "exception": "Traceback:\\n  File x\\nKeyError: 3"}'
)
PYDANTIC = """Traceback (most recent call last):
  File "main.py", line 1
pydantic_core._pydantic_core.ValidationError: 1 validation error for LearnerSettings
model
  Field required
    For further information visit https://errors.pydantic.dev/2/v/missing
"""
UVICORN = """INFO:     Started server process [1]
ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8080): address already in use
INFO:     Waiting for application shutdown.
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (f"{OURS}\n{FINE}\n", "the learner cannot continue: no checkpoint"),
        (f"{RAISED}\n", "crashed: KeyError: 3"),
        (
            "Traceback\n  File\nOSError: [Errno 98] address already in use\nbye\n",
            "OSError: [Errno 98] address already in use bye",
        ),
        (
            PYDANTIC,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for "
            "LearnerSettings model Field required",
        ),
        (
            UVICORN,
            "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', "
            "8080): address already in use",
        ),
        (
            "[2026] FATAL Exiting Kafka due to fatal exception\n[2026] INFO bye\n",
            "[2026] FATAL Exiting Kafka due to fatal exception",
        ),
        ("Segmentation fault\n\n", "Segmentation fault"),
        ("{not json\nlast\n", "last"),
        (FINE.replace("stopped", "fatal error of another").replace("info", "warning") + "\n", ""),
        ("", ""),
    ],
)
def test_the_last_error_is_found(tmp_path: Path, log: str, expected: str) -> None:
    (tmp_path / "log").write_text(log)
    assert last_error(tmp_path / "log") == expected


def test_an_older_error_and_a_missing_log_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(OURS)
    assert last_error(tmp_path / "log", since=len(OURS)) == ""
    assert last_error(tmp_path / "none") == ""


@given(st.binary(max_size=300))
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, log: bytes) -> None:
    path = tmp_path_factory.mktemp("logs") / "log"
    path.write_bytes(log)
    assert isinstance(last_error(path), str)
