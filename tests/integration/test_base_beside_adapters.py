"""The base model answers as itself, also in one step with tokens of all adapters that vLLM holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from services.applier.engine import Engine
from services.local_stack.vllm_local import LocalVllm
from tests.integration.lora_adapter import PROBE_IDS, Adapter, emptied

pytestmark = pytest.mark.engine

SLOTS = 2
"""`--max-loras` of the engine."""
TOKENS = 60


async def test_the_base_model_is_itself_beside_as_many_adapters_as_there_are_slots(
    vllm_tiny: LocalVllm, tmp_path: Path
) -> None:
    names = [f"full@9.{seed}" for seed in range(SLOTS)]
    await emptied(vllm_tiny)
    async with (
        Engine(vllm_tiny.base_url) as engine,
        AsyncOpenAI(base_url=f"{vllm_tiny.base_url}/v1", api_key="none") as client,
    ):

        async def logprobs(model: str) -> list[float]:
            answer = await client.completions.create(
                model=model,
                prompt=PROBE_IDS,
                max_tokens=TOKENS,
                temperature=0,
                logprobs=0,
                extra_body={"ignore_eos": True},
            )
            given = answer.choices[0].logprobs
            assert given is not None
            return given.token_logprobs or []

        alone = await logprobs("policy")
        for seed, name in enumerate(names):
            await engine.load_adapter(name, str(Adapter(tmp_path / name, seed).path.parent))
        together = await asyncio.gather(*(logprobs(name) for name in ["policy", *names] * 3))
    await emptied(vllm_tiny)
    assert len(alone) == TOKENS
    for beside in together[:: SLOTS + 1]:
        assert beside == pytest.approx(alone, abs=0.02)
    for adapted in together[1 : SLOTS + 1]:
        assert adapted != pytest.approx(alone, abs=0.02)
