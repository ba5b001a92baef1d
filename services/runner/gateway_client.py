"""Calls the gateway's REST routes for runners: declare a group, report a status, start an attempt.

Connection errors and the statuses 429 and 5xx are retried for `patience_s` seconds. Other errors
are raised at once, with the gateway's text. `services/client` is the client for users' code.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import aiohttp
import msgspec

from fulgurite.enums import Mode, StatusKind
from fulgurite.failures import FailureKind
from services.runner.errors import GatewayRefused, GatewayUnreachable

_PAUSE_S = 0.25
_REQUEST_TIMEOUT_S = 15.0


class Grant(msgspec.Struct, frozen=True):
    """The keys and the URL for one attempt at a rollout."""

    rollout_id: str
    index: int
    attempt: int
    base_url: str
    api_key: str
    reward_key: str


class Group(msgspec.Struct, frozen=True):
    """A declared group; its deadline in Unix milliseconds."""

    group_id: str
    deadline: int
    rollouts: tuple[Grant, ...]
    alias: str
    served_by: str | None = None
    """What answers the calls for `alias`, where that is another alias or a version."""
    prompt_version: str | None = None
    """Version of the prompt of `alias` that calls are served with; None: the one in force."""


class _NewAttempt(msgspec.Struct, frozen=True):
    attempt: int
    api_key: str
    reward_key: str
    base_url: str


class GatewayClient:
    """The client of one gateway. Use it as an async context manager."""

    def __init__(self, url: str, admin_key: str, patience_s: float = 20.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {admin_key}"}
        self._patience_s = patience_s

    async def __aenter__(self) -> GatewayClient:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def declare(
        self,
        *,
        task: dict[str, Any],
        n: int,
        mode: Mode,
        model: str,
        deadline_s: float,
        run_id: str,
        max_attempts: int,
        rewards: Sequence[str],
        weights: Mapping[str, float],
        credit_rule: str | None = None,
        served_by: str | None = None,
        prompt_version: str | None = None,
    ) -> Group:
        """Declare a group of n rollouts. Raises GatewayRefused, GatewayUnreachable."""
        body: dict[str, Any] = {
            "n": n,
            "task": task,
            "mode": mode.value,
            "model": model,
            "deadline_s": deadline_s,
            "expected_rewards": list(rewards),
            "reward_weights": dict(weights),
            "run_id": run_id,
            "max_attempts": max_attempts,
        }
        if credit_rule is not None:
            body["credit_rule"] = credit_rule
        if served_by is not None:
            body["served_by"] = served_by
        if prompt_version is not None:
            body["prompt_version"] = prompt_version
        group = msgspec.convert(await self._post("/v1/rollouts", body), Group)
        return msgspec.structs.replace(group, served_by=served_by, prompt_version=prompt_version)

    async def report(
        self,
        grant: Grant,
        kind: StatusKind,
        *,
        failure: FailureKind | None = None,
        message: str | None = None,
        exit_code: int | None = None,
        will_retry: bool = False,
    ) -> None:
        """Report the status of an attempt. Raises GatewayRefused, GatewayUnreachable."""
        body = {
            "kind": kind.value,
            "attempt": grant.attempt,
            "failure": failure.value if failure else None,
            "message": message,
            "exit_code": exit_code,
            "will_retry": will_retry,
        }
        filled = {name: value for name, value in body.items() if value is not None}
        key = f"{grant.rollout_id}/{grant.attempt}/{kind.value}"
        await self._post(
            f"/v1/rollouts/{grant.rollout_id}/status", filled, {"Idempotency-Key": key}
        )

    async def next_attempt(self, group: Group, grant: Grant, mode: Mode) -> Grant:
        """Get the keys for the next attempt, also from a gateway that has forgotten the group.
        Raises GatewayRefused, GatewayUnreachable.
        """
        body: dict[str, Any] = {
            "attempt": grant.attempt + 1,
            "mode": mode.value,
            "deadline": group.deadline,
        }
        if group.served_by is not None:
            body |= {"alias": group.alias, "served_by": group.served_by}
        if group.prompt_version is not None:
            body |= {"alias": group.alias, "prompt_version": group.prompt_version}
        reply = msgspec.convert(
            await self._post(f"/v1/rollouts/{grant.rollout_id}/attempts", body), _NewAttempt
        )
        return Grant(
            grant.rollout_id,
            grant.index,
            reply.attempt,
            reply.base_url,
            reply.api_key,
            reply.reward_key,
        )

    async def _post(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        give_up = time.monotonic() + self._patience_s
        while True:
            try:
                async with self._session.post(
                    self._url + path, json=body, headers=headers, allow_redirects=False
                ) as reply:
                    text = await reply.text()
                    if reply.status < 300:
                        return cast(dict[str, Any], msgspec.json.decode(text)) if text else {}
                    problem = f"{path}: {reply.status} {text[:500]}"
                    if reply.status < 500 and reply.status != 429:
                        raise GatewayRefused(f"the gateway at {self._url} refused {problem}")
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"{path}: {type(error).__name__}: {error}"
            if time.monotonic() > give_up:
                raise GatewayUnreachable(
                    f"no answer from the gateway at {self._url} in {self._patience_s:.0f} s "
                    f"({problem}). Is it running there (FULGURITE_GATEWAY_URL)?"
                )
            await asyncio.sleep(_PAUSE_S)
