"""Where the runner finds the gateway, and the key that lets it declare rollouts."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class RunnerSettings(BaseSettings):
    """Environment variables with the prefix FULGURITE_."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_", extra="ignore")

    gateway_url: str = "http://127.0.0.1:8080"
    """Root of the gateway, without `/v1`."""
    admin_key: SecretStr = SecretStr("")
    """Bearer key of POST /v1/rollouts."""
    policy: str = "policy"
    """Policy whose versions are counted by `--updates` and `--until-version`."""
    data_dir: Path = Path(".fulgurite/data")
    """Reward workers' logs are written below it, in `logs/`."""
