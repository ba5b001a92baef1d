"""Writes the pages of results that are checked in."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.common.runtime.cpu import multiplies_bf16


def opening(title: str, made_by: str, head: str) -> list[str]:
    """The first lines: what was measured, when and on what machine, and the head of the table.

    `made_by` says how.
    """
    return [
        f"# {title}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. {made_by}",
        "",
        head,
        "|---" * head.count(" | ") + "|---|",
    ]


def write_page(out: Path, lines: Sequence[str]) -> None:
    """Write the page, and print it."""
    text = "\n".join([*lines, ""])
    out.write_text(text, encoding="utf-8")
    print(text)


def machine() -> str:
    """What it ran on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores of {model} ({platform.machine()}, "
        f"{'with' if multiplies_bf16() else 'without'} AVX-512), {memory:.0f} GiB of memory, no GPU"
    )
