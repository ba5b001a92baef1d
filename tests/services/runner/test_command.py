"""What `fulgurite run` refuses before anything is started."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from services.cli.main import app


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rubric", "standards.txt"), "no reward is a judge that it could be for: --reward NAME=judge:ALIAS"),
        (("--rubric", "standards.txt", "--reward", "builtin:f1"), "no reward is a judge that it could be for"),
        (("--reward", "a=builtin:f1", "--reward", "a=builtin:em"), "Invalid value for --reward"),
        (("--weight", "a"), "Invalid value for --weight"),
        (("--until-version", "newest"), "Invalid value for --until-version"),
    ],
)
def test_options_that_do_not_fit_are_named(options: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["run", "--tasks", "tasks.jsonl", *options, "--", "true"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == 2
    assert said in done.output
