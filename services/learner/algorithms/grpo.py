"""GRPO: a credit is compared with its group's, in standard deviations; PPO's clipped loss.

Source: DeepSeekMath (Shao et al. 2024, arXiv 2402.03300), section 4.1. The bound of a negative
advantage's ratio is dual-clip PPO's (Ye et al. 2019, arXiv 1912.09729).
"""

from services.learner.algorithms.algorithm import Algorithm

GRPO = Algorithm(name="grpo", loss="vanilla", ratio_cap=3.0, is_its_ratio=False)
