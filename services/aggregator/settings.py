"""Settings of the aggregator: `FULGURITE_AGGREGATOR_*`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.streaming.worker import StreamSettings


class AggregatorSettings(StreamSettings):
    """Read from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_AGGREGATOR_", extra="ignore", use_attribute_docstrings=True
    )

    silence_s: float = Field(default=300.0, gt=0)
    """Seconds without a call after which undeclared traffic has ended."""
    keep_s: float = Field(default=600.0, ge=0)
    """Seconds that the inputs of a closed episode stay in memory for late calls."""
    keep_mb: float = Field(default=64.0, ge=0)
    """Megabytes of closed episodes that stay in memory, per partition."""
    attempt_mb: float = Field(default=128.0, gt=0)
    """Megabytes that may be held of one attempt. A larger one becomes a dead letter with its
    actions."""
    revisions: int = Field(default=200, ge=1)
    """How often an episode is written again for events after its end. Later events are dead
    letters."""
    remember_attempts: int = Field(default=100_000, ge=0)
    """Groups that left memory and are still known, per partition."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
