"""Extends vLLM: weights from a file, the version in each reply, tool calls for small models.

`register` is the plug-in's entry point (`vllm.general_plugins`), called in every vLLM process,
possibly twice. It names classes, which vLLM imports if an option selects them:
`--weight-transfer-config
'{"backend": "fulgurite"}'` and `--tool-call-parser fulgurite`. It also makes log-probabilities
cheap (`logprobs`), and mends what vLLM lacks on a CPU.
"""

# vLLM lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from services.vllm_plugin import logprobs

NAME = "fulgurite"
"""Of the weight-transfer backend and of the tool parser."""


def register() -> None:
    """Make the plug-in's classes known to vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.platforms import current_platform
    from vllm.tool_parsers.abstract_tool_parser import ToolParserManager

    if NAME not in WeightTransferEngineFactory._registry:  # pyright: ignore[reportPrivateUsage]
        WeightTransferEngineFactory.register_engine(
            NAME, "services.vllm_plugin.weights", "FileWeightTransferEngine"
        )
    ToolParserManager.register_lazy_module(
        NAME, "services.vllm_plugin.tool_parser", "CallToolParser"
    )
    if logprobs.is_on():
        from vllm.v1.engine.logprobs import LogprobsProcessor
        from vllm.v1.outputs import LogprobsLists, LogprobsTensors

        logprobs.patch(LogprobsLists, LogprobsTensors, LogprobsProcessor)
    if current_platform.is_cpu():
        import torch

        # A process must ask Linux for AMX before it uses it. oneDNN does so for large matrices;
        # vLLM 0.32's attention does not, and an engine whose first prompt is short dies (SIGILL).
        torch.cpu._init_amx()  # pyright: ignore[reportPrivateUsage]

        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

        from services.vllm_plugin import cpu_lora, prompt_logprobs

        prompt_logprobs.patch(PunicaWrapperCPU)
        cpu_lora.patch(PunicaWrapperCPU)
