"""Settings of the judge (`FULGURITE_JUDGE_*`)."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.chat.settings import ChatSettings


class JudgeSettings(ChatSettings):
    """Settings from the environment. Model and rubric are given on the command line."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_JUDGE_")

    concurrency: int = Field(default=4, ge=1)
    """Groups that are judged at once."""
    max_characters: int = Field(default=20_000, ge=200)
    """Characters shown of a trajectory; the middle of a longer one is left out."""
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
