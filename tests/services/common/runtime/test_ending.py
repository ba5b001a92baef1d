"""A process that ends says why in one line, the last of its log, whatever it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from pydantic_settings import BaseSettings

from services.common.kafka.errors import LogUnavailable
from services.common.runtime.ending import run_service

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

SERVICES = {
    "aggregator": ("services.aggregator.main",),
    "rewarder": ("services.rewarder.main",),
    "applier": ("services.applier.main",),
    "learner": ("services.learner.main",),
    "gateway": ("services.gateway.main",),
    "reward-worker": ("services.rewards.worker", "--reward", "builtin:f1"),
    "judge": ("services.judge.main", "--model", "big"),
}


class Settings(BaseSettings):
    secret: int


def ends(what: BaseException | int | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and the only line."""

    def main() -> int | None:
        if isinstance(what, BaseException):
            raise what
        return what

    code = run_service("some-service", main)
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return code, said


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        (None, 0, "told to stop"),
        (0, 0, "told to stop"),
        (SystemExit(0), 0, "told to stop"),
        (SystemExit("no such\nthing"), 1, "no such thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (LogUnavailable("llm.calls: away"), 1, "LogUnavailable: llm.calls: away"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines"),
        (MemoryError(), 1, "MemoryError"),
    ],
)
def test_the_reason_is_told_in_one_line(
    what: BaseException | int | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, line = ends(what, capsys)
    told = json.loads(line)
    assert (found, told["event"], told["exit_code"], told["service"]) == (
        code,
        "ended",
        code,
        "some-service",
    )
    assert said in told["error" if code else "reason"]


def test_a_service_that_has_said_why_itself_says_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ends(78, capsys) == (78, "")


def test_a_setting_is_named_and_its_value_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="secret") as caught:
        Settings.model_validate({"secret": "hunter2"})
    code, line = ends(caught.value, capsys)
    assert (
        code,
        "docs/reference/settings.md" in line,
        "secret: Input should be" in line,
        "hunter2" in line,
    ) == (
        os.EX_CONFIG,
        True,
        True,
        False,
    )


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_that_cannot_start_says_so_in_one_line(name: str) -> None:
    module, *arguments = SERVICES[name]
    environment = {
        **os.environ,
        "FULGURITE_REPLICATION": "many",
        "FULGURITE_API_KEYS": "a",
        "FULGURITE_SIGNING_KEYS": "",
        "FULGURITE_ADMIN_KEY": "",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(lines[-1])
    assert told["event"] in ("ended", "cannot start")
    assert "docs/reference/settings.md" in told["error"]
