"""Loads weights from files into a running vLLM: the weight-transfer backend `fulgurite`.

`/init_weight_transfer_engine` takes `{"init_info": {"path": …}}` and reads that file, or the shards
of that folder, into memory, in a thread, while the engine generates. `/update_weights` takes
`{"update_info": {"path": …, "version": "policy@1.7"}}` and opens them; the model is not changed.
`/finish_weight_update` loads them, and only that needs a pause. So an update that is refused or
abandoned does not change the served weights. Refused are other tensors than the model's, an epoch
lower than the served one (unless with `"rollback": true`), a second update before the first is
finished, and another digest than `sha256`, where one is given. The applier gives none: it has
verified the file itself.
"""

# vLLM lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportUntypedBaseClass=false

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
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
    read_ahead,
    shapes,
    verify,
    weights_files,
)

logger = init_logger(__name__)


class UpdateRefused(RuntimeError):
    """The update contradicts what the engine serves or is doing; nothing was loaded."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """`path`: weights to read into memory; without it nothing is done."""

    path: str | None = None


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """The weights' path (or URI) and version. `rollback`: allow an earlier epoch. `sha256`: refuse
    a file with another digest; None if whoever asks has verified it.
    """

    path: str
    version: str
    sha256: str | None = None
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
        self._reader = ThreadPoolExecutor(1, "fulgurite-weights")
        self._reading: Future[None] | None = None

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Begin to read the weights, and do not wait. Raises ArtifactRefused."""
        if init_info.path is not None:
            files = weights_files(local_path(init_info.path))
            self._reading = self._reader.submit(read_ahead, files)

    def start_weight_update(self) -> None:
        """Drop what an abandoned update left. vLLM itself refuses a second update."""
        self._staged = None

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Check and open the weights. Raises ArtifactRefused, UpdateRefused, MalformedVersion."""
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
        files = weights_files(local_path(update_info.path))
        if update_info.sha256 is not None:
            verify(files[0], update_info.sha256)
        self._wait_for_reader()
        check_shapes(_shapes(files), self._own_shapes())
        # Mapped, not copied: the workers of one machine share the memory.
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        self._staged = _Staged(version, tensors)

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
        """Drop what was received."""
        self._staged = None

    def _wait_for_reader(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            try:
                reading.result()
            except OSError as error:
                raise ArtifactRefused(f"the weights cannot be read: {error}") from error

    def _own_shapes(self) -> Shapes:
        """The tensors' shapes in the checkpoint that vLLM was started with."""
        files = sorted(Path(self.model_config.model).glob("*.safetensors"))
        if not files:
            raise ArtifactRefused(
                f"{self.model_config.model} has no local safetensors: start vLLM with such a folder"
            )
        return _shapes(files)

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


def _shapes(files: list[Path]) -> Shapes:
    return {name: shape for file in files for name, shape in shapes(file).items()}
