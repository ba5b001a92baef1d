"""One rollout, from its declaration to its end."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Any, TypedDict

from fulgurite.enums import StatusKind
from fulgurite.failures import FailureKind
from services.client.connection import Connection
from services.client.errors import ClientError


class OpenAIArguments(TypedDict):
    """Arguments of `openai.OpenAI`."""

    base_url: str
    api_key: str


class Rollout:
    """A declared rollout: a context manager whose end is the rollout's end.

    Without an exception the rollout is reported as finished. With one it is reported as failed
    (`agent_exception`; `cancelled` for KeyboardInterrupt and the like), and the exception goes on.
    """

    def __init__(self, connection: Connection, group_id: str, grant: dict[str, Any]) -> None:
        """`grant`: an entry of `rollouts` in the reply of `POST /v1/rollouts`."""
        self._connection = connection
        self.group_id = group_id
        self.rollout_id: str = grant["rollout_id"]
        self.attempt: int = grant["attempt"]
        self.base_url: str = grant["base_url"]
        self.api_key: str = grant["api_key"]
        self.reward_key: str = grant["reward_key"]
        self._path = f"/v1/rollouts/{self.rollout_id}"

    @property
    def openai(self) -> OpenAIArguments:
        """Arguments of `openai.OpenAI` with which its calls belong to this rollout."""
        return {"base_url": self.base_url, "api_key": self.api_key}

    def reward(self, value: float, name: str = "reward", **fields: Any) -> str:
        """Reward the rollout, or one call of it (`completion_id`). Returns the reward's id.

        `fields`: further ones of `POST /v1/rewards`. Raises GatewayRefused, GatewayUnreachable.
        """
        paid = {} if "completion_id" in fields else {"rollout_id": self.rollout_id}
        body = {**paid, "name": name, "value": value, **fields}
        reply = self._connection.post("/v1/rewards", self.reward_key, body, uuid.uuid4().hex)
        return reply["reward_id"]

    def read(self) -> dict[str, Any]:
        """What the log holds of the rollout: the reply of `GET /v1/rollouts/{id}`. Raises
        GatewayRefused, GatewayUnreachable.
        """
        return self._connection.get(self._path, self.reward_key)

    def __enter__(self) -> Rollout:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._report({"kind": StatusKind.finished.value})
            return
        failure = (
            FailureKind.agent_exception if isinstance(error, Exception) else FailureKind.cancelled
        )
        try:
            self._report(
                {
                    "kind": StatusKind.failed.value,
                    "failure": failure.value,
                    "message": f"{type(error).__name__}: {error}",
                }
            )
        except ClientError as problem:
            # The agent's own exception is the one to be seen.
            error.add_note(f"The rollout's failure was not reported: {problem}")

    def _report(self, status: dict[str, Any]) -> None:
        self._connection.post(f"{self._path}/status", self.api_key, status, uuid.uuid4().hex)
