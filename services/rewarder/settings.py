"""Settings of the rewarder: `FULGURITE_REWARDER_*`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.streaming.worker import StreamSettings
from services.rewarder.closing_settings import ClosingSettings


class RewarderSettings(ClosingSettings, StreamSettings):
    """Read from the environment."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_REWARDER_", extra="ignore", use_attribute_docstrings=True
    )

    orphan_s: float = Field(default=3600.0, ge=0)
    """Seconds that a reward waits for any episode of its group."""
    amend_wait_s: float = Field(default=2.0, ge=0)
    """Seconds that a late event waits for others, so that they are written together."""
    amend_every_s: float = Field(default=60.0, ge=0)
    """Least seconds between two rewrites of a closed group."""
    amend_within_s: float = Field(default=604800.0, ge=0)
    """Seconds back that the log is read for a group no longer in memory."""
    keep_s: float = Field(default=600.0, ge=0)
    """Seconds that a closed group stays in memory completely."""
    keep_mb: float = Field(default=64.0, ge=0)
    """Megabytes of closed groups that stay in memory, per partition."""
    remember_s: float = Field(default=86400.0, ge=0)
    """Seconds that a closed group's revision stays in memory."""
    remember_groups: int = Field(default=50_000, ge=0)
    """Closed groups whose revisions stay in memory, per partition."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
