"""SAPO: GRPO's comparison; a smooth gate around ratio 1 in the place of the clip.

Source: Soft Adaptive Policy Optimization (Gao et al. 2025, arXiv 2511.20347). verl averages it over
sequences whatever else is said, so an episode must be one row.
"""

from services.learner.algorithms.algorithm import Algorithm

SAPO = Algorithm(name="sapo", loss="sapo", whole_sequences=True, clip=None)
