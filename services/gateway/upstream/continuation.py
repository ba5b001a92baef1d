"""`continuation=tokens`: a chat that continues from our own answer is prompted with that answer's
tokens, not with its text tokenised again. Opt-in per alias (FULGURITE_CONTINUE_TOKENS).

Text does not determine the tokens it came from, and templates drop parts of it (thinking); each
such turn would break the trajectory. The prompt and tokens of an answer are kept under the hash
chain of its conversation, with all fields that shape a prompt. A request that repeats that
conversation is rendered by the engine (`/tokenize`). What follows the answer's end of turn is cut
from the rendering and put after the recorded tokens, and vLLM uses the result instead of its own
rendering (`kv_transfer_params.prompt_token_ids`).

Whatever does not fit exactly is rendered as usual: an answer that did not end by itself, several
choices, images, a template whose first message differs or whose turns do not end alike, a
conversation that is not (or no longer) known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from fulgurite.calls.conversations import MessageChain
from fulgurite.tokens import unpack_ids
from services.common.runtime import logs
from services.common.runtime.off_loop import off_loop
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.dialects.foreign_json import UNREADABLE
from services.gateway.errors import UpstreamFailed, UpstreamUnreachable
from services.gateway.identity.store import Store
from services.gateway.identity.store_patience import StorePatience
from services.gateway.recording.call import Call
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.rendering import SHAPES, render
from services.gateway.upstream.route import Route

log = logs.get(__name__)

TTL_S = 3600
ANSWERS_IN_MEMORY = 2000
"""Some 30 MB at 4,000 tokens; the oldest go first."""
_API = "chat.completions"
_ENDED = ("stop", "tool_calls")
_STRANGE = (
    "documents",
    "reasoning_effort",
    "continue_final_message",
    "add_generation_prompt",
    "echo",
    "n",
)
"""Fields that shape it too, and that it does not know; and those of which several answers come."""


def joined(recorded: Sequence[int], rendered: Sequence[int]) -> list[int] | None:
    """The recorded tokens and what the rendering has after them; None if the two do not match, or
    if the rendering begins with them already.

    `recorded` ends with the end of a turn. The rendering has as many ends of turn before the same
    place, however it rendered the turns.
    """
    end = recorded[-1]
    first = recorded.index(end)
    if list(rendered[: first + 1]) != list(recorded[: first + 1]) or list(
        rendered[: len(recorded)]
    ) == list(recorded):
        return None
    places = [place for place, token in enumerate(rendered) if token == end]
    turns = sum(token == end for token in recorded)
    if len(places) < turns or places[turns - 1] + 1 == len(rendered):
        return None
    return [*recorded, *rendered[places[turns - 1] + 1 :]]


class Continuation:
    """Keeps the tokens of answers, and finds them again."""

    def __init__(self, aliases: frozenset[str], store: Store, client: UpstreamClient) -> None:
        self.aliases = aliases
        self._store = store
        self._client = client
        self._patience = StorePatience(
            lambda: None,
            lambda: log.warning(
                "conversations are not continued from their tokens, and their prompts are rendered "
                "as text: the store (REDIS_URL) does not answer"
            ),
        )

    async def recorded(self, call: Call) -> list[int] | None:
        """Tokens of the conversation up to our last answer in it; None if it is not ours, or not
        one that can go on so.
        """
        conversation = await off_loop(len(call.draft.raw or ""), lambda: self._conversation(call))
        if conversation is None or not conversation.prefixes:
            return None
        key = _key(conversation.prefixes[0])
        packed = await self._patience.ask(lambda: self._store.get(key))
        return None if packed is None else unpack_ids(packed).tolist()

    async def prompt(self, recorded: list[int], call: Call, route: Route) -> ApiRequest:
        """The request with its prompt in tokens, or as it is. Raises UpstreamUnreachable."""
        messages = call.request.items or []
        try:
            rendered = await render(self._client, call, route, messages, for_answer=True)
        except UpstreamUnreachable:
            raise
        except (UpstreamFailed, *UNREADABLE) as error:
            log.warning(
                "a conversation is not continued from its tokens: its prompt is rendered as text",
                alias=call.request.alias,
                error=str(error),
            )
            return call.request
        ids = joined(recorded, rendered)
        if ids is None:
            return call.request
        call.continued = True
        given = call.request.body.get("kv_transfer_params")
        params = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
        return msgspec.structs.replace(
            call.request,
            body={**call.request.body, "kv_transfer_params": {**params, "prompt_token_ids": ids}},
        )

    async def remember(self, call: Call) -> None:
        """Keep an answer that ended by itself, before the agent has it."""
        conversation = await off_loop(len(call.draft.raw or ""), lambda: self._conversation(call))
        answers, choices, prompt = (
            call.capture.answers(),
            call.capture.recorded_choices(),
            call.capture.prompt(),
        )
        if conversation is None or prompt is None or len(answers) != 1 or len(choices) != 1:
            return
        chain, [choice] = conversation.answered(answers[0]), choices
        if (
            chain is None
            or choice.token_ids is None
            or choice.finish_reason not in _ENDED
            or choice.stop_reason is not None
        ):
            return
        tokens = prompt + choice.token_ids
        await self._patience.ask(lambda: self._store.put(_key(chain), tokens, TTL_S))

    def _conversation(self, call: Call) -> MessageChain | None:
        request = call.request
        if request.alias not in self.aliases or call.draft.api != _API or call.route.kind != "vllm":
            return None
        messages = request.items or []
        if any(request.body.get(name) is not None for name in _STRANGE) or not all(
            _plain(message) for message in messages
        ):
            return None
        # Instructions are no part of the chain, but of the prompt.
        instructions = [
            (place, m)
            for place, m in enumerate(messages)
            if m.get("role") in ("system", "developer")
        ]
        shape = (
            call.who.rollout_id,
            request.alias,
            instructions,
            [request.body.get(name) for name in SHAPES],
        )
        try:
            return MessageChain(
                hashlib.sha256(msgspec.json.encode(shape)).digest(), messages, words=True
            )
        except RecursionError:
            return None


def _plain(message: Any) -> bool:
    """Text only: vLLM renders anything else itself."""
    if not isinstance(message, Mapping):
        return False
    content = cast("Mapping[str, Any]", message).get("content")
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    return all(
        isinstance(part, dict) and cast("dict[str, Any]", part).get("type") in ("text", "refusal")
        for part in parts
    )


def _key(chain: str) -> str:
    return f"tokens:{chain}"
