"""A model of one's own in a real vLLM: its chat template makes the prompt, its parser reads calls."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm
from services.local_stack.vllm_settings import VllmSettings

pytestmark = pytest.mark.engine

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall as <tool_call>: {{ tools | tojson }}<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT: dict[str, Any] = {
    "model": "policy",
    "messages": [{"role": "user", "content": "3 and 8?"}],
    "tools": [{"type": "function", "function": {"name": "calc", "parameters": {}}}],
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalVllm]:
    folder = tmp_path_factory.mktemp("own")
    model = folder / "model"
    shutil.copytree(tiny_model(), model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    settings = VllmSettings.read(
        {"context_length": 256, "reasoning_parser": "qwen3", "args": "--max-num-seqs=4"}
    )
    with LocalVllm(model, folder, threads=1, settings=settings) as server:
        yield server


def ask(server: LocalVllm, route: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server.base_url}{route}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)


def test_the_prompt_is_made_by_its_own_template(own: LocalVllm) -> None:
    tokens = ask(own, "/tokenize", **CHAT)
    assert tokens["max_model_len"] == 256
    prompt = ask(own, "/detokenize", model="policy", tokens=tokens["tokens"])["prompt"]
    assert "Call as <tool_call>:" in prompt
    assert "SmolLM" not in prompt


def test_its_answers_are_read_by_the_parser_that_was_found(own: LocalVllm) -> None:
    assert "--tool-call-parser=hermes" in own.process.spec.argv
    (choice,) = ask(own, "/v1/chat/completions", **CHAT, max_tokens=4)["choices"]
    assert choice["message"]["role"] == "assistant"
