"""Settings of the learner, from the environment (`FULGURITE_*`)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LearnerSettings(BaseSettings):
    """Settings of the loop; those of the trainer are in `TrainerSettings`."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_",
        extra="ignore",
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    policy: str = "policy"
    """The policy that this learner trains."""
    model: Path = Field(...)
    """Hugging Face folder of the base model."""
    data_dir: Path = Path(".fulgurite/data")
    """Folder for checkpoints, and for artifacts, which the backends must see too."""
    topic: str = "trajectories"
    """Topic to train on, without the prefix; another one after a replay."""
    rows_of: str | None = None
    """Another policy, whose trajectories this one learns from (docs/how-to/replay.md). Only with
    another FULGURITE_TOPIC."""
    learner_id: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """Name of this learner in `policy.updates`."""
    groups_per_step: int = Field(default=8, ge=1)
    """Groups in one optimizer step."""
    max_staleness: int = Field(default=8, ge=0)
    """Optimizer steps after which an action is too old to be trained."""
    max_row_tokens: int = Field(default=4096, ge=2)
    """Longest trajectory in tokens; longer ones are `filtered(oversized)`."""
    max_wait_s: float = Field(default=120.0, gt=0)
    """Seconds that complete groups wait before a smaller batch is taken."""
    keep_versions: int = Field(default=4, ge=1)
    """Versions whose weights stay on disk, the newest included. Only these can be routed to.
    Each takes the model's size."""
    permute_rewards: int | None = None
    """Seed of a control experiment that permutes rewards within groups, and must not learn."""
    durable_files: bool = True
    """Wait for the disk when writing checkpoints and artifacts, so that they survive a loss of
    power."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""
