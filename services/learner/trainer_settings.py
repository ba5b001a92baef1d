"""Settings of the trainer, from the environment. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    """Settings with the prefix FULGURITE_TRAINER_, for example FULGURITE_TRAINER_LR=1e-5."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_TRAINER_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    lr: float = Field(default=4e-5, gt=0)
    """Learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Type that the model computes in: `bf16` or `fp32`. Master weights and optimizer are fp32
    either way."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto`, which takes a GPU if there is one."""
    seed: int = 0
    """Seed of initialisation and order."""
    share_prefixes: bool = True
    """Compute each shared prefix once. If off, trajectories are computed one by one, as verl
    does, at one temperature each."""
    max_forest_tokens: int = Field(default=512, ge=2)
    """Tokens in a micro-batch. Larger ones share more, but attention is quadratic in them: on
    two cores, 1,917 tokens spent half of a step there. A longer trajectory makes a
    micro-batch of its own."""
    policy_loss: str = "vanilla"
    """Name in verl's registry of policy losses."""
    correction: Literal["bypass", "decoupled"] = "bypass"
    """Old log-probabilities: `bypass` takes those that the engine recorded; `decoupled`
    recomputes them, with truncated importance weights between the two."""
    is_cap: float = Field(default=2.0, gt=0)
    """Bound of the importance weights of `decoupled`."""
    single_row_episodes: bool = False
    """Promise that every episode is one trajectory, as losses over whole sequences need. A batch
    that breaks it is refused."""
    clip_low: float = Field(default=0.2, gt=0)
    """Lower clip range of the ratio."""
    clip_high: float = Field(default=0.2, gt=0)
    """Upper clip range of the ratio."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL term against the base model, which then stays in memory too."""
    kl_estimator: str = "low_var_kl"
    """Name in verl's `kl_penalty`."""
    drift_alarm_k3: float = Field(default=0.02, gt=0)
    """Mean k3 estimate of KL(engine ‖ trainer) over trained tokens, above which the learner
    warns. 0.002 is usual between bf16 engines."""
    drift_stop_k3: float = Field(default=0.2, gt=0)
    """The same estimate, above which no update is made and the learner stops."""
    drift_alarm_ess: float = Field(default=0.8, ge=0, le=1)
    """Effective sample size of the ratios trainer/engine, as a share of the trained tokens,
    below which the learner warns."""
    drift_stop_ess: float = Field(default=0.3, ge=0, le=1)
    """The same share, below which no update is made and the learner stops."""
