"""Losses of offline training: verl's SFT loss with a weight for each token, and DPO's, which verl
does not have.

The gradient of any loss of log-probabilities is a weighted sum of their gradients. So DPO is
trained in two passes: its loss gives each episode a weight, and the weighted SFT loss is trained. A
pair need not be in one micro-batch then, however many rows its episodes have.
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch.nn.functional import logsigmoid
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode
from verl.workers.utils.losses import sft_loss

from services.learner.objective import dense_rows


def weighted_sft_loss(
    model_output: Any, data: Any, dp_group: Any = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the negative sum of weight times log-probability over the trained tokens of a
    micro-batch, for verl.
    """
    longest = int(data["input_ids"].offsets().diff().max())
    weighted = dense_rows(model_output["log_probs"], longest=longest) * dense_rows(
        data["weights"], longest=longest
    )
    # verl divides by the number of tokens; here that is part of the weights.
    batch = tu.get_tensordict(
        {"response_mask": dense_rows(data["loss_mask"], longest=longest)},
        {
            "pad_mode": DatasetPadMode.RIGHT,
            "dp_size": tu.get_non_tensor_data(data, "dp_size", 1),
            "batch_num_tokens": 1,
        },
    )
    loss, _ = sft_loss(cast("Any", None), {"log_probs": weighted}, batch)
    return loss, {}


class Preferences(NamedTuple):
    """The loss of pairs, and how it changes with the log-probability of each episode."""

    loss: float
    margin: float
    """Mean over the pairs of how much more the chosen episode is preferred than by the reference:
    beta times the difference of the two log-ratios.
    """
    accuracy: float
    """Share of the pairs whose margin is above 0."""
    slopes: list[tuple[float, float]]
    """Derivatives of the loss, for the chosen and the rejected episode of each pair."""


def dpo_loss(
    logprobs_P2: torch.Tensor, reference_P2: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute DPO's loss, the mean over P pairs, and their margins (P,).

    The log-probabilities (P, 2) are of the chosen and the rejected continuation. Source: Direct
    Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290), equation 7.
    """
    ratios_P2 = logprobs_P2 - reference_P2
    margins_P = beta * (ratios_P2[:, 0] - ratios_P2[:, 1])
    return -logsigmoid(margins_P).mean(), margins_P


def preferences(
    logprobs: list[tuple[float, float]], reference: list[tuple[float, float]], beta: float
) -> Preferences:
    """Compare the log-probabilities of pairs (chosen, rejected) with those of the reference."""
    logprobs_P2 = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    loss, margins_P = dpo_loss(logprobs_P2, torch.tensor(reference, dtype=torch.float64), beta)
    (slopes_P2,) = torch.autograd.grad(loss, logprobs_P2)
    return Preferences(
        loss=float(loss.detach()),
        margin=float(margins_P.detach().mean()),
        accuracy=float((margins_P.detach() > 0).double().mean()),
        slopes=[(float(chosen), float(rejected)) for chosen, rejected in slopes_P2.tolist()],
    )
