"""Keeps vLLM's CPU engine alive when a prompt's log-probabilities, which probes are, are asked for
while LoRA is on.

`PunicaWrapperCPU.add_lora_logits` (vLLM 0.32) takes the rows it is given for those that a step
samples from. For a prompt's log-probabilities they are the rows of one prompt, and as soon as a
step has several requests the engine dies of the shapes. Adapters that leave `lm_head` alone, which
the applier sees to, have nothing to add to these rows.
"""

from __future__ import annotations

from typing import Any


def mend(wrapper: Any) -> None:
    """Have the class pass over rows that no sample comes from. Idempotent."""
    add_lora_logits = wrapper.add_lora_logits
    if getattr(add_lora_logits, "mended", False):
        return

    def of_samples_only(self: Any, y: Any, x: Any, *args: Any, **kwargs: Any) -> None:
        if x.numel() // x.shape[-1] == self.sampler_indices.shape[0]:
            add_lora_logits(self, y, x, *args, **kwargs)

    of_samples_only.mended = True  # pyright: ignore[reportFunctionMemberAccess]
    wrapper.add_lora_logits = of_samples_only
