"""Finds the weights that updates announce, and checks their digests before an engine loads them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlparse

import msgspec

from fulgurite.enums import ArtifactFormat
from fulgurite.events import Artifact
from services.applier.errors import BadArtifact
from services.common.runtime import weights_index

ADAPTER_CONFIG = "adapter_config.json"

_ENDS = ("lm_head", "embed_tokens")
"""Layers for which vLLM has separate adapter kernels. These do not affect a prompt's
log-probabilities, so a probe cannot check them.
"""


class WeightsFile(msgspec.Struct, frozen=True):
    """A file that an update announces."""

    path: Path
    """Of weights in several files, that of their index."""
    sha256: str

    @property
    def engine_path(self) -> Path:
        """What an engine is told to load: a file, or a folder of shards."""
        return self.path.parent if self.path.name == weights_index.NAME else self.path


def find(artifact: Artifact, wanted: ArtifactFormat = ArtifactFormat.full) -> WeightsFile:
    """Find an artifact's file. Raises BadArtifact."""
    try:
        location = urlparse(artifact.uri)
    except ValueError as error:
        raise BadArtifact(f"{artifact.uri[:500]!r} is not a valid URI: {error}") from error
    if location.scheme not in ("", "file"):
        raise BadArtifact(
            f"{artifact.uri}: only file:// URIs can be served. Use a folder that learner and "
            "engine share."
        )
    if artifact.format is not wanted:
        raise BadArtifact(
            f"{artifact.uri} holds {artifact.format.value} weights, and this policy is served with "
            f"{wanted.value} ones (FULGURITE_LORA_POLICIES)"
        )
    path = Path(unquote(location.path))
    try:
        # Reading a pipe or a device would never end.
        is_file = path.is_file()
    except ValueError as error:
        raise BadArtifact(f"{str(path)!r} cannot be read: {error}") from error
    if not is_file:
        raise BadArtifact(f"{path} cannot be read: it does not exist or is not a file")
    return WeightsFile(path, artifact.sha256)


def check(weights: WeightsFile) -> None:
    """Check a file's digest, and those of the shards of an index; nobody else does. Raises
    BadArtifact.

    Blocks while the files are read (0.2 s for 270 MB).
    """
    _check_digest(weights.path, weights.sha256)
    if weights.engine_path == weights.path:
        return
    try:
        shards = weights_index.digests(weights.path)
    except (OSError, weights_index.IndexUnreadable) as error:
        raise BadArtifact(str(error)) from error
    surplus = {*weights.path.parent.glob("*.safetensors")} - shards.keys()
    if surplus:
        raise BadArtifact(f"{min(surplus)} is not in {weights.path}, and an engine would load it")
    for path, digest in shards.items():
        _check_digest(path, digest)


def _check_digest(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadArtifact(f"{path} cannot be read: {error.strerror or error}") from error
    if found != sha256:
        raise BadArtifact(
            f"{path} has SHA-256 {found}, but the update announces {sha256}: the file was "
            "damaged or replaced after it was published"
        )


def fetch_adapter(artifact: Artifact) -> Path:
    """Find an adapter, check its digest, and return its folder. Raises BadArtifact.

    The folder is in PEFT's layout (`adapter_model.safetensors`, `adapter_config.json`). The
    configuration has no digest: vLLM refuses a wrong rank, the probe a wrong scale.
    """
    weights = find(artifact, ArtifactFormat.lora)
    check(weights)
    path = weights.path
    if not (path.parent / ADAPTER_CONFIG).is_file():
        raise BadArtifact(
            f"{path.parent} has no {ADAPTER_CONFIG}: an adapter must be a folder in PEFT's layout"
        )
    ends = [name for name in _tensors(path) if any(end in name for end in _ENDS)]
    if ends:
        raise BadArtifact(
            f"{path} adapts {ends[0]}: adapters of the embedding or of `lm_head` cannot be "
            "served. Train an adapter of other layers."
        )
    return path.parent


def _tensors(path: Path) -> list[str]:
    """Read the names of the tensors from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            return sorted(
                msgspec.json.decode(
                    file.read(int.from_bytes(file.read(8), "little")), type=dict[str, msgspec.Raw]
                )
            )
    except (OSError, OverflowError, msgspec.DecodeError) as error:
        raise BadArtifact(f"{path} is not a safetensors file: {error}") from error


def base_weights(folder: Path | None) -> Path:
    """Find the base model's weights, one file or a folder of shards. Raises BadArtifact."""
    if folder is None:
        raise BadArtifact(
            "the base model's folder is not known, so the engine cannot go back to it: set "
            "FULGURITE_MODEL, or restart the engine"
        )
    whole = folder / "model.safetensors"
    if whole.is_file():
        return whole
    if not any(folder.glob("*.safetensors")):
        raise BadArtifact(
            f"{folder} (FULGURITE_MODEL) has no safetensors, so the engine cannot go back to the "
            "base model: name its folder, or restart the engine"
        )
    return folder
