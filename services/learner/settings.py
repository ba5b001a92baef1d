"""Settings of the learner, from the environment (`FULGURITE_*`)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LearnerSettings(BaseSettings):
    """Where a learner runs; what it trains and how is in `services.learner.config`."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_", extra="ignore", use_attribute_docstrings=True
    )

    run: Path | None = None
    """File that describes the training run ([Training runs](runs.md)); its keys may also be set by
    variables."""
    data_dir: Path = Path(".fulgurite/data")
    """Folder for checkpoints, and for artifacts, which the backends must see too."""
    learner_id: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Name of this learner in `policy.updates`."""
    durable_files: bool = True
    """Wait for the disk when writing checkpoints and artifacts, so that they survive a loss of
    power."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
