"""Registers a CPU platform with verl, so that its FSDP2 engine runs without an accelerator.

`select(device)` must run before any module of verl is imported that asks for the platform. Worker
processes of a cluster need VERL_PLATFORM=cpu and
VERL_USE_EXTERNAL_MODULES=services.learner.engine.cpu_platform in their environment.
"""

# verl ships no usable annotations for its platforms.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry, get_platform


class _CpuDevice(ModuleType):
    """The functions of a `torch.<device>` module that verl calls. Memory figures are 0."""

    def __init__(self) -> None:
        super().__init__("torch_cpu_for_verl")

    def is_available(self) -> bool:
        return True

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device: object) -> None: ...

    def synchronize(self, device: object = None) -> None: ...

    def empty_cache(self) -> None: ...

    def ipc_collect(self) -> None: ...

    def reset_peak_memory_stats(self, device: object = None) -> None: ...

    def memory_allocated(self, device: object = None) -> int:
        return 0

    def memory_reserved(self, device: object = None) -> int:
        return 0

    def max_memory_allocated(self, device: object = None) -> int:
        return 0

    def max_memory_reserved(self, device: object = None) -> int:
        return 0

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return 0, 0

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


_DEVICE = _CpuDevice()


@PlatformRegistry.register(platform="cpu")
class PlatformCpu(PlatformBase):
    """Tells verl that there is no accelerator, and to use the host."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never detected: a machine with a GPU has a CPU too.
        return False

    def current_device(self) -> Any:
        # verl passes this to `.to(...)`, where an index would mean an accelerator.
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "FULGURITE_NO_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Generator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "CPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None


def select(device: str) -> str:
    """Choose verl's platform for this process ("auto", "cpu" or "cuda") and return it.

    Raises RuntimeError if verl has chosen another already.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if chosen == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"
    elif os.environ.get("VERL_PLATFORM") == "cpu":
        del os.environ["VERL_PLATFORM"]
    if (settled := get_platform().device_name) != chosen:
        raise RuntimeError(
            f"verl already runs on {settled} in this process and cannot change to {chosen}: call "
            "`select` before importing verl"
        )
    return chosen
