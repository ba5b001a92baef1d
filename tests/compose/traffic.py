"""What comes from outside through the published port: rollouts declared, calls made and rewards
paid, by curl, while containers die.

`Client.acknowledged` holds the id of every completion whose whole answer arrived: those the log
must have, whatever died.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any

from tests.compose.deployment import Deployment

GROUP = 2


class Client:
    """Speaks to the gateway by curl, as a shell script would."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.acknowledged: set[str] = set()
        self.refused = 0

    def post(self, path: str, key: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status (0: nobody answered) and body."""
        argv = [
            "curl",
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--write-out",
            "\n%{http_code}",
            f"{self._deployment.url}{path}",
        ]
        argv += [
            "--header",
            f"Authorization: Bearer {key}",
            "--header",
            "Content-Type: application/json",
            "--data",
            json.dumps(body),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        text, _, status = done.stdout.rpartition("\n")
        if done.returncode != 0:
            return 0, done.stderr
        return int(status), json.loads(text) if text else None

    def ask(self, key: str, question: str) -> str | None:
        """One call; the completion's id, or None if it was refused or cut off."""
        messages = [{"role": "user", "content": question}]
        status, answer = self.post(
            "/v1/chat/completions", key, {"model": "policy", "messages": messages, "max_tokens": 8}
        )
        if status != 200:
            self.refused += 1
            return None
        self.acknowledged.add(answer["id"])
        return answer["id"]

    def declare(self, n: int = GROUP) -> dict[str, Any]:
        """A group for training: its id and its rollouts with their keys; empty if nobody takes it."""
        admin = self._deployment.keys["FULGURITE_ADMIN_KEY"]
        body = {
            "n": n,
            "task": {"question": "count", "reference": "1"},
            "expected_rewards": ["reward"],
            "deadline_s": 120,
        }
        status, group = self.post("/v1/rollouts", admin, body)
        return group if 200 <= status < 300 else {}

    def play(self, n: int = GROUP) -> str | None:
        """A whole group: each rollout makes a call, ends, and is paid by its turn, so that there is
        something to learn; the group's id.
        """
        group = self.declare(n)
        for number, grant in enumerate(group.get("rollouts", ())):
            self.finish(grant, f"Count to {number + 3}.")
            self.post(
                "/v1/rewards",
                grant["reward_key"],
                {"rollout_id": grant["rollout_id"], "name": "reward", "value": number % 2},
            )
        return group.get("group_id")

    def finish(self, grant: Mapping[str, Any], question: str) -> None:
        """A rollout of one call, which then says that it ended."""
        self.ask(grant["api_key"], question)
        self.post(
            f"/v1/rollouts/{grant['rollout_id']}/status", grant["api_key"], {"kind": "finished"}
        )


class Traffic:
    """A client that does not stop, whatever happens; use as a context manager."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        return self._client

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._client.play()
            time.sleep(0.5)
