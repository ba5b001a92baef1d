"""Computes in several processes, on several devices and nodes: verl's `RayWorkerGroup`.

Ray is started only here. RAY_ADDRESS names a cluster; without it one is started on this machine,
and ends with the group.
"""

# ray and verl ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from verl.single_controller.ray.base import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

from services.common.runtime import logs
from services.common.runtime.weights_index import write_index
from services.learner.config import RunConfig
from services.learner.engine.worker import ForestWorker
from services.learner.errors import ConfigInvalid, LearnerError, WorkersLost

_CPU_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "services.learner.engine.cpu_platform",
}
"""By which verl finds our CPU platform in a process that only it starts."""

logger = logs.get()


class RayWorkers:
    """The workers of a run. Every method waits for all of them.

    Raises WorkersLost, from any method, if one has failed: the others then wait for it, and none
    can be used any more.
    """

    def __init__(self, config: RunConfig, device: str) -> None:
        """Raises ConfigInvalid where Ray has fewer devices than the run asks for."""
        engine = config.engine
        self.count = engine.worker_count
        self._is_adapter = config.policy.weights.train == "lora"
        self._group: Any = None
        self._started_ray = _start_ray(self.count)
        self._pool = RayResourcePool(
            process_on_nodes=[engine.workers_per_node] * engine.nodes,
            use_gpu=device != "cpu",
            max_colocate_count=1,
        )
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            _require_devices(self.count, "CPU" if device == "cpu" else "GPU")
            self._group = self._waited_for(
                lambda: RayWorkerGroup(
                    self._pool,
                    RayClassWithInitArgs(ray.remote(ForestWorker), config=config, device=device),
                    device_name=device,
                    worker_env=_CPU_ENVIRONMENT if device == "cpu" else {},
                )
            )
            self._waited_for(lambda: self._group.reset())
            on_failure.pop_all()
        logger.info("workers started", workers=self.count, nodes=engine.nodes, device=device)

    def set_loss_fn(self, loss_fn: Callable[..., Any]) -> None:
        """Set the loss of the next batch."""
        self._waited_for(lambda: self._group.set_loss_fn(loss_fn))

    def set_optimizer(
        self, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        """See ForestWorker."""
        self._waited_for(lambda: self._group.set_optimizer(lr, betas, eps, weight_decay))

    def train_batch(self, data: Any) -> Any:
        """Make a step of a batch whose rows are in the order of the workers."""
        return self._waited_for(lambda: self._group.train_batch(data).get())

    def infer_batch(self, data: Any) -> Any:
        """Compute log-probabilities of a batch whose rows are in the order of the workers."""
        return self._waited_for(lambda: self._group.infer_batch(data).get())

    def infer_reference(self, data: Any) -> Any:
        """See ForestWorker."""
        return self._waited_for(lambda: self._group.infer_reference(data).get())

    def export(self, path: Path) -> None:
        """Write the weights: all of a model by all workers at once, a file each, and an index."""
        if self._is_adapter or self.count == 1:
            self._waited_for(lambda: self._group.export(path))
        else:
            shards = self._waited_for(lambda: self._group.export_shard(path.parent))
            write_index(path.parent, shards)

    def save(self, folder: Path) -> None:
        """See ForestWorker."""
        self._waited_for(lambda: self._group.save(folder))

    def begin_to_save(self, folder: Path) -> None:
        """See ForestWorker."""
        self._waited_for(lambda: self._group.begin_to_save(folder))

    def is_saved(self, *, wait: bool = False) -> bool:
        """See ForestWorker; of all of them."""
        return all(self._waited_for(lambda: self._group.is_saved(wait=wait)))

    def load(self, folder: Path) -> None:
        """See ForestWorker."""
        self._waited_for(lambda: self._group.load(folder))

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._group.workers if self._group is not None else ():
            ray.kill(worker)
        for group in self._pool.pgs or ():
            ray.util.remove_placement_group(group)
        if self._started_ray:
            ray.shutdown()

    def _waited_for(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RayTaskError as error:
            if isinstance(error.cause, LearnerError):
                raise error.cause from None
            raise self._lost(error) from error
        except RayError as error:
            raise self._lost(error) from error

    def _lost(self, error: RayError) -> WorkersLost:
        return WorkersLost(
            f"one of {self.count} workers has failed: {error}. The learner starts all of them "
            "again, from the newest checkpoint"
        )


def _require_devices(count: int, kind: str) -> None:
    """Raise ConfigInvalid if Ray has fewer devices: it would wait for the others for ever."""
    found = ray.cluster_resources().get(kind, 0)
    if found < count:
        raise ConfigInvalid(
            f"engine.nodes times engine.workers_per_node = {count}, but Ray has {found:g} {kind}s: "
            "lower them, or add nodes to the cluster (RAY_ADDRESS)"
        )


def _start_ray(workers: int) -> bool:
    """Connect to RAY_ADDRESS, or start Ray here; returns whether it was started."""
    if ray.is_initialized():
        return False
    # Nothing about a run is told to Ray's makers, unless somebody wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    # A worker waits for the others most of the time, so there may be more of them than cores.
    cores = None if address else max(workers, os.cpu_count() or 1)
    ray.init(address=address, num_cpus=cores, include_dashboard=False, log_to_driver=False)
    return not address
