"""Settings of the tuner (`FULGURITE_TUNER_*`): the server of its reflection model."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.chat.settings import ChatSettings


class TunerSettings(ChatSettings):
    """Settings from the environment. The model is given on the command line."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_TUNER_")

    timeout_s: float = Field(default=300.0, gt=0)
    """Time limit of one answer in seconds."""
    max_tokens: int = Field(default=4096, ge=1)
    """Length limit of the answer in tokens."""
