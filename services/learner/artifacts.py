"""Stores versions on disk as Hugging Face folders, `artifacts/<policy>/<epoch>.<step>/`.

Each has the weights, `model.safetensors`, all else that the base model's folder has (config,
tokenizer, chat template), and a manifest. It appears only when it is complete, and is never
changed. `services.learner.retention` removes old ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from fulgurite.enums import ArtifactFormat
from fulgurite.events import Artifact
from fulgurite.versions import Version
from services.learner.files import complete_folder, remove_parts, sha256

FILE = "model.safetensors"

_WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth"),
    *("*.gguf", "*.h5", "*.msgpack", "*.onnx"),
)
"""Files of the base model's folder that a version has in its own way."""


class ArtifactStore:
    """The weights of one policy, in a folder that the backends can read."""

    def __init__(self, data: Path, policy: str, base: Path, *, durable: bool = True) -> None:
        """`base`: the base model's folder."""
        self._base = base
        self.folder = data.resolve() / "artifacts" / policy
        self._durable = durable
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)

    def write(self, version: Version, export: Callable[[Path], None]) -> Artifact:
        """Have `export` write the safetensors file; return its URI, digest and size."""
        target = self.folder / f"{version.epoch}.{version.step}"
        with complete_folder(target, durable=self._durable) as part:
            self._copy_base(part)
            export(part / FILE)
            artifact = Artifact(
                uri=(target / FILE).as_uri(),
                sha256=sha256(part / FILE),
                size=(part / FILE).stat().st_size,
                format=ArtifactFormat.full,
            )
            (part / "manifest.json").write_bytes(
                msgspec.json.encode({"version": str(version), **msgspec.to_builtins(artifact)})
            )
        return artifact

    def _copy_base(self, part: Path) -> None:
        for file in self._base.iterdir():
            is_weights = any(file.match(pattern) for pattern in _WEIGHTS)
            if file.is_file() and not is_weights and not file.name.startswith("."):
                shutil.copyfile(file, part / file.name)
