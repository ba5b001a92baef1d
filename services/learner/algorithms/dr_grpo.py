"""Dr. GRPO: as GRPO, without its two biases: no division by the group's standard deviation, and
tokens weigh the same, whatever their episode's length.

Source: Understanding R1-Zero-Like Training (Liu et al. 2025, arXiv 2503.20783), section 3.
"""

from services.learner.algorithms.algorithm import Algorithm

DR_GRPO = Algorithm(
    name="dr_grpo",
    loss="vanilla",
    divides_by_spread=False,
    episodes_weigh_the_same=False,
    ratio_cap=3.0,
    is_its_ratio=False,
)
