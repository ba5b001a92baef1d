"""Says what this machine's CPU is good at.

It uses only the standard library: `make doctor` needs it before anything is installed.
"""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The flags of the first core; none where the machine does not say."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next(
        (frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")),
        frozenset[str](),
    )


def multiplies_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether matrices of bf16 are multiplied about as fast as those of fp32, or faster.

    With AVX-512 they are. Without it oneDNN has no kernels for them, and what takes their place was
    seven times slower than fp32 on an AMD EPYC of 2021.
    """
    return "avx512bw" in cpu_flags(cpuinfo)
