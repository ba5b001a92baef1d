"""Dictation: a chat's field `fulgurite_dictate` holds the answer that the model shall give.

So an expert's episode is recorded like any other, with the tokens that the model itself would have
written it in, and `fulgurite sft` can train on it. The engine renders the chat with and without the
answer (`/tokenize`); the tokens between go to the plug-in `services.vllm_plugin.dictation`, which
leaves the model no others. A model server without it would answer freely, so each is asked once
whether it says what it is told. The call is recorded as one with biased sampling: nothing that was
dictated is trained on by reinforcement.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from services.common.runtime.gateway_fields import DICTATE
from services.gateway.dialects.dialect import ApiRequest, mapping
from services.gateway.dialects.foreign_json import UNREADABLE
from services.gateway.errors import InvalidRequest, UpstreamBroken
from services.gateway.recording.call import Call
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.rendering import render
from services.gateway.upstream.route import Route

TOKENS = "dictated_token_ids"
"""In `vllm_xargs`, where the plug-in finds them."""
_API = "chat.completions"
_LIMITS = ("max_tokens", "max_completion_tokens")
_TRIAL = [1, 2, 3]
"""Tokens that no model would say by itself."""


class _Said(msgspec.Struct):
    token_ids: list[int] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Said]


class Dictation:
    """Puts dictated tokens into requests."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        self._obedient: set[str] = set()
        """Backends that said what they were told."""

    async def applied(self, request: ApiRequest, call: Call, route: Route) -> ApiRequest:
        """The request that makes the engine say what is dictated; the same where nothing is.
        Raises InvalidRequest, UpstreamFailed.
        """
        answer = call.request.body.get(DICTATE)
        if answer is None:
            return request
        if call.draft.api != _API or route.kind != "vllm":
            raise InvalidRequest(
                f"`{DICTATE}` needs chat completions of an alias that vLLM answers.", param=DICTATE
            )
        turn = _turn(answer)
        await self._require_obedience(call, route)
        tokens = await self._tokens(turn, call, route)
        body = {name: value for name, value in request.body.items() if name not in _LIMITS}
        body |= {
            "max_tokens": len(tokens),
            "vllm_xargs": {**mapping(request.body, "vllm_xargs"), TOKENS: tokens},
        }
        del body[DICTATE]
        return msgspec.structs.replace(request, body=body)

    async def _require_obedience(self, call: Call, route: Route) -> None:
        """Raises InvalidRequest, UpstreamFailed."""
        if route.backend in self._obedient:
            return
        body = {
            "model": route.model,
            "prompt": _TRIAL,
            "max_tokens": len(_TRIAL),
            "ignore_eos": True,
            "return_token_ids": True,
            "vllm_xargs": {TOKENS: _TRIAL},
        }
        try:
            async with self._client.open(
                route, "/v1/completions", msgspec.json.encode(body), call.call_id, None, {}
            ) as reply:
                found = msgspec.json.decode(await reply.read(), type=_Completion)
        except UNREADABLE as error:
            raise UpstreamBroken(f"The model server's answer is none: {error}") from error
        if [choice.token_ids for choice in found.choices] != [_TRIAL]:
            raise InvalidRequest(
                f"`{DICTATE}`: the model server {route.backend!r} does not say what it is told. "
                "Start vLLM with --logits-processors services.vllm_plugin.dictation:Dictation.",
                param=DICTATE,
            )
        self._obedient.add(route.backend)

    async def _tokens(self, turn: dict[str, Any], call: Call, route: Route) -> list[int]:
        messages = call.request.items or []
        try:
            prompt = await render(self._client, call, route, messages, for_answer=True)
            whole = await render(self._client, call, route, [*messages, turn], for_answer=False)
        except UNREADABLE as error:
            raise UpstreamBroken(f"The model server did not render the chat: {error}") from error
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise InvalidRequest(
                f"`{DICTATE}` does not continue the prompt: with it, the model's chat template "
                "renders other tokens before the answer.",
                param=DICTATE,
            )
        return whole[len(prompt) :]


def _turn(answer: Any) -> dict[str, Any]:
    """The answer as a message of the assistant. Raises InvalidRequest."""
    turn = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
    if not turn.get("content") and not turn.get("tool_calls"):
        raise InvalidRequest(
            f"`{DICTATE}` must be a message of the assistant with `content` or `tool_calls`.",
            param=DICTATE,
        )
    return {"content": None, **turn, "role": "assistant"}
