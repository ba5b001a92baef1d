"""RLOO: a credit is compared with the mean of the others of its group.

Source: Back to Basics (Ahmadian et al. 2024, arXiv 2402.14740), equation 7. The loss is PPO's
clipped one, as in verl, where the paper's has no ratio.
"""

from services.learner.algorithms.algorithm import Algorithm

RLOO = Algorithm(
    name="rloo",
    loss="vanilla",
    comparison="leave_one_out",
    divides_by_spread=False,
    ratio_cap=3.0,
    is_its_ratio=False,
)
