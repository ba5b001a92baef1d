"""Decides whether the local stack's vLLM runs on GPUs, and how it shares them with the learner.

vLLM's CUDA build is in an environment of its own, `.venv-serve-gpu`, which `make install-gpu`
makes. The learner takes a GPU by itself where it sees one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from services.local_stack.errors import RequirementMissing

SHARE_OF_ONE = 0.4
"""What vLLM takes of the only GPU: by itself it takes nine tenths, and leaves too little to train.
"""

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Devices(msgspec.Struct, frozen=True):
    """Where engine and learner run."""

    on_gpu: bool
    """Whether vLLM runs on GPUs."""
    arguments: tuple[str, ...] = ()
    """For vLLM."""
    vllm: dict[str, str] = {}
    """Variables of vLLM's process."""
    learner: dict[str, str] = {}
    """Variables of the learners' processes."""


def plan_devices(
    gpus: Sequence[str],
    *,
    is_cuda_build: bool,
    tensor_parallel: int = 1,
    utilization: float | None = None,
) -> Devices:
    """Give vLLM the first of the GPUs, and the learner the others; where none is left, both share.

    `gpus`: as CUDA_VISIBLE_DEVICES names them. `utilization`: the share that a user set.
    """
    if not gpus or not is_cuda_build:
        return Devices(on_gpu=False)
    # Without the compiler that FlashInfer needs, vLLM's own sampler runs.
    variables = {"VLLM_USE_FLASHINFER_SAMPLER": "0", _VISIBLE: ",".join(gpus[:tensor_parallel])}
    rest = gpus[tensor_parallel:]
    if rest:
        return Devices(on_gpu=True, vllm=variables, learner={_VISIBLE: ",".join(rest)})
    share = () if utilization is not None else (f"--gpu-memory-utilization={SHARE_OF_ONE}",)
    return Devices(on_gpu=True, arguments=share, vllm=variables)


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The NVIDIA GPUs of this machine, or those of them that CUDA_VISIBLE_DEVICES names."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return []
    done = subprocess.run([nvidia_smi, "--list-gpus"], capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    if done.returncode != 0 or not found:
        return []
    named = environment.get(_VISIBLE)
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    return [str(number) for number in range(len(found))]


def serve_environment(project: Path, *, has_gpu: bool) -> Path:
    """The virtual environment that holds vLLM. Raises RequirementMissing.

    FULGURITE_SERVE_ENV names it; without it, the CUDA build's where there are a GPU and that build.
    """
    named = os.environ.get("FULGURITE_SERVE_ENV")
    cuda = project / ".venv-serve-gpu"
    if named:
        folder = Path(named)
    else:
        folder = cuda if has_gpu and _is_environment(cuda) else project / ".venv-serve"
    if not _is_environment(folder):
        raise RequirementMissing(
            f"{folder} is not there: `make install` installs vLLM in it, or set VLLM_BASE_URL "
            "to a vLLM of your own"
        )
    return folder


def is_cuda_build(environment: Path) -> bool:
    """Whether an environment's vLLM is not the CPU build, which is another distribution."""
    packages = environment.glob("lib/python3*/site-packages/vllm*.dist-info")
    return any(package.name.startswith("vllm-") for package in packages)


def _is_environment(folder: Path) -> bool:
    return (folder / "bin" / "python").exists()
