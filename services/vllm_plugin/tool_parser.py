"""vLLM's tool parser `fulgurite`: the format of `calls` as OpenAI tool calls, streamed and not.
Both say the same of the same text.

A stream withholds text only as long as it may be calls and nothing else; prose flows. A
`tool_choice`, named or required, forces nothing.
"""

# vLLM lives in an environment of its own, which the type checker does not see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportUnknownArgumentType=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.abstract_tool_parser import ToolParser

from services.vllm_plugin.calls import Reply, Tools, may_be_calls_alone, parse


class CallToolParser(ToolParser):
    """One per request."""

    supports_required_and_named = False
    engine_based_streaming = True
    """vLLM then calls `finish_streaming` when the generation ends, whatever ended it."""

    def __init__(self, tokenizer: Any, tools: list[Any] | None = None) -> None:
        super().__init__(tokenizer, tools)
        self._declared = _declared(self.tools)
        self._text = ""
        self._sent = 0

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """A whole reply."""
        reply = parse(model_output, self._declared)
        calls = [
            ToolCall(
                id=make_tool_call_id(),
                function=FunctionCall(name=call.name, arguments=call.arguments),
            )
            for call in reply.calls
        ]
        return ExtractedToolCallInformation(
            tools_called=bool(calls), tool_calls=calls, content=reply.content
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """Content that is prose for certain; the rest is told by `finish_streaming`."""
        # For parsers with `engine_based_streaming` vLLM accumulates no text: `current_text` is the
        # delta again.
        self._text += delta_text
        if may_be_calls_alone(self._text, self._declared):
            return None
        return self._unsent()

    def finish_streaming(self) -> DeltaMessage | None:
        """What is left when the generation has ended: calls, and the content that had been
        withheld.
        """
        reply = parse(self._text, self._declared)
        message = self._unsent() if reply.content is not None else None
        if reply.calls:
            message = message or DeltaMessage()
            message.tool_calls = _deltas(reply)
        return message

    def _unsent(self) -> DeltaMessage | None:
        fresh = self._text[self._sent :]
        self._sent = len(self._text)
        return DeltaMessage(content=fresh) if fresh else None


def _declared(tools: Sequence[Any]) -> Tools:
    """Of chat completions (`tool.function`) and of responses (the tool itself)."""
    functions = [getattr(tool, "function", tool) for tool in tools]
    schemas: dict[str, Mapping[str, Any]] = {
        function.name: function.parameters or {} for function in functions
    }
    return schemas


def _deltas(reply: Reply) -> list[DeltaToolCall]:
    return [
        DeltaToolCall(
            index=index,
            type="function",
            id=make_tool_call_id(),
            function=DeltaFunctionCall(name=call.name, arguments=call.arguments),
        )
        for index, call in enumerate(reply.calls)
    ]
