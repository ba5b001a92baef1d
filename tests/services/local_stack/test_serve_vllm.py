"""What vLLM is started with in a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.local_stack.model import tiny_model
from services.local_stack.serve_vllm import command, plan

GIVEN = ["--model=/models/a", "--served-model-name=writer", "--max-model-len=512"]


@pytest.fixture(autouse=True)
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "run.toml"
    file.touch()
    monkeypatch.setenv("FULGURITE_RUN", str(file))
    monkeypatch.setenv("FULGURITE_MODEL", "/models/a")
    return file


def test_without_a_run_it_serves_full_weights() -> None:
    argv = command(tiny_model(), GIVEN, plan())
    assert argv[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert argv[3:6] == GIVEN
    assert "--tool-call-parser=fulgurite" in argv
    assert "--enable-lora" not in argv


def test_a_run_of_adapters_is_served_as_such(run_file: Path) -> None:
    run_file.write_text('[[policy]]\nname = "writer"\nweights = {train = "lora", rank = 20}\n')
    argv = command(tiny_model(), GIVEN, plan())
    assert {"--enable-lora", "--max-lora-rank=32"} <= set(argv)


def test_what_a_person_must_change_is_said_and_not_tried_again(run_file: Path) -> None:
    run_file.write_text("[batch]\ngropus = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "services.local_stack.serve_vllm", *GIVEN],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == os.EX_CONFIG
    assert "run.toml: batch.gropus: there is no such key" in done.stderr
