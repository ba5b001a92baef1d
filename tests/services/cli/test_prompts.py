"""What a prompt version may be made of: each wrong file or option is named before the log is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fulgurite.events import Demonstration, DemonstrationCall
from services.cli.main import app
from services.cli.prompt_files import (
    BadPrompt,
    read_demonstrations,
    read_named,
    read_sections,
    read_text,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4\u2028."}


def written(folder: Path, *messages: Any) -> Path:
    path = folder / "shown.jsonl"
    path.write_text("\n\n".join(json.dumps(one, ensure_ascii=False) for one in messages))
    return path


def test_demonstrations_are_chat_messages(tmp_path: Path) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": ""}
    assert read_demonstrations(written(tmp_path, USER, calls, result, ANSWER)) == (
        Demonstration(role="user", content="2+2?"),
        Demonstration(
            role="assistant",
            content="",
            tool_calls=(DemonstrationCall(id="c1", name="calc", arguments='{"a": 1}'),),
        ),
        Demonstration(role="tool", content="", tool_call_id="c1"),
        Demonstration(role="assistant", content="4\u2028."),
    )


def with_call(**changed: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{**CALL, **changed}]}


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([3], "not a JSON object"),
        ([{"role": "system", "content": "hi"}], "role 'system' is none of"),
        ([{"content": "hi"}], "role None is none of"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be a text"),
        ([{"role": "user", "content": ""}], "says nothing"),
        ([{"role": "user", "content": "a", "name": "n"}], "has name"),
        ([{"role": "tool", "content": "4"}], "tool_call_id"),
        ([{"role": "user", "content": "a", "tool_call_id": "c1"}], "tool_call_id"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "only the assistant"),
        ([{"role": "assistant", "tool_calls": [3]}], "list of objects"),
        ([{"role": "assistant", "tool_calls": "calc"}], "list of objects"),
        ([with_call(id=None)], "has an `id`"),
        ([with_call(function={"arguments": "{}"})], "has an `id`"),
        ([with_call(function={"name": "f", "arguments": "{"})], "arguments"),
        ([with_call(function={"name": "f", "arguments": "[1]"})], "arguments"),
        ([with_call(function={"name": "f"})], "arguments"),
        ([USER, {"role": "tool", "tool_call_id": "c9", "content": "4"}, ANSWER], "'c9'"),
        ([USER], "end with an answer"),
        ([ANSWER], "begin with a message of the user"),
        ([USER, with_call()], "calls no tool"),
    ],
)
def test_what_is_no_demonstration(tmp_path: Path, messages: list[Any], error: str) -> None:
    with pytest.raises(BadPrompt, match=error):
        read_demonstrations(written(tmp_path, *messages))


def test_lines_that_are_not_json_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, USER, ANSWER)
    path.write_text(path.read_text() + "\n{")
    with pytest.raises(BadPrompt, match=r"shown\.jsonl:4 is not JSON"):
        read_demonstrations(path)


def test_a_text_loses_the_line_ends_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b" a\nb \r\n\n")
    assert read_text(path) == " a\nb "
    assert read_named("--tool", [f"calc={path}"]) == {"calc": " a\nb "}
    for content, error in ((b" \n", "is empty"), (b"\xff", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(BadPrompt, match=error):
            read_text(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(BadPrompt, match="cannot be read"):
            read_text(missing)


@pytest.mark.parametrize("given", ["rules", "=file", "rules=", ""])
def test_a_name_and_a_file_are_needed(given: str) -> None:
    with pytest.raises(BadPrompt, match="NAME=FILE"):
        read_named("--tool", [given])


def test_sections(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("new")
    assert read_sections([f"rules={path}", f"a-b.c={path}"]) == {"rules": "new", "a-b.c": "new"}
    with pytest.raises(BadPrompt, match="given twice"):
        read_sections([f"rules={path}", f"rules={path}"])
    with pytest.raises(BadPrompt, match="a name has letters"):
        read_sections([f"my rules={path}"])
    path.write_text("a</rules>b")
    with pytest.raises(BadPrompt, match="would end the section"):
        read_sections([f"rules={path}"])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "nothing to change"),
        (["--role", " ", "--system", "FILE"], "--role is empty"),
        (["--alias", "", "--system", "FILE"], "--alias is empty"),
        (["--system", "FILE", "--prefix", "FILE"], "--system replaces"),
        (["--system", "FILE", "--section", "rules=FILE"], "--system replaces"),
        (["--tool", "calc"], "NAME=FILE"),
    ],
)
def test_a_slip_of_the_pen_is_reported_before_anything_is_asked(
    tmp_path: Path, options: list[str], error: str
) -> None:
    path = tmp_path / "text"
    path.write_text("text")
    words = [word.replace("FILE", str(path)) for word in options]
    done = CliRunner().invoke(app, ["prompts", "set", "--alias", "policy", *words])
    assert done.exit_code == 1
    assert error in " ".join(done.output.split())


@pytest.mark.parametrize("command", ["list", "show", "diff", "set", "rollback"])
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, ["prompts", command, "--help"])
    assert done.exit_code == 0
    assert "alias" in done.output
