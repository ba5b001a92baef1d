"""Reading `example.toml`, and all that the project has."""

from __future__ import annotations

from pathlib import Path

import pytest

from fulgurite.groups.credit import credit_rule
from services.learner.config_file import load_all
from services.local_stack.errors import SettingsInvalid
from services.local_stack.example import read_example

PROJECT = Path(__file__).parents[3]
FILES = sorted(
    {
        *PROJECT.glob("examples/**/example.toml"),
        *PROJECT.glob("examples/calculator/*.toml"),
        *PROJECT.glob("benchmarks/learning/*.toml"),
        *PROJECT.glob("benchmarks/use_cases/*.toml"),
    }
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_every_example_names_what_is_there(file: Path) -> None:
    example = read_example(file)
    assert example.agent.is_file()
    assert example.tasks.is_file()
    assert Path(example.reward.rpartition(":")[0]).is_file()
    credit_rule(example.credit_rule or "identical")
    if example.run is not None:
        assert load_all(example.run, {"FULGURITE_MODEL": "model"})
    if example.requirements is not None:
        assert example.requirements.is_file()
    if example.warm_start is not None:
        assert Path(example.warm_start.expert.rpartition(":")[0]).is_file()
        [run] = load_all(example.warm_start.run, {"FULGURITE_MODEL": "model"}, "warm")
        assert run.sft.min_reward is not None, "not all that is recorded is the expert's"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = 1", "str"),
        ('title = "T"\nagent = "a.py"\ntasks = "t.py"', "reward"),
        ('title = "T"\nagent = "a.py"\ntasks = "t.py"\nreward = "r.py:f"\nspeed = 1', "speed"),
        ("title", "Expected"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "example.toml").write_text(text)
    with pytest.raises(SettingsInvalid, match=said):
        read_example(tmp_path / "example.toml")
    with pytest.raises(SettingsInvalid, match="nowhere"):
        read_example(tmp_path / "nowhere.toml")
