"""Which files the weights at a path are."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.vllm_plugin.artifact import ArtifactRefused, read_ahead, weights_files


def test_a_path_is_a_file_or_the_shards_of_a_folder(tmp_path: Path) -> None:
    shards = [tmp_path / f"model-{number}.safetensors" for number in (1, 2)]
    for path in (*shards, tmp_path / "config.json"):
        path.write_bytes(b"content")
    assert weights_files(tmp_path) == shards
    assert weights_files(shards[1]) == [shards[1]]
    read_ahead(shards)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ArtifactRefused, match="cannot be read"):
            weights_files(path)
