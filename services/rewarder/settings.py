"""Settings of the rewarder (`FULGURITE_REWARDER_*`) and of reward workers (`FULGURITE_REWARD_WORKER_*`)."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.closing_settings import ClosingSettings
from services.rewarder.sandbox import LOAD_TIMEOUT_S, Limits
from services.streams import StreamSettings


class RewarderSettings(ClosingSettings, StreamSettings):
    """Read from the environment."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_REWARDER_", extra="ignore")

    orphan_s: float = Field(default=3600.0, ge=0, description="How long a reward waits for any episode of its group.")
    amend_wait_s: float = Field(default=2.0, ge=0, description="How long what comes late waits for what comes with it.")
    amend_every_s: float = Field(default=60.0, ge=0, description="How often a closed group is written anew, at most.")
    amend_within_s: float = Field(default=604800.0, ge=0, description="How far back the log is read for a group no longer in memory.")
    keep_s: float = Field(default=600.0, ge=0, description="How long a closed group stays in memory whole.")
    keep_mb: float = Field(default=64.0, ge=0, description="How many megabytes of closed groups stay in memory, per partition.")
    remember_s: float = Field(default=86400.0, ge=0, description="How long a closed group's revision stays in memory.")
    remember_groups: int = Field(default=50_000, ge=0, description="How many closed groups' revisions stay in memory, per partition.")
    log_level: str = "INFO"


class RewardWorkerSettings(BaseSettings):
    """Read from the environment; the command line says which function."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_REWARD_WORKER_", extra="ignore")

    concurrency: int = Field(default=8, ge=1, description="How many episodes are judged at once.")
    timeout_s: float = Field(default=30.0, gt=0, description="Time limit of one judgement.")
    load_timeout_s: float = Field(default=LOAD_TIMEOUT_S, gt=0, description="Time limit of importing the function.")
    memory_mb: int = Field(default=2048, ge=0, description="MiB that a function may take beyond what importing it took; 0: no limit.")
    session_timeout_s: float = Field(default=10.0, gt=0, description="A dead worker's partitions move to others after this time.")
    log_level: str = "INFO"

    def limits(self) -> Limits:
        """Of the function."""
        return Limits(processes=self.concurrency, timeout_s=self.timeout_s, memory_mb=self.memory_mb, load_timeout_s=self.load_timeout_s)
