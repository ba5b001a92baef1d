"""Simulated users of the calculator agent, who vote on its answers late, wrongly, or not at all.

The agent is the example's, unchanged. It has a plain API key; the header `x-fulgurite-subject`
names the user. A user sees the last answer alone, and a vote names its completion.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import aiohttp
import msgspec
from openai import DefaultHttpxClient, OpenAI, OpenAIError

from examples.calculator.agent import solve
from examples.calculator.tasks import Task

PEOPLE = 500
AT_ONCE = 24
"""Conversations at a time."""
_FLOODER = "user-flood"
_SOONEST_S, _LATEST_S = 0.1, 12.0
_ANSWER = ContextVar[dict[str, str]]("answer")
"""Completion and version of the conversation's last call."""


class Population(msgspec.Struct, frozen=True, kw_only=True):
    """How users vote."""

    silent: float = 0.3
    """Share of conversations without a vote."""
    wrong: float = 0.05
    """Share of votes that are the opposite of what the user thinks."""
    flipped: float = 0.0
    """Share of votes that somebody turns into their opposite."""
    flood: float = 0.0
    """Share of conversations that are of one user, who always votes the opposite."""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation."""

    user: str
    version: str
    """Version that gave the last answer; empty without one."""
    is_right: bool
    vote: float | None
    delay_s: float
    """Seconds from the answer to the vote."""

    @property
    def is_flood(self) -> bool:
        """Whether it is of the user who floods."""
        return self.user == _FLOODER


class Users:
    """People who ask, read and vote."""

    def __init__(self, gateway_url: str, api_key: str, admin_key: str, seed: str) -> None:
        self._chance = random.Random(seed)
        self._rewards = f"{gateway_url}/v1/rewards"
        self._admin = {"Authorization": f"Bearer {admin_key}"}
        client = DefaultHttpxClient(event_hooks={"response": [_note]}, timeout=120.0)
        self._openai = OpenAI(
            base_url=f"{gateway_url}/v1", api_key=api_key, http_client=client, max_retries=5
        )
        self._threads = ThreadPoolExecutor(AT_ONCE)

    def run(
        self,
        tasks: Sequence[Task],
        population: Population,
        on_end: Callable[[Conversation], None],
    ) -> list[Conversation]:
        """Hold a conversation on each task, and return when the last vote is sent."""
        return asyncio.run(self._all(tasks, population, on_end))

    async def _all(
        self,
        tasks: Sequence[Task],
        population: Population,
        on_end: Callable[[Conversation], None],
    ) -> list[Conversation]:
        places = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(headers=self._admin, raise_for_status=True) as voting:

            async def one(task: Task) -> Conversation:
                async with places:
                    user, answer, text = await self._ask(task, population)
                    found = self._opinion(task, population, user, answer.get("version", ""), text)
                    on_end(found)
                if found.vote is not None and found.version:
                    await asyncio.sleep(found.delay_s)
                    await self._vote(voting, answer["completion"], found.vote)
                return found

            return list(await asyncio.gather(*map(one, tasks)))

    async def _ask(self, task: Task, population: Population) -> tuple[str, dict[str, str], str]:
        is_flood = self._chance.random() < population.flood
        user = _FLOODER if is_flood else f"user-{self._chance.randrange(PEOPLE)}"
        client = self._openai.with_options(default_headers={"x-fulgurite-subject": user})

        def ask() -> tuple[dict[str, str], str]:
            answer: dict[str, str] = {}
            _ANSWER.set(answer)
            try:
                return answer, solve(client, ("policy", "policy"), task.question, 1.0)
            except OpenAIError as error:
                print(f"a conversation failed: {error}", flush=True)
                return {}, ""

        return user, *(await asyncio.get_running_loop().run_in_executor(self._threads, ask))

    def _opinion(
        self, task: Task, population: Population, user: str, version: str, text: str
    ) -> Conversation:
        chance = self._chance
        is_right = text.strip().rstrip(".").strip() == f"answer: {task.answer}"
        is_silent = user != _FLOODER and chance.random() < population.silent
        turned = (chance.random() < population.wrong) != (chance.random() < population.flipped)
        says = is_right != (user == _FLOODER or turned)
        return Conversation(
            user=user,
            version=version,
            is_right=is_right,
            vote=None if is_silent else float(says),
            delay_s=math.exp(chance.uniform(math.log(_SOONEST_S), math.log(_LATEST_S))),
        )

    async def _vote(self, voting: aiohttp.ClientSession, completion: str, value: float) -> None:
        body = {"completion_id": completion, "name": "reward", "value": value, "final": True}
        key = {"Idempotency-Key": f"vote-{completion}"}
        async with voting.post(self._rewards, json=body, headers=key):
            pass


def _note(response: Any) -> None:
    """Note which completion an answer is, and by which version."""
    response.read()
    if response.is_success:
        _ANSWER.get().update(
            completion=response.json()["id"],
            version=response.headers.get("x-fulgurite-version", ""),
        )


class Progress:
    """Prints how the conversations go."""

    def __init__(self, total: int, every: int = 40) -> None:
        self._total = total
        self._every = every
        self._ended: list[Conversation] = []
        self._began = time.monotonic()

    def __call__(self, one: Conversation) -> None:
        """Note the end of a conversation."""
        self._ended.append(one)
        count = len(self._ended)
        if count % self._every and count != self._total:
            return
        latest = self._ended[-self._every :]
        right = sum(conversation.is_right for conversation in latest) / len(latest)
        print(
            f"{time.monotonic() - self._began:4.0f} s  {count}/{self._total} conversations, "
            f"{right:.0%} of the last {len(latest)} right, "
            f"by {', '.join(sorted({conversation.version for conversation in latest}))}",
            flush=True,
        )
