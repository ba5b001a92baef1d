"""How reward workers and judges end that cannot start: with 78, which no restart policy answers,
and a line that says what to change.
"""

from __future__ import annotations

import os

import pytest

from services.common.kafka.errors import LogUnavailable
from services.common.streaming.episode_readers import Reader, serve
from services.judge import main
from services.rewards import worker

pytestmark = pytest.mark.usefixtures("logging_as_it_was")

RUN = {"judge": main.run, "worker": worker.run}


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (
            ("worker", "--reward", "none.py:fn"),
            {},
            "expected FILE.py:FUNCTION with an existing file",
        ),
        (
            ("worker", "--reward", "builtin:f1"),
            {"FULGURITE_REWARD_WORKER_CONCURRENCY": "no"},
            "RewardWorkerSettings (docs/reference/settings.md): concurrency: Input should be a "
            "valid integer",
        ),
        (
            ("judge", "--model", "big"),
            {},
            "there is no key for the gateway: set FULGURITE_JUDGE_API_KEY",
        ),
        (
            ("judge", "--model", "big", "--rubric", "none.txt"),
            {"FULGURITE_API_KEYS": "a"},
            "--rubric none.txt cannot be read",
        ),
        (
            ("judge", "--model", "big"),
            {"FULGURITE_JUDGE_API_KEY": "fg-k1.secret.signature"},
            "FULGURITE_JUDGE_API_KEY is a rollout's key",
        ),
        (
            ("judge", "--model", "big"),
            {"FULGURITE_JUDGE_RETRIES": "-1"},
            "JudgeSettings (docs/reference/settings.md): retries: Input",
        ),
        (
            ("judge", "--model", "big"),
            {"FULGURITE_API_KEYS": "a", "FULGURITE_JUDGE_LOG_LEVEL": "loud"},
            "Unknown level: 'LOUD'",
        ),
    ],
)
async def test_what_trying_again_does_not_mend_ends_with_78(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    environment: dict[str, str],
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert await RUN[arguments[0]](arguments[1:]) == os.EX_CONFIG
    told = capsys.readouterr().err
    assert '"event": "cannot start"' in told
    assert said in told
    assert "secret.signature" not in told


async def test_what_may_pass_is_no_such_end() -> None:
    def make() -> Reader:
        raise LogUnavailable("away")

    with pytest.raises(LogUnavailable):
        await serve("judge", make)
