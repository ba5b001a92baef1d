"""GSPO: GRPO's comparison, with one ratio per sequence instead of one per token.

Source: Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071). The paper's clips
are far narrower than PPO's, for a sequence's ratio is a geometric mean.
"""

from services.learner.algorithms.algorithm import Algorithm

GSPO = Algorithm(name="gspo", loss="gspo", whole_sequences=True, clip=(3e-4, 4e-4))
