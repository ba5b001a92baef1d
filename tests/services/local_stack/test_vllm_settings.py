"""The arguments that vLLM gets for a model of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.local_stack import vllm_settings
from services.local_stack.chat_format import FULGURITE_TEMPLATE, own_template
from services.local_stack.errors import SettingsInvalid
from services.local_stack.model import tiny_model
from services.local_stack.vllm_settings import VllmSettings, has_gpu

TOOLS = "{% if tools %}{{ tools }}{% endif %}"
SMOLLM = "You are a helpful AI assistant named SmolLM"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VllmSettings.model_fields:
        monkeypatch.delenv(f"FULGURITE_VLLM_{name.upper()}", raising=False)


def options(arguments: list[str]) -> dict[str, str]:
    """Each option with its value; empty for a flag."""
    return {name: value for name, _, value in (one.partition("=") for one in arguments)}


def model(folder: Path, template: str | None) -> Path:
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (TOOLS + "<tool_call>\\n{...}</tool_call>", "hermes"),
        (TOOLS + "<tool_call>\\n<function=", "qwen3_coder"),
        (TOOLS + "<tool_call>name<arg_key>", "glm45"),
        (TOOLS + "[TOOL_CALLS]", "mistral"),
        (TOOLS + "Environment: ipython" + '{"name": ..., "parameters": ...}', "llama3_json"),
        (TOOLS + "something else", None),
        ("a model without tools", None),
        ("<|im_start|>You are a helpful assistant", None),
    ],
)
def test_a_model_keeps_its_own_template(tmp_path: Path, template: str, parser: str | None) -> None:
    found = options(VllmSettings().arguments(model(tmp_path, template)))
    assert "--chat-template" not in found
    assert found.get("--tool-call-parser") == parser
    assert ("--enable-auto-tool-choice" in found) == (parser is not None)


@pytest.mark.parametrize("template", [None, "<|im_start|>system " + SMOLLM])
def test_a_model_without_tools_of_its_own_gets_ours(tmp_path: Path, template: str | None) -> None:
    found = options(VllmSettings().arguments(model(tmp_path, template)))
    assert found["--chat-template"] == str(FULGURITE_TEMPLATE)
    assert found["--tool-call-parser"] == "fulgurite"
    assert "--enable-auto-tool-choice" in found


def test_so_does_the_tiny_one() -> None:
    assert options(VllmSettings().arguments(tiny_model()))["--tool-call-parser"] == "fulgurite"


@pytest.mark.parametrize(
    "written",
    [
        "the one",
        [{"name": "default", "template": "the one"}],
        [{"name": "default", "template": "another"}, {"name": "tool_use", "template": "the one"}],
    ],
)
def test_a_template_is_found_in_the_tokenizers_config(tmp_path: Path, written: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": written}))
    assert own_template(tmp_path) == "the one"
    (tmp_path / "chat_template.jinja").write_text("its file")
    assert own_template(tmp_path) == "its file"


def test_a_folder_that_has_none_has_none(tmp_path: Path) -> None:
    assert own_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert own_template(tmp_path) is None


def test_what_is_set_becomes_arguments(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(TOOLS + "[TOOL_CALLS]")
    settings = VllmSettings.read(
        {
            "context_length": 8192,
            "gpu_memory_utilization": 0.5,
            "tensor_parallel": 2,
            "chat_template": template,
            "reasoning_parser": "qwen3",
            "args": "--max-num-seqs=64 --no-enforce-eager",
        }
    )
    arguments = settings.arguments(tmp_path)
    found = options(arguments)
    assert found["--max-model-len"] == "8192"
    assert found["--gpu-memory-utilization"] == "0.5"
    assert found["--tensor-parallel-size"] == "2"
    assert found["--chat-template"] == str(template)
    assert found["--tool-call-parser"] == "mistral"
    assert found["--reasoning-parser"] == "qwen3"
    assert arguments[-2:] == ["--max-num-seqs=64", "--no-enforce-eager"]


def test_an_option_counts_before_its_variable_and_arguments_add_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FULGURITE_VLLM_CONTEXT_LENGTH", "4096")
    monkeypatch.setenv("FULGURITE_VLLM_KV_CACHE_GIB", "3")
    monkeypatch.setenv("FULGURITE_VLLM_TOOL_PARSER", "none")
    monkeypatch.setenv("FULGURITE_VLLM_CHAT_TEMPLATE", "")
    monkeypatch.setenv("FULGURITE_VLLM_ARGS", "--a=1")
    settings = VllmSettings.read({"context_length": 8192, "args": "'--b=2 3'"})
    assert (settings.context_length, settings.kv_cache_gib) == (8192, 3)
    assert settings.arguments(tmp_path)[-2:] == ["--a=1", "--b=2 3"]
    assert "--tool-call-parser" not in options(settings.arguments(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CONTEXT_LENGTH", "many", "FULGURITE_VLLM_CONTEXT_LENGTH=many: Input should be a valid"),
        ("ARGS", "--a='", "FULGURITE_VLLM_ARGS=--a=': No closing quotation"),
        ("CHAT_TEMPLATE", "/none", "FULGURITE_VLLM_CHAT_TEMPLATE=/none: /none is not a file"),
    ],
)
def test_a_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"FULGURITE_VLLM_{name}", value)
    with pytest.raises(SettingsInvalid) as error:
        VllmSettings.read()
    assert says in str(error.value)


def test_what_is_given_counts(tmp_path: Path) -> None:
    arguments = VllmSettings().arguments(
        tmp_path, ["--model=/m", "--max-model-len=512", "--enforce-eager"]
    )
    assert arguments[:3] == ["--model=/m", "--max-model-len=512", "--enforce-eager"]
    names = [one.partition("=")[0] for one in arguments]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (("nvidia0", "nvidiactl", "nvidia-uvm"), True),
        (("nvidia1", "nvidiactl"), True),
        (("nvidia11",), True),
        (("nvidiactl", "nvidia-uvm", "nvidia-caps", "null"), False),
        ((), False),
    ],
)
def test_any_gpu_of_the_machine_is_found(
    tmp_path: Path, devices: tuple[str, ...], *, expected: bool
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    assert has_gpu(tmp_path) is expected


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_takes_cuda_graphs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, gpu: bool
) -> None:
    assert ("--enforce-eager" in VllmSettings().arguments(tmp_path, on_gpu=gpu)) is not gpu
    monkeypatch.setattr(vllm_settings, "has_gpu", lambda: gpu)
    assert ("--enforce-eager" in VllmSettings().arguments(tmp_path)) is not gpu


@pytest.mark.parametrize(
    ("chosen", "fast_bf16", "gpu", "expected"),
    [
        ("auto", True, False, "bfloat16"),
        ("auto", False, False, "float32"),
        ("auto", False, True, "bfloat16"),
        ("bfloat16", False, False, "bfloat16"),
        ("float16", True, True, "float16"),
    ],
)
def test_the_type_of_computation_suits_the_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    expected: str,
    *,
    fast_bf16: bool,
    gpu: bool,
) -> None:
    monkeypatch.setattr(vllm_settings, "multiplies_bf16", lambda: fast_bf16)
    arguments = VllmSettings(dtype=chosen).arguments(model(tmp_path, TOOLS), on_gpu=gpu)
    found = options(arguments)
    assert found["--dtype"] == expected
