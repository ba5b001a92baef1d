"""Settings of reward workers (`FULGURITE_REWARD_WORKER_*`)."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.rewards.sandbox import LOAD_TIMEOUT_S, Limits


class RewardWorkerSettings(BaseSettings):
    """Settings from the environment. The function is given on the command line."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_REWARD_WORKER_", extra="ignore", use_attribute_docstrings=True
    )

    concurrency: int = Field(default=8, ge=1)
    """Episodes that are scored at once, each in a process of its own."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Time limit of one score in seconds."""
    load_timeout_s: float = Field(default=LOAD_TIMEOUT_S, gt=0)
    """Time limit of importing the function in seconds."""
    memory_mb: int = Field(default=2048, ge=0)
    """Memory limit per process in MiB, on top of the function's imports; 0 is no limit."""
    session_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds after which the partitions of a dead worker move to others."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    def limits(self) -> Limits:
        """The limits of the function."""
        return Limits(
            processes=self.concurrency,
            timeout_s=self.timeout_s,
            memory_mb=self.memory_mb,
            load_timeout_s=self.load_timeout_s,
        )
