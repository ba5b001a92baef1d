"""Declares rollouts at a gateway."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from services.client.connection import Connection
from services.client.errors import MissingAdminKey
from services.client.rollout import Rollout
from services.common.runtime.gateway_url import root_of


class Client:
    """The client of one gateway. Thread-safe."""

    def __init__(
        self, url: str | None = None, admin_key: str | None = None, *, patience_s: float = 20.0
    ) -> None:
        """By default, address and key are FULGURITE_GATEWAY_URL and FULGURITE_ADMIN_KEY.
        `patience_s`: seconds for which a gateway that does not answer is asked again. Raises
        MissingAdminKey.
        """
        url = url or os.environ.get("FULGURITE_GATEWAY_URL") or "http://127.0.0.1:8080"
        self._admin_key = admin_key or os.environ.get("FULGURITE_ADMIN_KEY") or ""
        if not self._admin_key:
            raise MissingAdminKey(
                "No admin key: set FULGURITE_ADMIN_KEY to the gateway's, or pass `admin_key`."
            )
        self._connection = Connection(root_of(url), patience_s)

    def rollout(self, task: Any, *, rewards: Iterable[str] = ("reward",), **fields: Any) -> Rollout:
        """Declare one rollout, a group of its own. As `group`."""
        [only] = self.group(task, 1, rewards=rewards, **fields)
        return only

    def group(
        self, task: Any, size: int, *, rewards: Iterable[str] = ("reward",), **fields: Any
    ) -> list[Rollout]:
        """Declare a group of rollouts of one task, which training compares with one another.

        `task`: any JSON. `rewards`: the names that each rollout waits for. `fields`: further ones
        of `POST /v1/rollouts`, such as `mode`, `alias`, `deadline_s`, `run_id`. Raises
        GatewayRefused, GatewayUnreachable.
        """
        body = {"task": task, "n": size, "expected_rewards": list(rewards), **fields}
        reply = self._connection.post("/v1/rollouts", self._admin_key, body)
        return [Rollout(self._connection, reply["group_id"], grant) for grant in reply["rollouts"]]

    def newest_version(self, policy: str = "policy") -> str:
        """A policy's newest version, `policy@0.0` before any update. Raises LookupError for a
        policy that the gateway does not know, GatewayRefused, GatewayUnreachable.
        """
        known = self._connection.get("/v1/policies", self._admin_key)["data"]
        for one in known:
            if one["policy"] == policy:
                return one["newest"]
        raise LookupError(
            f"The gateway knows no policy {policy!r}. It knows: "
            f"{', '.join(one['policy'] for one in known)}."
        )
