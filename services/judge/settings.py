"""Settings of the judge (`FULGURITE_JUDGE_*`), and where the gateway is, which it asks unless told
otherwise.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.gateway_url import root_of


class JudgeSettings(BaseSettings):
    """Read from the environment; the command line says which model and which rubric."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_JUDGE_", extra="ignore")

    base_url: str = Field(
        default="", description="Where the model is asked, up to `/v1`; unset: the gateway."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        description="Its key, no rollout's; unset, the gateway's: the first of FULGURITE_API_KEYS.",
    )
    gateway_url: str = Field(
        default="http://127.0.0.1:8080",
        validation_alias="FULGURITE_GATEWAY_URL",
        description="Root of the gateway.",
    )
    api_keys: SecretStr = Field(
        default=SecretStr(""),
        validation_alias="FULGURITE_API_KEYS",
        description="The gateway's plain keys, comma-separated.",
    )
    timeout_s: float = Field(default=120.0, gt=0, description="Time limit of one question.")
    retries: int = Field(
        default=2, ge=0, description="How often a question that failed in passing is asked again."
    )
    retry_wait_s: float = Field(
        default=1.0, ge=0, description="Wait before the first of them; it doubles with each."
    )
    concurrency: int = Field(default=4, ge=1, description="How many groups are judged at once.")
    max_characters: int = Field(
        default=20_000,
        ge=200,
        description="Shown of a trajectory; the middle of a longer one is left out.",
    )
    max_tokens: int = Field(default=2048, ge=1, description="Length limit of the answer.")
    temperature: float | None = Field(
        default=None, ge=0, description="Of the answer; unset: the model's own."
    )
    grace_s: float = Field(
        default=30.0, ge=0, description="After a group's deadline, how long to wait for episodes."
    )
    session_timeout_s: float = Field(
        default=10.0, gt=0, description="A dead judge's partitions move to others after this time."
    )
    log_level: str = "INFO"

    @property
    def url(self) -> str:
        """The API's root, `.../v1`."""
        return (self.base_url or root_of(self.gateway_url) + "/v1").rstrip("/")

    @property
    def key_variable(self) -> str:
        """Where the key comes from."""
        return (
            "FULGURITE_JUDGE_API_KEY"
            if self.api_key.get_secret_value() or self.base_url
            else "FULGURITE_API_KEYS"
        )

    def key(self) -> str:
        """What the model is asked with. Never one of the gateway's elsewhere. Raises ValueError
        where the gateway would ask for one.
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
