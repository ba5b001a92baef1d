"""Weights from a file, into a running vLLM: the weight-transfer backend `fulgurite`.

`/update_weights` takes `{"update_info": {"path": …, "sha256": …, "version": "policy@1.7"}}`: the
file is verified and read, the model is untouched. `/finish_weight_update` loads it. So an update
that is refused, or abandoned half-way, leaves the served weights alone. Refused: a wrong digest,
other tensors than the model's, an epoch lower than the one served (unless `"rollback": true` says
that it is meant), a second update before the first is finished.
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
    """Nothing to agree on: the file says it all."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Where the weights are (path or file:// URI), their SHA-256 and their version. `rollback`: an
    earlier epoch is meant.
    """

    path: str
    sha256: str
    version: str
    rollback: bool = False


@dataclass(frozen=True)
class _Staged:
    version: Version
    tensors: dict[str, torch.Tensor]


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """One per vLLM worker. vLLM calls it from one thread, between two steps of the model."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._served: Version | None = None
        self._staged: _Staged | None = None

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Forget what an update that broke off has left; vLLM itself refuses to start a
        second one.
        """
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
                f"{version} is of an earlier epoch than {self._served}, which is served: its "
                "learner has been superseded"
            )
        path = local_path(update_info.path)
        verify(path, update_info.sha256)
        check_shapes(shapes(path), self._own_shapes())
        self._staged = _Staged(version, load_file(path))

    @torch.no_grad()
    def finish_weight_update(self) -> None:
        """Load what was received. Raises UpdateRefused when nothing was."""
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
        """Drop what was received."""
        self._staged = None

    def _own_shapes(self) -> Shapes:
        """Of the checkpoint that vLLM was started with."""
        files = sorted(Path(self.model_config.model).glob("*.safetensors"))
        if not files:
            raise ArtifactRefused(
                f"{self.model_config.model} is no local folder of safetensors to compare with"
            )
        return {name: shape for file in files for name, shape in shapes(file).items()}

    def _repack_tied_head(self) -> None:
        """On CPU vLLM multiplies by a packed copy of each weight. The head of a model with tied
        embeddings has a copy of its own, but no tensor in the file, so that reloading never packs
        it anew: it would go on predicting with the old embedding.
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
