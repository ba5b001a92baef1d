"""What `fulgurite run` refuses before anything is started."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.common.processes.errors import ProcessError
from services.runner import command
from services.runner.command import check_rewards
from services.runner.errors import BadReward, RunnerError
from services.runner.options import RunOptions
from services.runner.run import Run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--rubric", "standards.txt"),
            "no --reward is a judge. Add --reward NAME=judge:ALIAS",
        ),
        (
            ("--rubric", "standards.txt", "--reward", "builtin:f1"),
            "no --reward is a judge",
        ),
        (("--reward", "a=builtin:f1", "--reward", "a=builtin:em"), "Invalid value for --reward"),
        (("--weight", "a"), "Invalid value for --weight"),
        (("--until-version", "newest"), "Invalid value for --until-version"),
        (("--until-version", "checker@1.5"), "set FULGURITE_POLICY=checker"),
        (("--mode", "val", "--updates", "3"), "trains nothing with --mode val: leave it out"),
        (("--mode", "val", "--max-ahead", "3"), "Invalid value for --max-ahead"),
        (("--mode", "val", "--until-version", "policy@1.5"), "Invalid value for --until-version"),
        (("--expert", "expert.py:answer", "--updates", "3"), "trains nothing with --expert"),
        (("--results", "/"), "/ is a folder: name a file"),
        (("--results", "/dev/null/results.json"), "/dev/null cannot be made"),
        (("--credit-rule", "fair"), "no credit rule 'fair'"),
        (("--credit-rule", "discounted(gamma=2)"), "Invalid value for --credit-rule"),
    ],
)
def test_options_that_do_not_fit_are_named(options: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(
        app,
        ["run", "--tasks", "tasks.jsonl", *options, "--", "true"],
        env={"COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize(
    ("rewards", "rubric", "said"),
    [
        ({"reward": "nowhere.py:fn"}, None, "expected FILE.py:FUNCTION with an existing file"),
        ({"reward": "builtin:exactmatch"}, None, "no built-in reward 'exactmatch'"),
        ({"reward": "rewards.py:other"}, None, "has no function 'other'"),
        (
            {"reward": "rewards.py:fn", "broken": "broken.py:fn"},
            None,
            "cannot be imported: ZeroDivisionError",
        ),
        ({"judge": "judge:big"}, "nowhere.txt", "nowhere.txt"),
    ],
)
def test_rewards_are_loaded_before_anything_is_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rewards: dict[str, str],
    rubric: str | None,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text("def fn(episode):\n    return 1.0\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    given = Path(rubric) if rubric else None
    options = RunOptions(
        tasks=Path("no-such-file"), command=("agent",), run_id="r", rewards=rewards, rubric=given
    )
    with pytest.raises(BadReward, match=re.escape(said)):
        check_rewards(options)


def test_an_expert_is_loaded_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "expert.py").write_text("def answer(task, messages):\n    return 'a'\n")
    for name, said in (("answer", None), ("other", "has no function 'other'")):
        options = RunOptions(
            tasks=Path("no-such-file"),
            command=("agent",),
            run_id="r",
            expert=f"{tmp_path}/expert.py:{name}",
        )
        if said is None:
            check_rewards(options)
        else:
            with pytest.raises(BadReward, match=said):
                check_rewards(options)


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "shown"])
@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("error", [RunnerError, ProcessError, LogUnavailable])
def test_a_run_that_breaks_prints_and_writes_what_it_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    groups: int,
    as_json: bool,
) -> None:
    async def broken(run: Run) -> None:
        run.groups = groups
        raise error("the gateway is away")

    monkeypatch.setattr(Run, "execute", broken)
    monkeypatch.setattr(command, "from_environment", KafkaSettings)
    results = tmp_path / "new" / "results.json"
    options = ["--tasks", "tasks.jsonl", "--results", str(results), *(["--json"] * as_json)]
    done = CliRunner().invoke(app, ["run", *options, "--", "true"])
    assert done.exit_code == 1
    assert "the gateway is away" in done.output
    assert results.exists() == bool(groups)
    if groups:
        written = json.loads(results.read_text())
        assert (written["groups"], written["error"]) == (2, "the gateway is away")
        assert ('"summary"' if as_json else "after 0 updates") in done.output
