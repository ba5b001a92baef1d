"""How the trainer trains, from the environment; importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    """Prefix FULGURITE_TRAINER_, e.g. FULGURITE_TRAINER_LR=1e-5."""

    model_config = SettingsConfigDict(env_prefix="FULGURITE_TRAINER_", extra="ignore", frozen=True)

    lr: float = Field(default=4e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    dtype: Literal["bf16", "fp32"] = "bf16"
    """In which the model computes; master weights and optimizer are fp32 in either case."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    share_prefixes: bool = True
    """Compute each shared prefix once; False is verl's own row by row, which knows one temperature
    per row.
    """
    max_forest_tokens: int = Field(default=512, ge=2)
    """Nodes in a micro-batch. Larger ones share more, but attention is quadratic in them: on two
    cores, one of 1,917 nodes spent half of its step there. A longer row makes a micro-batch of its
    own.
    """
    policy_loss: str = "vanilla"
    """Name in verl's registry of policy losses."""
    correction: Literal["bypass", "decoupled"] = "bypass"
    """Old log-probabilities: those the engine recorded, or recomputed with truncated importance
    weights between the two.
    """
    is_cap: float = Field(default=2.0, gt=0)
    """`decoupled`: bound of the importance weights."""
    single_row_episodes: bool = False
    """Promise that every episode is one row, which losses over whole sequences need; a batch that
    breaks it is refused.
    """
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.2, gt=0)
    entropy_coef: float = 0.0
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term against the base model, which then stays in memory too."""
    kl_estimator: str = "low_var_kl"
    """Name in verl's `kl_penalty`."""
    drift_alarm_k3: float = Field(default=0.02, gt=0)
    """Mean k3 estimate of KL(engine ‖ trainer) over trained tokens; 0.002 is usual between bf16
    engines.
    """
    drift_stop_k3: float = Field(default=0.2, gt=0)
    drift_alarm_ess: float = Field(default=0.8, ge=0, le=1)
    """Effective sample size of the ratios trainer/engine, as a share of the trained tokens."""
    drift_stop_ess: float = Field(default=0.3, ge=0, le=1)
