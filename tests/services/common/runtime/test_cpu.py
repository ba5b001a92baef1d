"""Which CPUs compute in bf16."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.runtime.cpu import cpu_flags, multiplies_bf16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx avx2 fma", False), ("fpu avx2 avx512f avx512bw", True), ("avx512f", False)],
)
def test_bf16_needs_avx512(tmp_path: Path, flags: str, *, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512bw\n")
    assert multiplies_bf16(cpuinfo) is expected
    assert cpu_flags(cpuinfo) == {*flags.split()}


def test_a_machine_that_does_not_say_is_taken_for_one_without(tmp_path: Path) -> None:
    assert not multiplies_bf16(tmp_path / "nowhere")
    assert not cpu_flags(tmp_path / "nowhere")
