"""Says what this machine's CPU is good at."""

from __future__ import annotations

from pathlib import Path


def multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether matrices of bf16 are multiplied about as fast as those of fp32, or faster.

    With AVX-512 they are. Without it oneDNN has no kernels for them, and what takes their place was
    seven times slower than fp32 on an AMD EPYC of 2021.
    """
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return any("avx512bw" in line.split() for line in lines if line.startswith("flags"))
