"""The algorithms by name, a file each; losses and their arithmetic are verl's.

Importable without torch: what goes together is checked before anything heavy is loaded.
"""

from __future__ import annotations

from services.learner.algorithms.algorithm import Algorithm
from services.learner.algorithms.cispo import CISPO
from services.learner.algorithms.dppo import DPPO_KL, DPPO_TV
from services.learner.algorithms.dr_grpo import DR_GRPO
from services.learner.algorithms.grpo import GRPO
from services.learner.algorithms.gspo import GSPO
from services.learner.algorithms.reinforce_pp import REINFORCE_PP
from services.learner.algorithms.rloo import RLOO
from services.learner.algorithms.sapo import SAPO

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        GRPO,
        DR_GRPO,
        RLOO,
        REINFORCE_PP,
        GSPO,
        CISPO,
        DPPO_TV,
        DPPO_KL,
        SAPO,
    )
}
