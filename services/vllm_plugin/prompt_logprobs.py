"""Works around a crash of vLLM's CPU engine on a prompt's log-probabilities with LoRA (vLLM 0.32).

Probes ask for these. `PunicaWrapperCPU.add_lora_logits` assumes that its rows are those that the
step samples from. For a prompt's log-probabilities they are the rows of one prompt, and in a step
with several requests the shapes do not match. Adapters without `lm_head`, which the applier
requires, have nothing to add to these rows.
"""

from __future__ import annotations

from typing import Any


def patch(wrapper: Any) -> None:
    """Make the class skip rows that are not sampled from. Idempotent."""
    add_lora_logits = wrapper.add_lora_logits
    if getattr(add_lora_logits, "patched", False):
        return

    def of_samples_only(self: Any, y: Any, x: Any, *args: Any, **kwargs: Any) -> None:
        if x.numel() // x.shape[-1] == self.sampler_indices.shape[0]:
            add_lora_logits(self, y, x, *args, **kwargs)

    of_samples_only.patched = True  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.add_lora_logits = of_samples_only
