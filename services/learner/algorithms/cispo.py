"""CISPO: GRPO's comparison; the ratio is clipped as a weight, so that no token loses its gradient.

Source: MiniMax-M1 (Chen et al. 2025, arXiv 2506.13585), equation 4. The paper has no lower bound,
hence 1.
"""

from services.learner.algorithms.algorithm import Algorithm

CISPO = Algorithm(name="cispo", loss="cispo", clip=(1.0, 0.28))
