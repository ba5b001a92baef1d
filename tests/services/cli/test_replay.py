"""What the commands that read the log again refuse before they look at it, in words that say what
would do.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from services.cli.main import app

REFUSED = [
    (("replay", "--into", "x"), "--from-beginning"),
    (("replay", "--into", "x", "--from-datetime", "yesterday"), "ISO"),
    (("replay", "--into", "x", "--from-beginning", "--credit", "nonsense"), "no credit rule"),
    (("replay", "--into", "x", "--from-beginning", "--weight", "style=much"), "NAME=NUMBER"),
    (("replay", "--into", "x", "--from-beginning", "--weight", "style=nan"), "NAME=NUMBER"),
    (("replay", "--into", "x", "--from-beginning", "--weight", "=1"), "NAME=NUMBER"),
    (("replay", "--into", "x", "--from-beginning", "--exclude", "[{}]"), "without a condition"),
    (("replay", "--into", "x", "--from-beginning", "--exclude", "title"), "--exclude: "),
    (
        ("replay", "--into", "x", "--from-beginning", "--without", "jane"),
        "neither a subject nor a tenant",
    ),
    (("replay", "--into", "x", "--from-beginning", "--rejudge"), "--reward"),
    (("replay", "--into", "x", "--from-beginning", "--reward", "none.py:fn"), "FILE.py:FUNCTION"),
    (("replay", "--into", "x", "--from-beginning", "--archive-only"), "--archive"),
    (("replay", "--into", "x", "--from-beginning", "--archive", "/nowhere"), "is not an archive"),
    (
        (
            "replay",
            "--into",
            "x",
            "--from-beginning",
            "--reward",
            "builtin:f1",
            "--reward",
            "style=none.py:fn",
        ),
        "FILE.py:FUNCTION",
    ),
    (
        (
            "replay",
            "--into",
            "x",
            "--from-beginning",
            "--reward",
            "a=builtin:f1",
            "--reward",
            "a=builtin:math",
        ),
        "are both named 'a'",
    ),
    (("try", "none.py:fn"), "FILE.py:FUNCTION"),
    (("try", "builtin:f1", "--reward", "builtin:math"), "are both named 'reward'"),
    (
        ("try", "builtin:f1", "--name", "style", "--reward", "style=builtin:math"),
        "are both named 'style'",
    ),
    (("try", "--weight", "style=much"), "NAME=NUMBER"),
    (("try",), "nothing to compare"),
    (("lineage",), "--call"),
    (("lineage", "policy"), "policy@epoch.step"),
    (("lineage", "--call", "mine"), "completion id"),
    (("rollouts", "show", "mine"), "no id of a group"),
    (("rollouts", "list", "--since", "yesterday"), "30m, 24h or 7d"),
    (("rollouts", "list", "--version", "1.3"), "policy@epoch.step"),
    (("rollouts", "list", "--group", "mine"), "no id of a group"),
    (("export", "sft", "x", "--version", "1.3"), "policy@epoch.step"),
    (("export", "sft", "/"), "exists already"),
    (("archive", "/nowhere", "--topic", "calls"), "llm.calls"),
    (("dlq", "redrive"), "--all"),
    (("train", "--rows-of", "policy"), "replayed topic"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED]
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("FULGURITE_MODEL", "model")
    done = CliRunner().invoke(app, list(arguments))
    assert (done.exit_code, words in done.stderr) == (1, True), done.output


@pytest.mark.parametrize(
    "command",
    [
        ("dlq", "show", "x"),
        ("dlq", "redrive", "x"),
        ("rollouts", "show", "x"),
        ("export", "sft", "x"),
    ],
)
def test_subcommands_explain_themselves(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert (done.exit_code, "xits" in done.output) == (0, True)


def test_the_log_is_read_again_without_faust() -> None:
    modules = ("replay", "try_reward", "export", "rollouts", "lineage", "dlq")
    code = (
        f"import sys, {', '.join(f'services.cli.{module}' for module in modules)}; print('faust' "
        "in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (("rollouts", "list", "--mode", "foo"), ("train", "val", "live")),
        (("rollouts", "list", "--failure", "foo"), ("agent_exception", "truncated")),
        (("export", "sft", "x", "--mode", "foo"), ("train", "val", "live")),
    ],
)
def test_what_is_none_of_the_values_is_told_them(
    arguments: tuple[str, ...], values: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(
        app, list(arguments), env={"COLUMNS": "1000", "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}
    )
    assert done.exit_code == 2
    assert all(value in done.output for value in values)
