"""Settings of the tuner (`FULGURITE_TUNER_*`): the server of its reflection model.

The model is asked through the gateway unless `FULGURITE_TUNER_BASE_URL` names another server.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.gateway_url import root_of


class TunerSettings(BaseSettings):
    """Settings from the environment. The model is given on the command line."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_TUNER_", extra="ignore", use_attribute_docstrings=True
    )

    base_url: str = Field(default="")
    """Server of the reflection model, up to `/v1`; the gateway if unset."""
    api_key: SecretStr = Field(default=SecretStr(""))
    """Key for that server. If unset, the first of FULGURITE_API_KEYS is used for the gateway."""
    gateway_url: str = Field(
        default="http://127.0.0.1:8080", validation_alias="FULGURITE_GATEWAY_URL"
    )
    """Root of the gateway."""
    api_keys: SecretStr = Field(default=SecretStr(""), validation_alias="FULGURITE_API_KEYS")
    """The gateway's plain keys, comma-separated."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Time limit of one answer in seconds."""
    retries: int = Field(default=2, ge=0)
    """How often the model is asked again after a temporary failure."""
    retry_wait_s: float = Field(default=1.0, ge=0)
    """Seconds before the first retry; doubles with each."""
    max_tokens: int = Field(default=4096, ge=1)
    """Length limit of the answer in tokens."""

    @property
    def url(self) -> str:
        """Root of the API, ending in `/v1`."""
        return (self.base_url or root_of(self.gateway_url) + "/v1").rstrip("/")

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
                "the reflection model has no key for the gateway: set FULGURITE_TUNER_API_KEY, or "
                "FULGURITE_API_KEYS as the gateway has it"
            )
        return first
