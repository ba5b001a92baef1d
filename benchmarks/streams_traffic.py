"""Calls of agents whose contexts grow, as the gateway would log them: real text and its tokens,
deltas, whole groups.

Each turn brings an observation (the agent reads a file: sources of Python's standard library) and
an answer (prose: Python's reference manual), tokenised by the small model's own tokenizer, so that
text and ids compress as they do in earnest. Log-probabilities are drawn at random, which no
compressor shortens.
"""

from __future__ import annotations

import json
import pydoc_data.topics
import random
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import msgspec
from tokenizers import Tokenizer

from fulgurite.avro.codec import Codec
from fulgurite.enums import StatusKind
from fulgurite.events import AgentReward, AgentStatus, LlmCall
from fulgurite.tokens import pack_ids, pack_logprobs, prompt_hash
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, LLM_CALLS, Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.gateway.recording.parents import Parents
from services.local_stack.model import model_folder
from tests.synthetic import make_call, make_declared, make_reward, make_status

Made = LlmCall | AgentStatus | AgentReward

_PLACES: dict[type, Topic] = {
    LlmCall: LLM_CALLS,
    AgentStatus: AGENT_STATUS,
    AgentReward: AGENT_REWARDS,
}
_SYSTEM = 300
"""Tokens of the system prompt and the tools, the same in every conversation."""
_WAIT_S = 120.0


class Reader:
    """Real text, piece by piece, with its tokens; from the beginning again at its end."""

    def __init__(self, tokenizer: Any, texts: Iterator[str], enough: int) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._at = 0
        for text in texts:
            self._ids += tokenizer.encode(text).ids
            if len(self._ids) > enough:
                break

    def piece(self, tokens: int) -> tuple[str, list[int]]:
        """The next so many tokens, and their text."""
        if self._at + tokens > len(self._ids):
            self._at = 0
        ids = self._ids[self._at : self._at + tokens]
        self._at += tokens
        return self._tokenizer.decode(ids), ids


class Agents:
    """Makes groups; every conversation is another."""

    def __init__(
        self, *, turns: int, new_tokens: int, answer: int, enough: int = 1_000_000
    ) -> None:
        self.turns = turns
        self._new, self._answer = new_tokens - answer, answer
        tokenizer = cast(Any, Tokenizer).from_file(str(model_folder() / "tokenizer.json"))
        sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        self._read = Reader(
            tokenizer,
            (path.read_text(encoding="utf-8", errors="replace") for path in sources),
            enough,
        )
        self._said = Reader(tokenizer, iter(pydoc_data.topics.topics.values()), enough)
        self._system = self._said.piece(_SYSTEM)
        self._chance = random.Random(0)
        functions = [
            {
                "name": f"tool_{n}",
                "description": self._said.piece(50)[0],
                "parameters": {"type": "object"},
            }
            for n in range(5)
        ]
        self._tools = [{"type": "function", "function": function} for function in functions]

    def conversation(self, group: int, index: int, at: int) -> Iterator[LlmCall]:
        """The calls of one rollout, whole, in order."""
        text, prompt = self._system
        messages: list[dict[str, Any]] = [{"role": "system", "content": text}]
        for turn in range(self.turns):
            text, ids = self._read.piece(self._new)
            messages = [*messages, {"role": "user" if turn == 0 else "tool", "content": text}]
            prompt = prompt + ids
            said, answer = self._said.piece(self._answer)
            reply: dict[str, Any] = {"role": "assistant", "content": said}
            call = make_call(
                group, index, turn, at=at + turn, prompt=prompt, answers=[answer], replies=[reply]
            )
            choice = msgspec.structs.replace(
                call.choices[0],
                logprobs=pack_logprobs([-self._chance.expovariate(1) for _ in answer]),
            )
            body = json.dumps(
                {"messages": messages, "model": "policy", "tools": self._tools, "temperature": 1.0},
                separators=(",", ":"),
            )
            usage = {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(answer),
                "total_tokens": len(prompt) + len(answer),
            }
            told = {
                "id": call.call_id,
                "object": "chat.completion",
                "created": at // 1000,
                "model": "policy",
                "usage": usage,
            }
            yield msgspec.structs.replace(
                call,
                choices=(choice,),
                request=body,
                response=json.dumps(told),
                prompt_hash=prompt_hash(pack_ids(prompt)),
                prompt_tokens=len(prompt),
                completion_tokens=len(answer),
            )
            messages = [*messages, reply]
            prompt = prompt + answer


class Gateway:
    """Writes what a gateway would, deltas included; counts calls, and the tokens that no earlier
    call had.
    """

    def __init__(self, kafka: KafkaSettings, agents: Agents) -> None:
        self._producer = EventProducer(kafka, Codec(), "benchmark")
        self._agents = agents
        self._parents = Parents(1 << 30)
        self.calls = 0
        self.tokens = 0

    def write(
        self, groups: Sequence[int], size: int, *, finish: bool = True, one_by_one: bool = False
    ) -> None:
        """Groups side by side; without an end unless `finish`. `one_by_one`: each call is
        acknowledged before the next is sent.
        """
        at = int(time.time() * 1000)
        rollouts = [(group, index) for group in groups for index in range(size)]
        self._send(
            [make_declared(group, size, at=at, deadline=at + 24 * 3600 * 1000) for group in groups]
        )
        self._send(
            [make_status(group, index, StatusKind.started, at=at) for group, index in rollouts]
        )
        conversations = [
            self._agents.conversation(group, index, at + 1) for group, index in rollouts
        ]
        known = dict.fromkeys(range(len(rollouts)), 0)
        for _ in range(self._agents.turns):
            step = 1 if one_by_one else len(rollouts)
            for start in range(0, len(rollouts), step):
                calls = [next(conversations[place]) for place in range(start, start + step)]
                self._log(calls)
                for place, call in enumerate(calls, start):
                    whole = (call.prompt_tokens or 0) + (call.completion_tokens or 0)
                    self.tokens += whole - known[place]
                    known[place] = whole
        if finish:
            self.finish(groups, size)
            self.pay(groups, size)

    def finish(self, groups: Sequence[int], size: int) -> None:
        """Every rollout ends well."""
        at = int(time.time() * 1000)
        self._send([make_status(group, index, at=at) for group in groups for index in range(size)])

    def pay(self, groups: Sequence[int], size: int) -> None:
        """Every rollout gets its reward."""
        at = int(time.time() * 1000)
        self._send(
            [
                make_reward(group, index, float(index % 2), at=at)
                for group in groups
                for index in range(size)
            ]
        )

    def close(self) -> None:
        """Flush."""
        self._producer.close()

    def _log(self, calls: Sequence[LlmCall]) -> None:
        stored = [self._parents.shorten(call) for call in calls]
        deliveries = self._send([call for call, _ in stored])
        for call, (_, depth), delivery in zip(calls, stored, deliveries, strict=True):
            self._parents.remember(call, delivery, depth)
        self.calls += len(calls)

    def _send(self, events: Sequence[Made]) -> list[Delivery]:
        sent: list[Future[Delivery]] = [
            self._producer.submit(_PLACES[type(event)], event.group_id, event) for event in events
        ]
        return [future.result(_WAIT_S) for future in sent]
