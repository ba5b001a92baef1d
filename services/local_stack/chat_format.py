"""Finds a model's own chat template, and the tool parser of vLLM that reads its answers.

A model without a template, or with SmolLM2's, which knows no tools, gets Fulgurite's: ChatML with
tools, and the parser `fulgurite`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import msgspec

FULGURITE_TEMPLATE = Path(__file__).resolve().parents[1] / "vllm_plugin" / "chat_template.jinja"
FULGURITE_PARSER = "fulgurite"

PLAIN_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "(message['content'] or '') + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of the tiny model of the tests."""

_MARKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v3"),
    (("<tool_call>", "<arg_key>"), "glm45"),
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>",), "hermes"),
    (("<|python_tag|>",), "llama3_json"),
    (("ipython", '"parameters"'), "llama3_json"),
)
"""What a template has that teaches a model its format of calls, and vLLM's parser of it. The first
row whose marks are all there counts."""


class ChatFormat(msgspec.Struct, frozen=True):
    """How messages become a prompt, and an answer becomes calls."""

    template: Path | None
    """None: the model's own."""
    tool_parser: str | None
    """None: answers are not searched for calls."""


def chat_format(template: str | None) -> ChatFormat:
    """The format for a model that has this chat template, or none."""
    if template is None or _is_without_tools(template):
        return ChatFormat(FULGURITE_TEMPLATE, FULGURITE_PARSER)
    return ChatFormat(
        None,
        next((parser for marks, parser in _MARKS if all(mark in template for mark in marks)), None),
    )


def own_template(model: Path) -> str | None:
    """The chat template in a Hugging Face folder; of several, the one for tools if there is one."""
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found: Any = _read(model / name).get("chat_template")
        if isinstance(found, list):
            several = cast("list[dict[str, str]]", found)
            named = {one["name"]: one["template"] for one in several}
            found = named.get("tool_use") or named.get("default")
        if isinstance(found, str):
            return found
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_without_tools(template: str) -> bool:
    """Whether it is that of SmolLM2 or of the tiny model."""
    return template.strip() == PLAIN_CHATML or ("SmolLM" in template and "tools" not in template)
