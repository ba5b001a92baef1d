"""Settings of a service that asks a chat model: its server, the keys, and how long it may take.

The model is asked through the gateway unless the service's `*_BASE_URL` names another server.
"""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.gateway_url import root_of


class ChatSettings(BaseSettings):
    """Settings from the environment. A service's own class gives the prefix of the variables."""

    model_config = SettingsConfigDict(extra="ignore", use_attribute_docstrings=True)

    base_url: str = Field(default="")
    """Server of the model, up to `/v1`; the gateway if unset."""
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
    """Time limit of one answer in seconds."""
    retries: int = Field(default=2, ge=0)
    """How often the model is asked again after a temporary failure."""
    retry_wait_s: float = Field(default=1.0, ge=0)
    """Seconds before the first retry; doubles with each."""
    max_tokens: int = Field(default=2048, ge=1)
    """Length limit of the answer in tokens."""

    @property
    def url(self) -> str:
        """Root of the API, ending in `/v1`."""
        return (self.base_url or root_of(self.gateway_url) + "/v1").rstrip("/")

    @property
    def key_variable(self) -> str:
        """Name of the setting that the key comes from."""
        if self.api_key.get_secret_value() or self.base_url:
            return self.variable("api_key")
        return "FULGURITE_API_KEYS"

    def variable(self, field: str) -> str:
        """Name of the environment variable of a field that has no other name."""
        return (self.model_config.get("env_prefix", "") + field).upper()

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
                f"there is no key for the gateway: set {self.variable('api_key')}, or "
                "FULGURITE_API_KEYS as the gateway has it"
            )
        return first
