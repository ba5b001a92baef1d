"""Settings of the applier, from the environment: `FULGURITE_*` and `VLLM_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.backends import one_backend


class ApplierSettings(BaseSettings):
    """Settings of one applier for one backend."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_",
        populate_by_name=True,
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    vllm_base_url: str = Field("http://127.0.0.1:8000", validation_alias="VLLM_BASE_URL")
    """vLLM's address, without `/v1`; of several, the one named FULGURITE_BACKEND. vLLM must run
    with VLLM_SERVER_DEV_MODE=1 and the weight-transfer backend `fulgurite`."""
    vllm_api_key: SecretStr | None = Field(None, validation_alias="VLLM_API_KEY")
    """Needed if vLLM was started with `--api-key`."""
    policy: str = "policy"
    """Name of the policy whose weights the engine was started with, which is also the name that
    vLLM serves it by."""
    backend: str = "vllm"
    """The backend of VLLM_BASE_URL that this applier serves; its name in events where the
    address has none."""
    lora_policies: str = ""
    """Policies, comma-separated, whose updates are LoRA adapters. vLLM then needs
    `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1. FULGURITE_POLICY may be one of them: its
    base weights stay as they are."""
    canary: bool = Field(default=False, validation_alias="FULGURITE_APPLIER_CANARY")
    """While a route splits an alias between versions, serve the one with the second greatest
    share."""
    model: Path | None = None
    """Folder of the base model. With it a failed first update, or a route to `policy@0.0`, can
    be undone without a restart."""
    probe_tolerance: float = Field(0.15, gt=0, validation_alias="FULGURITE_APPLIER_PROBE_TOLERANCE")
    """Largest mean absolute difference of the probe's log-probabilities, in nats. Two bf16
    implementations differ by 0.025. `probe_error` in `policy.applied` is the difference of
    the worst token and may be larger."""
    check_interval_s: float = Field(
        1.0, gt=0, validation_alias="FULGURITE_APPLIER_CHECK_INTERVAL_S"
    )
    """Seconds between two checks of the version that the engine serves: a restart is noticed
    within this time. Updates do not wait for it."""
    engine_timeout_s: float = Field(
        300.0, gt=0, validation_alias="FULGURITE_APPLIER_ENGINE_TIMEOUT_S"
    )
    """Longest wait for one answer of the engine in seconds, loading included."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    @model_validator(mode="after")
    def _find_backend(self) -> Self:
        self.backend, self.vllm_base_url = one_backend(self.vllm_base_url, self.backend)
        return self

    def adapters(self) -> tuple[str, ...]:
        """The policies whose updates are LoRA adapters."""
        return tuple(filter(None, (name.strip() for name in self.lora_policies.split(","))))
