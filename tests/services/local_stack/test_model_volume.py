"""A model's folder is complete or reported as half-written; the small one is then made again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.local_stack import model, model_volume
from services.local_stack.errors import ChecksumMismatch, RequirementMissing


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        }
    ).encode()
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(8)
    )
    return folder


def test_a_whole_folder_has_no_problem(tmp_path: Path) -> None:
    assert model_volume.folder_problem(write_model(tmp_path)) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer"),
        ("model.safetensors", "safetensors"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, said: str) -> None:
    (write_model(tmp_path) / name).unlink()
    assert said in str(model_volume.folder_problem(tmp_path))
    assert model_volume.folder_problem(tmp_path / "other") == "is not there"


@pytest.mark.parametrize("size", [0, 5, 40, 100])
def test_half_written_weights_are_found(tmp_path: Path, size: int) -> None:
    os.truncate(write_model(tmp_path) / "model.safetensors", size)
    assert model_volume.folder_problem(tmp_path) == "has a half-written model.safetensors"


def test_weights_with_a_damaged_header_are_found(tmp_path: Path) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"{", b"?"))
    assert model_volume.folder_problem(tmp_path) == "has a half-written model.safetensors"


def test_a_named_folder_is_only_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FULGURITE_MODEL", str(tmp_path / "model"))
    assert model_volume.main() == os.EX_CONFIG
    assert f"FULGURITE_MODEL={tmp_path / 'model'}" in capsys.readouterr().err
    write_model(tmp_path / "model")
    assert model_volume.main() == 0


@pytest.mark.parametrize(
    ("folder", "there", "fetched"),
    [
        ("Someone/a-model", "", ["Someone/a-model"]),
        ("Someone/a-model", ".cache/huggingface", ["Someone/a-model"]),
        ("Someone/a-model", "something", []),
        ("models/other", "", []),
        ("flat", "", []),
    ],
)
def test_a_folder_named_after_a_model_of_the_hub_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, there: str, fetched: list[str]
) -> None:
    if there:
        (tmp_path / folder / there).mkdir(parents=True)
    asked: list[str] = []

    def fetch(name: str, into: Path) -> Path:
        asked.append(name)
        return write_model(into)

    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    monkeypatch.setenv("FULGURITE_MODEL", str(tmp_path / folder))
    monkeypatch.setattr(model_volume, "fetch_model", fetch)
    assert model_volume.main() == (0 if fetched else os.EX_CONFIG)
    assert asked == fetched


def test_what_cannot_be_fetched_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, _: Path) -> Path:
        raise RequirementMissing(f"{name} could not be fetched")

    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    monkeypatch.setenv("FULGURITE_MODEL", str(tmp_path / "Someone" / "a-model"))
    monkeypatch.setattr(model_volume, "fetch_model", fail)
    assert model_volume.main() == os.EX_CONFIG
    assert "is not there (Someone/a-model could not be fetched). Copy" in capsys.readouterr().err


def test_the_small_model_is_made_again_when_it_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "small"
    (write_model(folder) / "config.json").unlink()

    def made(_name: str) -> Path:
        return folder if folder.is_dir() else write_model(folder)

    monkeypatch.setattr(model_volume, "model_folder", made)
    assert model_volume.make_model() == folder
    assert model_volume.folder_problem(folder) is None


def test_a_half_downloaded_package_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    (tmp_path / "cache").mkdir()

    def made(_name: str) -> Path:
        if (tmp_path / "cache").is_dir():
            raise ChecksumMismatch("half of it")
        return write_model(tmp_path / "models" / "small")

    monkeypatch.setattr(model_volume, "model_folder", made)
    assert model_volume.folder_problem(model_volume.make_model()) is None


def test_the_folder_of_a_packaged_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FULGURITE_HOME", str(tmp_path))
    folder = model.folder_of("qwen2.5-coder-0.5b")
    monkeypatch.setenv("FULGURITE_MODEL", str(folder))
    asked: list[str] = []

    def made(name: str) -> Path:
        asked.append(name)
        return write_model(folder)

    monkeypatch.setattr(model_volume, "model_folder", made)
    assert model_volume.main() == 0
    assert asked == ["qwen2.5-coder-0.5b"]
    assert f"the model is {folder}" in capsys.readouterr().err
