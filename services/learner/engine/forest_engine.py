"""Extends verl's FSDP engine to compute a micro-batch as a prefix forest.

The log-probabilities and gradients are the same, but each shared prefix is computed once. Only the
model's inputs and outputs are replaced; losses, optimizer, sharding and checkpoints are verl's, and
`TrainingWorker` finds this engine in verl's registry. A micro-batch holds nested (row, T) tensors:
`input_ids`, and in verl's layout, where index t stands for token t+1, `loss_mask` (bool: that token
is trained) and `token_temperature`. The attention is FlexAttention over lists of blocks, or SDPA
with a dense mask. With the non-tensor entry `share_prefixes=False` verl computes row by row, with
`temperature` (row,).
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from verl.utils import tensordict_utils as tu
from verl.utils.model import get_hf_auto_model_class
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from fulgurite.trajectories import forest
from services.learner.engine.attention import block_masks_of, masks_of, padded_length, windows_of
from services.learner.errors import StepNotFinite

_HEADS_AT_ONCE = 1024
"""At a vocabulary of 150,000 an fp32 copy of so many is 0.6 GB."""


@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])
@EngineRegistry.register(
    model_type="language_model", backend=["fsdp2"], device=["cuda"], vendor=["nvidia", "amd"]
)
class ForestEngine(FSDPEngineWithLMHead):
    """FSDP2 over prefix forests. Its output has log-probability 0 for untrained tokens."""

    @cached_property
    def _windows(self) -> Mapping[str, int | None]:
        return windows_of(self.model_config.hf_config)

    @cached_property
    def _by_flex(self) -> bool:
        return self.model_config.override_config["attn_implementation"] == "flex_attention"

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the forward and backward pass."""
        return PrecisionType.to_dtype(self.engine_config.mixed_precision["param_dtype"])

    def _build_module(self) -> Any:
        """Load the model.

        verl casts buffers with the parameters; but rotary frequencies in bf16 would turn late
        positions by wrong angles. Those that no file has are made again, in fp32.
        """
        module = super()._build_module()
        if module.dtype is torch.float32:
            return module
        with init_empty_weights(include_buffers=False):
            kind: Any = get_hf_auto_model_class(module.config)
            fresh = kind.from_config(module.config, dtype=torch.float32)
        saved = module.state_dict().keys()
        for name, buffer in fresh.named_buffers():
            if name not in saved:
                owner, _, own_name = name.rpartition(".")
                setattr(module.get_submodule(owner), own_name, buffer)
        return module

    def _build_lora_module(self, module: Any) -> Any:
        """Add the adapter, in fp32.

        verl casts it to the type of the base, and AdamW would lose small steps in bf16.
        """
        module = super()._build_lora_module(module)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return module

    @contextmanager
    def disable_adapter(self) -> Generator[None]:
        """Compute without the adapter.

        PEFT's own way also switches `requires_grad` off and on again. FSDP exchanges the parameters
        in between, so that some would stay off and not be trained any more.
        """
        layers = [one for one in self.module.modules() if isinstance(one, BaseTunerLayer)]
        for layer in layers:
            layer._disable_adapters = True  # pyright: ignore[reportPrivateUsage]
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False  # pyright: ignore[reportPrivateUsage]

    def optimizer_step(self) -> float:
        """Make the step and return the gradient's norm.

        Raises StepNotFinite where verl would skip the step with a warning.
        """
        norm = float(super().optimizer_step())
        if not math.isfinite(norm):
            raise StepNotFinite(f"the gradient's norm is {norm}; no weight was changed")
        return norm

    def train_batch(self, data: Any, loss_function: Any) -> Any:
        """Make the step of a batch, if it may be made.

        What the loss returns beside itself is added up over micro-batches and processes. A
        `loss_function.judge` sees these sums before the optimizer makes the step, and may raise;
        every process sees the same. After an exception no gradient is left for the next step.
        """
        judge: Callable[[Mapping[str, float]], None] | None = getattr(loss_function, "judge", None)
        with ExitStack() as on_failure:
            on_failure.callback(self._drop_unsharded_gradients)
            self.optimizer_zero_grad()
            result = self.forward_backward_batch(data, loss_function)
            sums = self._sums_of_all_processes(result["metrics"])
            if judge is not None:
                judge(sums)
            result["metrics"] = {"sums": sums, "grad_norm": self.optimizer_step()}
            on_failure.pop_all()
        return result

    def _sums_of_all_processes(self, parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Add up what each micro-batch of each process has by name; all have the same names."""
        names = sorted(parts)
        values = torch.tensor([sum(parts[name]) for name in names], dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def _drop_unsharded_gradients(self) -> None:
        """Drop what micro-batches before the last have accumulated.

        FSDP2 keeps it apart from the parameters' gradients until the last micro-batch, and
        `zero_grad` does not reach it; there is no public way to.
        """
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                for group in module._get_fsdp_state()._fsdp_param_groups:  # pyright: ignore[reportPrivateUsage]
                    for parameter in group.fsdp_params:
                        parameter.unsharded_accumulated_grad = None
                        if hasattr(parameter, "_unsharded_param"):
                            parameter._unsharded_param.grad = None  # pyright: ignore[reportPrivateUsage]

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if not tu.get_non_tensor_data(micro_batch, "share_prefixes", True):
            return super().prepare_model_inputs(micro_batch)
        input_ids = micro_batch["input_ids"]
        device = input_ids.device
        trained = micro_batch["loss_mask"].values().cpu().numpy().astype(bool)
        tokens = input_ids.values().cpu().numpy()
        bounds = input_ids.offsets().cpu().numpy()[1:-1]
        # loss_mask[t] stands for token t+1; in the forest's masks index t stands for token t.
        masks = [np.concatenate([[False], row[:-1]]) for row in np.split(trained, bounds)]
        trie = forest.build(np.split(tokens, bounds), masks)
        if self._by_flex:
            trie = trie.padded(padded_length(len(trie)))
            masks = block_masks_of(trie, self._windows, device)
        else:
            masks = masks_of(trie, self._windows, self.compute_dtype, device)
        positions_P = np.flatnonzero(trained)
        kept_P = np.searchsorted(trie.needed_K, np.concatenate(trie.nodes)[positions_P])
        temperature_P = micro_batch["token_temperature"].values().cpu().numpy()[positions_P]
        heads, head_P = np.unique(
            np.stack([kept_P, temperature_P], axis=1), axis=0, return_inverse=True
        )
        put = torch.as_tensor
        inputs = {
            "input_ids": put(trie.tokens_N, device=device)[None],
            "position_ids": put(trie.depth_N, device=device)[None],
            "attention_mask": masks,
            "logits_to_keep": put(trie.needed_K, device=device),
        }
        outputs = {
            "positions_P": put(positions_P, device=device),
            "labels_P": put(tokens[positions_P + 1], device=device),
            "head_P": put(head_P.reshape(-1), device=device),
            "kept_H": put(heads[:, 0].astype(np.int64), device=device),
            "temperature_H": put(heads[:, 1].astype(np.float32), device=device),
        }
        return inputs, outputs

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Any]:
        if "kept_H" not in output_args:
            return super().prepare_model_outputs(
                output, output_args, micro_batch, logits_processor_func
            )
        # A head is a node's logits at one temperature. Rows that share a node may have different
        # temperatures.
        kept_H, temperature_H = output_args["kept_H"], output_args["temperature_H"]
        head_P, labels_P = output_args["head_P"], output_args["labels_P"]
        entropy_of = (
            self.compute_entropy_from_logits
            if tu.get_non_tensor_data(micro_batch, "calculate_entropy", False)
            else None
        )
        with torch.autocast(output.logits.device.type, enabled=False):
            logits_HV = output.logits[0]
            if len(kept_H) != len(logits_HV):
                logits_HV = logits_HV[kept_H]
            sums_H, entropy_H = _summaries(logits_HV, temperature_H, entropy_of)
            chosen_P = logits_HV[head_P, labels_P].float() / temperature_H[head_P]
            result = {"log_probs": _nested(chosen_P - sums_H[head_P], output_args, micro_batch)}
            if entropy_of is not None:
                result["entropy"] = _nested(entropy_H[head_P], output_args, micro_batch)
        return result


def _summaries(
    logits_HV: torch.Tensor,
    temperature_H: torch.Tensor,
    entropy_of: Callable[[torch.Tensor], torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log of the sum of exponentials of each head (H,), and its entropy (H,), 0 without
    `entropy_of`; in fp32.

    Of many heads a part is computed at a time, and again in the backward pass: fp32 copies of all
    logits would take more memory than the model.
    """

    def summarise(part: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        scaled = part.float() / temperature[:, None]
        sums = torch.logsumexp(scaled, dim=-1)
        return torch.stack(
            [sums, torch.zeros_like(sums) if entropy_of is None else entropy_of(scaled)]
        )

    if len(logits_HV) <= _HEADS_AT_ONCE:
        summaries = summarise(logits_HV, temperature_H)
    else:
        parts = zip(
            logits_HV.split(_HEADS_AT_ONCE), temperature_H.split(_HEADS_AT_ONCE), strict=True
        )
        summaries = torch.cat(
            [checkpoint(summarise, *part, use_reentrant=False) for part in parts], dim=-1
        )
    return summaries[0], summaries[1]


def _nested(values_P: torch.Tensor, output_args: dict[str, Any], micro_batch: Any) -> torch.Tensor:
    """Values of the trained tokens in the nested layout of the rows."""
    rows = micro_batch["input_ids"]
    flat = torch.zeros(rows.values().shape[0], dtype=values_P.dtype, device=values_P.device)
    return torch.nested.nested_tensor_from_jagged(
        flat.index_put((output_args["positions_P"],), values_P), rows.offsets()
    )
