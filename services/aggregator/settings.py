"""Settings of the aggregator: `FULGURITE_AGGREGATOR_*`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.streaming.worker import StreamSettings


class AggregatorSettings(StreamSettings):
    """Read from the environment."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_AGGREGATOR_", extra="ignore")

    silence_s: float = Field(
        default=300.0,
        gt=0,
        description="Undeclared traffic has ended after this time without a call.",
    )
    keep_s: float = Field(
        default=600.0,
        ge=0,
        description="How long the inputs of a closed episode stay in memory for late calls.",
    )
    keep_mb: float = Field(
        default=64.0,
        ge=0,
        description="How many megabytes of closed episodes stay in memory, per partition.",
    )
    attempt_mb: float = Field(
        default=128.0,
        gt=0,
        description="Megabytes that may be held of an attempt; one that outgrows them is a "
        "dead letter with its actions.",
    )
    revisions: int = Field(
        default=200,
        ge=1,
        description="How often an episode is written anew for what comes after its end; what "
        "comes later still is a dead letter.",
    )
    remember_attempts: int = Field(
        default=100_000,
        ge=0,
        description="How many groups that left memory are known, per partition.",
    )
    log_level: str = "INFO"
