"""Rows of groups, as a run with the defaults trains them."""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.learning.batching import BatchGroup
from services.learner.config import RunConfig
from services.learner.rows import advantages, mini_batches
from services.learner.train_row import TrainRow


def train_rows(groups: Sequence[BatchGroup]) -> list[TrainRow]:
    """All rows of a batch of one mini-batch."""
    config = RunConfig.model_validate({"policy": {"model": "model"}})
    parts = mini_batches(groups, advantages(groups, config), config, 1) if groups else []
    return [row for _, rows in parts for row in rows]
