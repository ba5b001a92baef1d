"""A logits processor for vLLM that makes the model say what a test wrote down: its words are given,
all else is as always.

A small model cannot plan or call tools. With its words dictated the agent's whole loop runs all the
same: the prompt is rendered and computed, tokens are streamed, tool calls parsed. Loaded with
`--logits-processors tests.agents.dictation:Dictation`; the file named by FULGURITE_TEST_DICTATION
holds a JSON list of `{"to": ..., "says": [...]}`. The first entry whose `to` is in the prompt
speaks; which of its turns is told by the number of assistant's turns in the prompt. An empty list
leaves the model alone.
"""

# vLLM lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportUntypedBaseClass=false

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

VARIABLE = "FULGURITE_TEST_DICTATION"
_TURN = "<|im_start|>assistant\n"


class Dictation(AdapterLogitsProcessor):
    """One per engine."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)

    def is_argmax_invariant(self) -> bool:
        """No: greedy sampling says the dictated words too."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], list[int], torch.Tensor], torch.Tensor] | None:
        """What is written down when a request arrives holds for that request."""
        script: list[dict[str, Any]] = json.loads(Path(os.environ[VARIABLE]).read_text())
        if not script:
            return None
        words: list[int] | None = None

        def speak(prompt_ids: list[int], said: list[int], logits: torch.Tensor) -> torch.Tensor:
            nonlocal words
            if words is None:
                words = self._words(script, self._tokenizer.decode(prompt_ids))
            return _only(logits, words[min(len(said), len(words) - 1)])

        return speak

    def _words(self, script: list[dict[str, Any]], prompt: str) -> list[int]:
        turn = prompt.count(_TURN) - 1
        says = next(
            (entry["says"] for entry in script if entry["to"] in prompt),
            ["I was told to say nothing to this."],
        )
        text: str = says[min(turn, len(says) - 1)]
        return [
            *self._tokenizer.encode(text, add_special_tokens=False),
            self._tokenizer.eos_token_id,
        ]


def _only(logits: torch.Tensor, token: int) -> torch.Tensor:
    kept = logits[token].clone()
    logits.fill_(float("-inf"))
    logits[token] = kept
    return logits
