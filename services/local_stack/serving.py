"""Decides how one vLLM serves the policies of a run's file, or why it cannot.

With full weights vLLM serves one policy, since an update replaces the weights. LoRA policies share
a base model, and each is an adapter beside it; a frozen policy is an adapter that gets no updates,
and so the base model until it has a version.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from services.learner.config import PolicyConfig, RunConfig
from services.local_stack.errors import PoliciesConflict

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """What one vLLM serves."""

    model: Path
    """The model that vLLM starts with."""
    policies: tuple[str, ...]
    """All of them, in the file's order."""
    trained: tuple[str, ...]
    """Policies that have a learner."""
    adapters: tuple[str, ...] = ()
    """Policies served as LoRA adapters; empty if the one policy has full weights."""
    rank: int = 0
    """Largest rank of an adapter."""

    @property
    def policy(self) -> str:
        """For FULGURITE_POLICY: the name that vLLM serves its model by, and that a run follows."""
        return next(iter(self.trained or self.policies))

    @property
    def frozen(self) -> tuple[str, ...]:
        """Policies that have no learner."""
        return tuple(name for name in self.policies if name not in self.trained)

    def arguments(self) -> list[str]:
        """For vLLM."""
        if not self.adapters:
            return []
        return [
            "--enable-lora",
            f"--max-lora-rank={next(rank for rank in RANKS if rank >= self.rank)}",
            # While a version replaces another one, calls in flight need both.
            f"--max-loras={2 * len(self.adapters)}",
            # The applier keeps three versions of each loaded, and loads what routes name.
            f"--max-cpu-loras={5 * len(self.adapters)}",
        ]

    def vllm_environment(self) -> dict[str, str]:
        """Variables of vLLM's process."""
        return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if self.adapters else {}

    def environment(self) -> dict[str, str]:
        """Variables of our services."""
        return {
            "FULGURITE_POLICY": self.policy,
            "FULGURITE_MODEL": str(self.model),
            **({"FULGURITE_LORA_POLICIES": ",".join(self.adapters)} if self.adapters else {}),
            **(
                {"FULGURITE_REWARDER_FROZEN_POLICIES": ",".join(self.frozen)} if self.frozen else {}
            ),
        }


def plan_serving(runs: Sequence[RunConfig]) -> Serving:
    """How one vLLM serves these policies. Raises PoliciesConflict."""
    policies = [run.policy for run in runs]
    models = {policy.model for policy in policies}
    full = [one for one in policies if one.weights.train == "full" and not one.frozen]
    if len(models) > 1:
        raise PoliciesConflict(
            f"the policies have several base models ({_listed(policies, 'model')}), and one vLLM "
            "serves one: give them the same policy.model, or start a stack for each"
        )
    if full and len(policies) > 1:
        raise PoliciesConflict(
            f"{full[0].name} trains all weights, and a new version of it replaces those that "
            f"{', '.join(one.name for one in policies if one is not full[0])} would be served "
            'with: train adapters (weights = { train = "lora" }), or start a stack for each '
            "policy of full weights"
        )
    ranks = [one.weights.rank for one in policies if one.weights.train == "lora"]
    if max(ranks, default=1) > RANKS[-1]:
        raise PoliciesConflict(
            f"an adapter has rank {max(ranks)}, and vLLM serves up to {RANKS[-1]}: lower "
            "policy.weights.rank"
        )
    is_alone_and_full = len(policies) == 1 and not ranks
    return Serving(
        model=policies[0].model,
        policies=tuple(one.name for one in policies),
        trained=tuple(one.name for one in policies if not one.frozen),
        adapters=() if is_alone_and_full else tuple(one.name for one in policies),
        rank=max(ranks, default=1),
    )


def _listed(policies: Sequence[PolicyConfig], key: str) -> str:
    return ", ".join(f"{one.name}: {getattr(one, key)}" for one in policies)
