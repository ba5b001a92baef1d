"""Stores versions on disk, `artifacts/<policy>/<epoch>.<step>/`.

A version with all weights is a Hugging Face folder: `model.safetensors` and all else that the base
model's folder has (config, tokenizer, chat template). Several workers write a file each, and
Hugging Face's index, which has the files' digests too. A LoRA adapter is a PEFT folder:
`adapter_model.safetensors` and `adapter_config.json`. Both have a manifest. A folder appears only
when it is complete, and is never changed. `services.learner.retention`
removes old ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from fulgurite.enums import ArtifactFormat
from fulgurite.events import Artifact
from fulgurite.versions import Version
from services.common.runtime import weights_index
from services.learner.files import complete_folder, remove_parts, sha256

FILES = {
    ArtifactFormat.full: "model.safetensors",
    ArtifactFormat.lora: "adapter_model.safetensors",
}
"""The weights' file by format."""

_WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth"),
    *("*.gguf", "*.h5", "*.msgpack", "*.onnx"),
)
"""Files of the base model's folder that a version has in its own way."""


class ArtifactStore:
    """The weights of one policy, in a folder that the backends can read."""

    def __init__(
        self,
        data: Path,
        policy: str,
        base: Path,
        *,
        kind: ArtifactFormat = ArtifactFormat.full,
        durable: bool = True,
    ) -> None:
        """`base`: the base model's folder. `kind`: whether they are whole models or adapters."""
        self._kind = kind
        self._base = base
        self.folder = data.resolve() / "artifacts" / policy
        self._durable = durable
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_parts(self.folder)

    def write(self, version: Version, export: Callable[[Path], None]) -> Artifact:
        """Have `export` write the safetensors file; return its URI, digest and size.

        `export` may write other files beside it, or shards and their index instead: then URI and
        digest are those of the index, and the size is that of all files.
        """
        file = FILES[self._kind]
        target = self.folder / f"{version.epoch}.{version.step}"
        with complete_folder(target, durable=self._durable) as part:
            if self._kind is ArtifactFormat.full:
                self._copy_base(part)
            export(part / file)
            if (part / weights_index.NAME).is_file():
                file = weights_index.NAME
            artifact = Artifact(
                uri=(target / file).as_uri(),
                sha256=sha256(part / file),
                size=sum(weights.stat().st_size for weights in part.glob("*.safetensors")),
                format=self._kind,
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
