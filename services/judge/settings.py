"""Settings of the judge (`FULGURITE_JUDGE_*`), and the address and keys of the gateway.

The judge asks through the gateway unless `FULGURITE_JUDGE_BASE_URL` names another server.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.gateway_url import root_of


class JudgeSettings(BaseSettings):
    """Settings from the environment. Model and rubric are given on the command line."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_JUDGE_", extra="ignore", use_attribute_docstrings=True
    )

    base_url: str = Field(default="")
    """Server of the judging model, up to `/v1`; the gateway if unset."""
    api_key: SecretStr = Field(default=SecretStr(""))
    """Key for that server, never a rollout's key. If unset, the first of FULGURITE_API_KEYS is
    used for the gateway."""
    gateway_url: str = Field(
        default="http://127.0.0.1:8080", validation_alias="FULGURITE_GATEWAY_URL"
    )
    """Root of the gateway."""
    api_keys: SecretStr = Field(default=SecretStr(""), validation_alias="FULGURITE_API_KEYS")
    """The gateway's plain keys, comma-separated."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Time limit of one question in seconds."""
    retries: int = Field(default=2, ge=0)
    """How often a question is asked again after a temporary failure."""
    retry_wait_s: float = Field(default=1.0, ge=0)
    """Seconds before the first retry; doubles with each."""
    concurrency: int = Field(default=4, ge=1)
    """Groups that are judged at once."""
    max_characters: int = Field(default=20_000, ge=200)
    """Characters shown of a trajectory; the middle of a longer one is left out."""
    max_tokens: int = Field(default=2048, ge=1)
    """Length limit of the answer in tokens."""
    temperature: float | None = Field(default=None, ge=0)
    """Temperature of the answer; the model's own if unset."""
    grace_s: float = Field(default=30.0, ge=0)
    """Seconds after a group's deadline to wait for episodes."""
    live_wait_s: float = Field(default=120.0, ge=0)
    """Seconds after the end of a live episode in which somebody may vote, before it is judged. The
    score is trained if it comes before FULGURITE_REWARDER_LIVE_WAIT_S."""
    session_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds after which the partitions of a dead judge move to others."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    @property
    def url(self) -> str:
        """Root of the API, ending in `/v1`."""
        return (self.base_url or root_of(self.gateway_url) + "/v1").rstrip("/")

    @property
    def key_variable(self) -> str:
        """Name of the setting that the key comes from."""
        return (
            "FULGURITE_JUDGE_API_KEY"
            if self.api_key.get_secret_value() or self.base_url
            else "FULGURITE_API_KEYS"
        )

    def key(self) -> str:
        """The key for the model's server. A key of the gateway is never sent to another server.

        Raises ValueError if the gateway is asked and no key is set.
        """
        given = self.api_key.get_secret_value()
        if given or self.base_url:
            return given
        first = self.api_keys.get_secret_value().split(",")[0].strip()
        if not first:
            raise ValueError(
                "the judge has no key for the gateway: set FULGURITE_JUDGE_API_KEY, or "
                "FULGURITE_API_KEYS as the gateway has it"
            )
        return first
