"""Settings of the runner: the gateway, its admin key, and the folder for logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime.gateway_url import root_of


class RunnerSettings(BaseSettings):
    """Environment variables with the prefix FULGURITE_."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_", extra="ignore", use_attribute_docstrings=True
    )

    gateway_url: Annotated[str, AfterValidator(root_of)] = "http://127.0.0.1:8080"
    """Root of the gateway; `/v1` at its end is removed."""
    admin_key: SecretStr = SecretStr("")
    """Bearer key of `POST /v1/rollouts`."""
    policy: str = "policy"
    """Policy whose versions `--updates` and `--until-version` count."""
    data_dir: Path = Path(".fulgurite/data")
    """Folder in whose `logs/` the reward workers' logs are written."""
