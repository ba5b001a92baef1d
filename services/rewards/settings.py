"""Settings of reward workers: `FULGURITE_REWARD_WORKER_*`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.rewards.sandbox import LOAD_TIMEOUT_S, Limits


class RewardWorkerSettings(BaseSettings):
    """Read from the environment; the command line says which function."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_REWARD_WORKER_", extra="ignore")

    concurrency: int = Field(default=8, ge=1, description="How many episodes are judged at once.")
    timeout_s: float = Field(default=30.0, gt=0, description="Time limit of one judgement.")
    load_timeout_s: float = Field(
        default=LOAD_TIMEOUT_S, gt=0, description="Time limit of importing the function."
    )
    memory_mb: int = Field(
        default=2048,
        ge=0,
        description="MiB that a function may take beyond what importing it took; 0: no limit.",
    )
    session_timeout_s: float = Field(
        default=10.0, gt=0, description="A dead worker's partitions move to others after this time."
    )
    log_level: str = "INFO"

    def limits(self) -> Limits:
        """Of the function."""
        return Limits(
            processes=self.concurrency,
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
            load_timeout_s=self.load_timeout_s,
        )
