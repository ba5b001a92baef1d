"""Loads weights from a file into a running vLLM: the weight-transfer backend `fulgurite`.

`/update_weights` takes `{"update_info": {"path": …, "sha256": …, "version": "policy@1.7"}}`: the
file is verified and read, and the model is not changed. `/finish_weight_update` loads it. So an
update that is refused or abandoned does not change the served weights. Refused are a wrong digest,
other tensors than the model's, an epoch lower than the served one (unless with `"rollback": true`),
and a second update before the first is finished.
"""

# vLLM lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportUntypedBaseClass=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from fulgurite.versions import Version, parse_version
from services.vllm_plugin.artifact import (
    ArtifactRefused,
    Shapes,
    check_shapes,
    local_path,
    shapes,
    verify,
)

logger = init_logger(__name__)


class UpdateRefused(RuntimeError):
    """The update contradicts what the engine serves or is doing; nothing was loaded."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Empty: no connection has to be set up."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """The weights' path (or URI), SHA-256 and version. `rollback`: allow an earlier epoch."""

    path: str
    sha256: str
    version: str
    rollback: bool = False


@dataclass(frozen=True)
class _Staged:
    version: Version
    tensors: dict[str, torch.Tensor]


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads weights in one vLLM worker. vLLM calls it in one thread, between the model's steps."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._served: Version | None = None
        self._staged: _Staged | None = None

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Do nothing: there is no connection."""

    def start_weight_update(self) -> None:
        """Drop what an abandoned update left. vLLM itself refuses a second update."""
        self._staged = None

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Verify and read the file. Raises ArtifactRefused, UpdateRefused, MalformedVersion."""
        if self._staged is not None:
            raise UpdateRefused(
                f"the update to {self._staged.version} is not finished; {update_info.version} "
                "must wait for it"
            )
        version = parse_version(update_info.version)
        if (
            self._served is not None
            and version.epoch < self._served.epoch
            and not update_info.rollback
        ):
            raise UpdateRefused(
                f"{version} is of an earlier epoch than the served {self._served}: another learner "
                "has replaced its learner"
            )
        path = local_path(update_info.path)
        verify(path, update_info.sha256)
        check_shapes(shapes(path), self._own_shapes())
        self._staged = _Staged(version, load_file(path))

    @torch.no_grad()
    def finish_weight_update(self) -> None:
        """Load the received file. Raises UpdateRefused if there is none."""
        staged = self._staged
        if staged is None:
            raise UpdateRefused("nothing to finish: /update_weights has received no file")
        self._staged = None
        initialize_layerwise_reload(self.model)
        self.model.load_weights(iter(staged.tensors.items()))
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()
        self._served = staged.version
        logger.info("weights: %s is loaded", staged.version)

    def shutdown(self) -> None:
        """Drop a received file."""
        self._staged = None

    def _own_shapes(self) -> Shapes:
        """The tensors' shapes in the checkpoint that vLLM was started with."""
        files = sorted(Path(self.model_config.model).glob("*.safetensors"))
        if not files:
            raise ArtifactRefused(
                f"{self.model_config.model} has no local safetensors: start vLLM with such a folder"
            )
        return {name: shape for file in files for name, shape in shapes(file).items()}

    def _repack_tied_head(self) -> None:
        """Pack the head of a model with tied embeddings again.

        On CPU, vLLM multiplies by a packed copy of each weight. A tied head has a copy, but no
        tensor in the file, so reloading does not pack it: it would still predict with the old
        embedding.
        """
        if not self.model_config.hf_config.tie_word_embeddings:
            return
        embedding = (
            self.model.get_input_embeddings()
            if hasattr(self.model, "get_input_embeddings")
            else self.model.model.embed_tokens
        )
        for head in self.model.modules():
            if isinstance(head, ParallelLMHead):
                head.tie_weights(embedding)
                head.quant_method.process_weights_after_loading(head)
