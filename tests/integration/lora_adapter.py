"""A random LoRA adapter in PEFT's layout, and what Hugging Face computes with it."""

# transformers and safetensors are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fulgurite.enums import ArtifactFormat
from fulgurite.events import Artifact
from services.applier.engine import Engine
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm

PROBE_IDS = list(range(40, 72))
RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")


class Adapter:
    """A random adapter in PEFT's layout, and what Hugging Face computes with W + BA·alpha/r."""

    def __init__(self, folder: Path, seed: int, model: Path | None = None) -> None:
        """`model`: below it, instead of the tiny one."""
        folder.mkdir(parents=True)
        self.path = folder / "adapter_model.safetensors"
        torch.manual_seed(seed)
        self.model = AutoModelForCausalLM.from_pretrained(
            model or tiny_model(), dtype=torch.float32
        )
        tensors: dict[str, Any] = {}
        modules: Any = self.model.named_modules()
        for name, module in modules:
            if name.rpartition(".")[2] in TARGETS:
                a, b = (
                    torch.randn(RANK, module.in_features) * 0.2,
                    torch.randn(module.out_features, RANK) * 0.2,
                )
                (
                    tensors[f"base_model.model.{name}.lora_A.weight"],
                    tensors[f"base_model.model.{name}.lora_B.weight"],
                ) = a, b
                module.weight.data += b @ a * (ALPHA / RANK)
        save_file(tensors, self.path)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": ALPHA,
            "target_modules": list(TARGETS),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))

    def artifact(self) -> Artifact:
        sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return Artifact(
            uri=self.path.as_uri(),
            sha256=sha256,
            size=self.path.stat().st_size,
            format=ArtifactFormat.lora,
        )

    def logprobs(self, ids: list[int] = PROBE_IDS) -> list[float]:
        """Of each id but the first."""
        return hugging_face_logprobs(self.model, ids)


def hugging_face_logprobs(model: Any, ids: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]].tolist()


async def emptied(vllm: LocalVllm) -> None:
    """Let the engine go of all its adapters: names are immutable, and the next test's are others."""
    async with Engine(vllm.base_url) as engine:
        for name in await engine.adapters():
            await engine.unload_adapter(name)
