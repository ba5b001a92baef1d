"""Settings of the judge (`FULGURITE_JUDGE_*`)."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class JudgeSettings(BaseSettings):
    """Read from the environment; the command line says which model and which rubric."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_JUDGE_", extra="ignore")

    base_url: str = Field(default="http://127.0.0.1:8080/v1", description="Where the model is asked: the gateway, or another server.")
    api_key: SecretStr = Field(default=SecretStr(""), description="One of FULGURITE_API_KEYS, or the other server's; no rollout's key.")
    timeout_s: float = Field(default=120.0, gt=0, description="Time limit of one question.")
    retries: int = Field(default=2, ge=0, description="How often a question that failed in passing is asked again.")
    retry_wait_s: float = Field(default=1.0, ge=0, description="Wait before the first of them; it doubles with each.")
    concurrency: int = Field(default=4, ge=1, description="How many groups are judged at once.")
    max_characters: int = Field(default=20_000, ge=200, description="Shown of a trajectory; the middle of a longer one is left out.")
    max_tokens: int = Field(default=2048, ge=1, description="Length limit of the answer.")
    temperature: float | None = Field(default=None, ge=0, description="Of the answer; unset: the model's own.")
    grace_s: float = Field(default=30.0, ge=0, description="After a group's deadline, how long to wait for episodes.")
    session_timeout_s: float = Field(default=10.0, gt=0, description="A dead judge's partitions move to others after this time.")
    log_level: str = "INFO"
