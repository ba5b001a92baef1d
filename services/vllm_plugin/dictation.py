"""A logits processor that leaves a request the tokens that it names, one after the other:
`--logits-processors services.vllm_plugin.dictation:Dictation`.

The gateway names them in `vllm_xargs` (`services.gateway.upstream.dictation`). After them, and for
all other requests, the model is left alone.
"""

# vLLM lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

TOKENS = "dictated_token_ids"


class Dictation(AdapterLogitsProcessor):
    """One per engine."""

    def is_argmax_invariant(self) -> bool:
        """No: greedy sampling has to take the named tokens, too."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """The processor of a request; None for one that names no tokens."""
        tokens: list[int] = (params.extra_args or {}).get(TOKENS) or []
        if not tokens:
            return None

        def only_the_next(said: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(said) < len(tokens):
                token = int(tokens[len(said)])
                kept = logits[token].clone()
                logits.fill_(float("-inf"))
                logits[token] = kept
            return logits

        return only_the_next
