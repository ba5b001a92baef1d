"""DPPO: GRPO's comparison; a token is left out where its probability moved too far, rather than its
ratio, which says little of rare tokens.

Source: Rethinking the Trust Region in LLM Reinforcement Learning (Qi et al. 2026, arXiv
2602.04879): `dppo_tv` bounds the total variation of taking the token or not, `dppo_kl` the KL
divergence. The ratio is truncated; section 5.4 asks for a large bound. Section 5.2 recommends
`correction = "bypass"`.
"""

from services.learner.algorithms.algorithm import Algorithm

DPPO_TV = Algorithm(name="dppo_tv", loss="dppo_tv", clip=(0.15, 0.15), ratio_cap=20.0)
DPPO_KL = Algorithm(name="dppo_kl", loss="dppo_kl", clip=(0.05, 0.05), ratio_cap=20.0)
