"""The files that updates announce: found, and proved to be the announced ones before an engine is
touched.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlparse

import msgspec

from fulgurite.enums import ArtifactFormat
from fulgurite.events import Artifact
from services.applier.errors import BadArtifact

ADAPTER_CONFIG = "adapter_config.json"

_ENDS = ("lm_head", "embed_tokens")
"""Where vLLM has kernels of their own for adapters, which know nothing of a prompt's
log-probabilities: no probe could prove them.
"""


class WeightsFile(msgspec.Struct, frozen=True):
    """A file whose digest is known to be right."""

    path: Path
    sha256: str


def fetch(artifact: Artifact) -> WeightsFile:
    """Check an artifact's bytes; blocks for as long as reading it takes (0.2 s for 270 MB). Raises
    BadArtifact.
    """
    return _check(artifact, ArtifactFormat.full)


def fetch_adapter(artifact: Artifact) -> Path:
    """Check an adapter's bytes; the folder that holds it, in PEFT's layout
    (`adapter_model.safetensors`, `adapter_config.json`). Raises BadArtifact. The configuration has
    no digest of its own: a wrong rank is refused by vLLM, a wrong scale by the probe.
    """
    path = _check(artifact, ArtifactFormat.lora).path
    if not (path.parent / ADAPTER_CONFIG).is_file():
        raise BadArtifact(
            f"{path.parent} has no {ADAPTER_CONFIG}: an adapter is a folder in PEFT's layout"
        )
    ends = [name for name in _tensors(path) if any(end in name for end in _ENDS)]
    if ends:
        raise BadArtifact(
            f"{path} adapts {ends[0]}: adapters of the embedding or of `lm_head` are not "
            "served; train others"
        )
    return path.parent


def _tensors(path: Path) -> list[str]:
    """The names in a safetensors file: it begins with the length of a JSON object, and that."""
    try:
        with path.open("rb") as file:
            return sorted(
                msgspec.json.decode(
                    file.read(int.from_bytes(file.read(8), "little")), type=dict[str, msgspec.Raw]
                )
            )
    except (OSError, OverflowError, msgspec.DecodeError) as error:
        raise BadArtifact(f"{path} is no safetensors file: {error}") from error


def _check(artifact: Artifact, wanted: ArtifactFormat) -> WeightsFile:
    try:
        location = urlparse(artifact.uri)
    except ValueError as error:
        raise BadArtifact(f"{artifact.uri[:500]!r} is no address: {error}") from error
    if location.scheme not in ("", "file"):
        raise BadArtifact(
            f"{artifact.uri}: only file:// artifacts can be served, from a folder that learner "
            "and engine share"
        )
    if artifact.format is not wanted:
        raise BadArtifact(
            f"{artifact.uri} holds {artifact.format.value} weights, and this policy is served with "
            f"{wanted.value} ones (FULGURITE_LORA_POLICIES)"
        )
    path = Path(unquote(location.path))
    found = _digest(path)
    if found != artifact.sha256:
        raise BadArtifact(
            f"{path} has SHA-256 {found}, the update announces {artifact.sha256}: it was "
            "damaged or replaced after it was published"
        )
    return WeightsFile(path, found)


def base_weights(folder: Path | None) -> WeightsFile:
    """The base model's own file, for going back to it. Raises BadArtifact when it is not known or
    not a single file.
    """
    if folder is None:
        raise BadArtifact(
            "the base model's folder is not known (FULGURITE_MODEL), so only a restart of the "
            "engine brings it back"
        )
    path = folder / "model.safetensors"
    return WeightsFile(path, _digest(path))


def _digest(path: Path) -> str:
    try:
        # A pipe or a device would be read for ever.
        if not path.is_file():
            raise BadArtifact(f"{path} cannot be read: it is no file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise BadArtifact(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
