"""Only the announced file gets near an engine."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from fulgurite.enums import ArtifactFormat
from fulgurite.events import Artifact
from services.applier.artifacts import base_weights, check, fetch_adapter, find
from services.applier.errors import (
    ApplierError,
    ApplyFailed,
    BadArtifact,
    EngineRefused,
    EngineUnreachable,
    LoadBroken,
    ProbeFailed,
)
from services.common.runtime.weights_index import NAME, Shard, write_index

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a folder" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def artifact(
    uri: str, sha256: str = DIGEST, kind: ArtifactFormat = ArtifactFormat.full
) -> Artifact:
    return Artifact(uri=uri, sha256=sha256, size=len(CONTENT), format=kind)


def test_the_announced_file_is_found_by_uri_and_by_path(file: Path) -> None:
    for uri in (file.as_uri(), str(file)):
        found = find(artifact(uri))
        check(found)
        assert (found.path, found.sha256) == (file, DIGEST)


@pytest.mark.parametrize(
    ("uri", "sha256", "kind", "reason"),
    [
        ("s3://bucket/model.safetensors", DIGEST, ArtifactFormat.full, "only file://"),
        ("/nowhere/model.safetensors", DIGEST, ArtifactFormat.full, "cannot be read"),
        ("{file}", "0" * 64, ArtifactFormat.full, "damaged or replaced"),
        ("{file}", DIGEST, ArtifactFormat.lora, "lora"),
    ],
)
def test_anything_else_is_refused_with_the_reason(
    file: Path, uri: str, sha256: str, kind: ArtifactFormat, reason: str
) -> None:
    with pytest.raises(BadArtifact, match=reason):
        check(find(artifact(uri.replace("{file}", str(file)), sha256, kind)))


def test_the_base_model_is_one_file_or_the_shards_of_a_known_folder(
    file: Path, tmp_path: Path
) -> None:
    assert base_weights(file.parent) == file
    with pytest.raises(BadArtifact, match="FULGURITE_MODEL"):
        base_weights(None)
    with pytest.raises(BadArtifact, match="has no safetensors"):
        base_weights(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert base_weights(tmp_path) == tmp_path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The index of two shards."""
    shards: list[Shard] = []
    for number in (1, 2):
        file = tmp_path / f"model-0000{number}-of-00002.safetensors"
        file.write_bytes(f"weights {number}".encode())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shards.append(Shard(file.name, digest, (f"layer.{number}",), 4))
    write_index(tmp_path, shards)
    return tmp_path / NAME


def test_shards_are_checked_against_their_index_and_loaded_as_a_folder(index: Path) -> None:
    assert json.loads(index.read_text())["weight_map"] == {
        f"layer.{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)
    }
    weights = find(artifact(index.as_uri(), hashlib.sha256(index.read_bytes()).hexdigest()))
    check(weights)
    assert weights.engine_path == index.parent
    (index.parent / "more.safetensors").touch()
    with pytest.raises(BadArtifact, match=r"more\.safetensors is not in"):
        check(weights)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (NAME, "damaged or replaced"),
        ("model-00002-of-00002.safetensors", r"00002-of-00002.* damaged or replaced"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_shard_or_index_is_refused(index: Path, file: str | None, reason: str) -> None:
    announced = artifact(index.as_uri(), hashlib.sha256(index.read_bytes()).hexdigest())
    if file is None:
        (index.parent / "model-00001-of-00002.safetensors").unlink()
    else:
        with (index.parent / file).open("ab") as opened:
            opened.write(b" ")
    with pytest.raises(BadArtifact, match=reason):
        check(find(announced))


def test_an_index_without_digests_is_refused(index: Path) -> None:
    index.write_text('{"metadata": {"total_size": 8}, "weight_map": {}}')
    with pytest.raises(BadArtifact, match="not the index of a learner's shards"):
        check(find(artifact(index.as_uri(), hashlib.sha256(index.read_bytes()).hexdigest())))


def test_what_is_tried_again_and_what_is_not() -> None:
    assert all(
        issubclass(error, ApplyFailed)
        for error in (BadArtifact, EngineRefused, LoadBroken, ProbeFailed)
    )
    assert not issubclass(EngineUnreachable, ApplyFailed)
    assert issubclass(EngineUnreachable, ApplierError)


def adapter(folder: Path, header: bytes) -> Artifact:
    """A safetensors file without tensors' data."""
    path = folder / "adapter_model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return artifact(
        path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest(), ArtifactFormat.lora
    )


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"base_model.model.lm_head.lora_A.weight": {}}', "lm_head"),
        (b'{"base_model.model.model.embed_tokens.lora_embedding_A": {}}', "embed_tokens"),
        (b"no header", "not a safetensors file"),
    ],
)
def test_an_adapter_that_no_probe_could_prove_is_refused(
    tmp_path: Path, header: bytes, reason: str
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BadArtifact, match=reason):
        fetch_adapter(adapter(tmp_path, header))


def test_an_adapter_is_a_folder_in_pefts_layout(file: Path) -> None:
    announced = adapter(
        file.parent, b'{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {}}'
    )
    with pytest.raises(BadArtifact, match=r"adapter_config\.json"):
        fetch_adapter(announced)
    (file.parent / "adapter_config.json").write_text("{}")
    assert fetch_adapter(announced) == file.parent
    with pytest.raises(BadArtifact, match="full weights"):
        fetch_adapter(artifact(file.as_uri()))
    with pytest.raises(BadArtifact, match="damaged or replaced"):
        fetch_adapter(artifact(announced.uri, "0" * 64, ArtifactFormat.lora))


@pytest.mark.parametrize(
    "uri", ["//[", "file:///dev/zero", "file:///%00", "http://[::1", "file:///", ""]
)
def test_what_is_no_file_is_no_artifact_and_is_not_waited_for(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact):
        find(artifact(uri))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadArtifact, match="not a file"):
        find(artifact((tmp_path / "pipe").as_uri()))
