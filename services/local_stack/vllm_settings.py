"""Settings of a vLLM that serves policies, and the arguments that they stand for.

The local stack and the containers start vLLM with the same arguments.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.cpu import multiplies_bf16
from services.local_stack.chat_format import ChatFormat, chat_format, own_template
from services.local_stack.errors import SettingsInvalid

AUTO = "auto"

_NO_MEDIA_DOMAIN = "none.invalid"
"""A name that never resolves (RFC 2606): vLLM takes an empty list as leave to fetch from anywhere.
"""


class VllmSettings(BaseSettings):
    """Read from the environment: `FULGURITE_VLLM_*`."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_VLLM_",
        extra="ignore",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    context_length: int = Field(default=2048, ge=1)
    """Longest prompt and answer together, in tokens (`--max-model-len`)."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """GiB of memory for keys and values on the CPU. On a GPU, `gpu_memory_utilization` counts."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes; without it, vLLM's own default."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs over which the model is split."""
    dtype: str = AUTO
    """Type of weights and computation (`--dtype`). `auto` is `bfloat16`, but `float32` on a CPU
    without AVX-512, where bfloat16 is many times slower."""
    chat_template: Path | None = None
    """A chat template instead of the model's own."""
    tool_parser: str = AUTO
    """vLLM's parser of tool calls, such as `hermes` or `llama3_json`. `auto` finds it by the chat
    template; `none` leaves calls in the text."""
    reasoning_parser: str = ""
    """vLLM's parser of reasoning, such as `qwen3`; without it, reasoning is part of the text."""
    fast_logprobs: bool = True
    """Whether the plug-in keeps nothing but the numbers of log-probabilities that only the log
    asked for. `false` leaves vLLM to explain each: the same numbers, and fewer tokens a second."""
    args: str = ""
    """Further arguments of vLLM, as in a shell. The last one of a name counts."""

    @field_validator("chat_template")
    @classmethod
    def _is_a_file(cls, chat_template: Path | None) -> Path | None:
        if chat_template is not None and not chat_template.is_file():
            raise ValueError(f"{chat_template} is not a file")
        return chat_template

    @field_validator("args")
    @classmethod
    def _can_be_split(cls, args: str) -> str:
        shlex.split(args)
        return args

    @classmethod
    def read(cls, given: Mapping[str, object] | None = None) -> VllmSettings:
        """Those of the environment, but for the given ones that are not None; further arguments
        are added. Raises SettingsInvalid.
        """
        try:
            settings = cls()
            known = {name: value for name, value in (given or {}).items() if value is not None}
            known["args"] = f"{settings.args} {known.get('args', '')}".strip()
            return cls.model_validate({**settings.model_dump(), **known})
        except ValidationError as error:
            raise SettingsInvalid(
                "; ".join(
                    f"FULGURITE_VLLM_{str(one['loc'][0]).upper()}={one['input']}: "
                    f"{one['msg'].removeprefix('Value error, ')}"
                    for one in error.errors()
                )
                + " (docs/how-to/your-own-model.md)"
            ) from None

    def arguments(
        self, model: Path, given: Sequence[str] = (), *, on_gpu: bool | None = None
    ) -> list[str]:
        """The arguments for a model, without its name, address and adapters: those that are given,
        what they do not say, and those of `args`.

        `on_gpu`: whether vLLM runs on GPUs; without it, whether there is one.
        """
        on_gpu = has_gpu() if on_gpu is None else on_gpu
        named = {argument.partition("=")[0] for argument in given}
        options = {
            name: value
            for name, value in self._options(model, on_gpu=on_gpu).items()
            if name not in named
        }
        return [
            *given,
            *(name if value is None else f"{name}={value}" for name, value in options.items()),
            *shlex.split(self.args),
        ]

    def _options(self, model: Path, *, on_gpu: bool) -> dict[str, str | None]:
        """Each option with its value; None for a flag."""
        chat = self.chat_format(model)
        options: dict[str, str | None] = {
            "--max-model-len": str(self.context_length),
            "--dtype": self.dtype if self.dtype != AUTO else _usual_dtype(on_gpu=on_gpu),
            # The default, 128, leaves the tail of every prompt out of the prefix cache, and on a
            # CPU the prompt is most of the work.
            "--block-size": "32",
            # Raw logprobs, the default, are not those of the distribution that was sampled from.
            "--logprobs-mode": "processed_logprobs",
            # The model's own sampling defaults would silently truncate what is to be trained on.
            "--generation-config": "vllm",
            "--weight-transfer-config": json.dumps({"backend": "fulgurite"}),
            "--middleware": "services.vllm_plugin.middleware.VersionMiddleware",
            # Agents name the URLs of images: vLLM must not fetch what they choose. Images in the
            # request itself (`data:`) need no domain.
            "--allowed-media-domains": os.environ.get("VLLM_MEDIA_DOMAIN") or _NO_MEDIA_DOMAIN,
            "--logits-processors": "services.vllm_plugin.dictation:Dictation",
            "--disable-uvicorn-access-log": None,
            "--no-enable-log-requests": None,
        }
        if not on_gpu:
            # Compiling takes a minute at the start, and a CPU gains little. On a GPU, CUDA graphs
            # make one stream 14 times faster.
            options["--enforce-eager"] = None
        if "--speculative" in self.args:
            # vLLM has no logits processors then.
            del options["--logits-processors"]
        if self.gpu_memory_utilization is not None:
            options["--gpu-memory-utilization"] = str(self.gpu_memory_utilization)
        if self.tensor_parallel > 1:
            options["--tensor-parallel-size"] = str(self.tensor_parallel)
        if chat.template is not None:
            options["--chat-template"] = str(chat.template.resolve())
        if chat.tool_parser is not None:
            options |= {"--tool-call-parser": chat.tool_parser, "--enable-auto-tool-choice": None}
        if self.reasoning_parser:
            options["--reasoning-parser"] = self.reasoning_parser
        return options

    def chat_format(self, model: Path) -> ChatFormat:
        """The model's own format, but for what is set here."""
        if self.chat_template is not None:
            found = chat_format(self.chat_template.read_text(encoding="utf-8"))
            found = ChatFormat(found.template or self.chat_template, found.tool_parser)
        else:
            found = chat_format(own_template(model))
        parsers = {AUTO: found.tool_parser, "none": None}
        return ChatFormat(found.template, parsers.get(self.tool_parser, self.tool_parser))


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether there is an NVIDIA GPU. A container may have any of the machine's, such as the second
    alone: `nvidia1`.
    """
    return any(devices.glob("nvidia[0-9]*"))


def _usual_dtype(*, on_gpu: bool) -> str:
    return "bfloat16" if on_gpu or multiplies_bf16() else "float32"
