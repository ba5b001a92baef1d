"""What the trainer needs of whoever computes, on however many devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from services.learner.config import RunConfig


class Workers(Protocol):
    """One or more workers, which hold the weights and the optimizer together.

    A batch is verl's TensorDict. Its rows are in the order of the workers, the same number for
    each, and so are those of a result.
    """

    def set_loss_fn(self, loss_fn: Callable[..., Any]) -> None:
        """Set the loss of the next batch."""
        ...

    def set_optimizer(
        self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """Set what the next step is made with."""
        ...

    def train_batch(self, data: Any) -> Any:
        """Make a step; its metrics have an `error` where it was refused."""
        ...

    def infer_batch(self, data: Any) -> Any:
        """Compute the log-probabilities of a batch."""
        ...

    def infer_reference(self, data: Any) -> Any:
        """Compute the log-probabilities of a batch by the base model."""
        ...

    def export(self, path: Path) -> None:
        """Write the weights as safetensors, or in several files beside with an index."""
        ...

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and random state."""
        ...

    def begin_to_save(self, folder: Path) -> None:
        """Begin what `save` does with what is there now, and return; one at a time."""
        ...

    def is_saved(self, *, wait: bool = False) -> bool:
        """Whether the last `begin_to_save` has ended; `wait` for it. Raises what it raised."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, of any number of workers. Raises CheckpointForeign."""
        ...

    def close(self) -> None:
        """End what was started for the run."""
        ...


def start_workers(config: RunConfig, device: str) -> Workers:
    """Start what the run asks for, with the model loaded. Raises ConfigInvalid, WorkersLost."""
    if config.engine.placement == "ray":
        from services.learner.backends.ray_group import RayWorkers

        return RayWorkers(config, device)
    from services.learner.backends.process import start_in_process

    return start_in_process(config, device)
