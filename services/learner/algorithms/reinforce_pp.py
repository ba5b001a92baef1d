"""REINFORCE++: a credit is compared with the whole batch, token by token.

Source: REINFORCE++ (Hu 2025, arXiv 2501.03262), equation 8: advantages are whitened over all tokens
of the batch. The paper's KL penalty within the reward is here a term of the loss
(`algorithm.kl`). As under every algorithm, groups whose credits are all equal are left out of the
batch (`no_signal`).
"""

from services.learner.algorithms.algorithm import Algorithm

REINFORCE_PP = Algorithm(
    name="reinforce++", loss="vanilla", comparison="batch", ratio_cap=3.0, is_its_ratio=False
)
