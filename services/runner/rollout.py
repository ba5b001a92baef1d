"""Runs one rollout: starts an agent process per attempt and reports its status to the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import msgspec

from fulgurite.enums import StatusKind
from fulgurite.failures import FailureKind
from services.common.processes.fork_server import ForkServer, Program
from services.runner.errors import GatewayRefused, GatewayUnreachable
from services.runner.exit_classes import ExitClass, classify_exit, will_retry
from services.runner.expert import Expert
from services.runner.gateway_client import GatewayClient, Grant, Group
from services.runner.options import RunOptions, Task, for_agent

MAX_TASK_VARIABLE = 100_000
"""Bytes. Linux allows 128 KiB per environment variable; a longer task comes on standard input only.
"""

_RETRY_PAUSE_S = 0.5
_FAREWELL_S = 2.0


def address_variables(base_url: str, api_key: str) -> dict[str, str]:
    """The variables in which clients look for their model server and its key. `base_url` ends with
    `/v1`, which Anthropic's clients add themselves.
    """
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": api_key,
        # LlamaIndex, older LangChain, LiteLLM.
        "OPENAI_API_BASE": base_url,
        # LiteLLM's provider `hosted_vllm`.
        "HOSTED_VLLM_API_BASE": base_url,
        "HOSTED_VLLM_API_KEY": api_key,
        "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": api_key,
    }


class Attempt(msgspec.Struct, frozen=True):
    """The result of an attempt."""

    grant: Grant
    exit_class: ExitClass
    retried: bool
    exit_code: int
    seconds: float
    output: str


class RolloutRunner:
    """Runs rollouts of one program through one gateway."""

    def __init__(
        self,
        gateway: GatewayClient,
        fork_server: ForkServer,
        program: Program,
        environment: Mapping[str, str],
        options: RunOptions,
        expert: Expert | None = None,
    ) -> None:
        """With an expert, agents ask it, and it the gateway."""
        self._gateway = gateway
        self._fork_server = fork_server
        self._program = program
        self._environment = dict(environment)
        self._options = options
        self._expert = expert

    async def run(self, group: Group, grant: Grant, task: Task) -> Attempt:
        """Run attempts until one ends the rollout, and return the last.

        Raises GatewayRefused, GatewayUnreachable, ForkServerFailed.
        """
        while True:
            attempt = await self._attempt(group, grant, task)
            if not attempt.retried:
                return attempt
            await asyncio.sleep(_RETRY_PAUSE_S * 2**grant.attempt)
            grant = await self._gateway.next_attempt(group, grant, self._options.mode)

    async def _attempt(self, group: Group, grant: Grant, task: Task) -> Attempt:
        shown = for_agent(task)
        expert = self._expert
        try:
            await self._gateway.report(grant, StatusKind.started)
            left_s = max(0.1, group.deadline / 1000 - time.time())
            variables = address_variables(
                expert.base_url(grant, task) if expert else grant.base_url, grant.api_key
            )
            if len(shown.encode()) <= MAX_TASK_VARIABLE:
                variables["TASK"] = shown
            result = await self._fork_server.run(
                self._program,
                environment={**self._environment, **variables},
                cwd=self._options.cwd,
                stdin=shown.encode(),
                limit_s=left_s,
            )
        except asyncio.CancelledError:
            await self._report_cancelled(grant)
            raise
        exit_class = classify_exit(result)
        again = (
            will_retry(exit_class, grant.attempt, self._options.max_attempts)
            and time.time() * 1000 < group.deadline
        )
        await self._gateway.report(
            grant,
            exit_class.kind,
            failure=exit_class.failure,
            message=exit_class.message,
            exit_code=result.exit_code,
            will_retry=again,
        )
        return Attempt(grant, exit_class, again, result.exit_code, result.seconds, result.output)

    async def _report_cancelled(self, grant: Grant) -> None:
        with contextlib.suppress(GatewayRefused, GatewayUnreachable, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self._gateway.report(
                    grant,
                    StatusKind.failed,
                    failure=FailureKind.cancelled,
                    message="the run was stopped",
                )
