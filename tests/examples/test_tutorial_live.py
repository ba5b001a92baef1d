"""The files of the tutorial on live traffic work as they stand on its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.learner.config import RunConfig
from tests.examples.test_tutorial import FILES as FIRST

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial-live.md").read_text()
FILES: dict[str, str] = dict(
    re.findall(r'^```[a-z]+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
)
CONVERSATIONS = 40


class Gateway(BaseHTTPRequestHandler):
    """Answers chats with one word, and takes votes."""

    asked: list[tuple[str, dict[str, Any]]]
    votes: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/rewards":
            assert self.headers["Authorization"] == "Bearer the-admin-key"
            self.votes.append(body)
            reply: dict[str, Any] = {}
        else:
            self.asked.append((self.headers["x-fulgurite-subject"], body))
            choice = {"index": 0, "message": {"role": "assistant", "content": "Dog"}}
            head = {"object": "chat.completion", "created": 1, "model": "policy"}
            reply = {"id": f"c{len(self.asked)}", "choices": [choice | {"finish_reason": "stop"}]}
            reply |= head
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Say nothing."""


@pytest.fixture
def gateway() -> Generator[str]:
    Gateway.asked, Gateway.votes = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_its_users_ask_and_most_of_them_vote(gateway: str, tmp_path: Path) -> None:
    late = "random.uniform(0.1, 12)"
    assert late in FILES["people.py"]
    (tmp_path / "people.py").write_text(FILES["people.py"].replace(late, "0"))
    (tmp_path / "service.py").write_text(FILES["service.py"])
    (tmp_path / "tasks.jsonl").write_text(FIRST["tasks.jsonl"])
    done = subprocess.run(
        [sys.executable, tmp_path / "people.py", str(CONVERSATIONS)],
        env={
            **os.environ,
            "OPENAI_BASE_URL": f"{gateway}/v1",
            "OPENAI_API_KEY": "a-plain-key",
            "FULGURITE_GATEWAY_URL": gateway,
            "FULGURITE_ADMIN_KEY": "the-admin-key",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("40 conversations, 40 of the last 40 are liked")
    assert len(Gateway.asked) == CONVERSATIONS
    assert all(user.startswith("user-") for user, _ in Gateway.asked)
    assert {body["temperature"] for _, body in Gateway.asked} == {1}
    completions = [one["completion_id"] for one in Gateway.votes]
    assert 0 < len(completions) == len(set(completions)) < CONVERSATIONS
    assert {one["value"] for one in Gateway.votes} <= {0.0, 1.0}


def test_its_run_trains_groups_of_one() -> None:
    tables = tomllib.loads(FILES["live.toml"])
    tables["policy"]["model"] = "/a/model"
    assert RunConfig.model_validate(tables).batch.baseline == "moving_average"


def test_its_held_out_questions_are_no_training_questions() -> None:
    held_out = set(FILES["held-out.jsonl"].splitlines())
    assert len(held_out) == 8
    assert not held_out & set(FIRST["tasks.jsonl"].splitlines())
