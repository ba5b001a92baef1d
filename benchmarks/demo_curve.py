"""Draw the README's learning curve from the figures in demo_runs.md: `python -m
benchmarks.demo_curve`.
"""

from __future__ import annotations

import re
from pathlib import Path

FIGURES = Path(__file__).with_name("demo_runs.md")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "learning-curve.png"


def read_curves(text: str) -> dict[str, list[float]]:
    """Mean reward of the rollouts of each version, by run."""
    rows = re.findall(
        r"^\| ((?:seed|control)[^|]*) \|(?:[^|]*\|){4} ([.\d ]+) \|", text, re.MULTILINE
    )
    return {run: [float(value) for value in values.split()] for run, values in rows}


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Write the curves as a PNG; the control is dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), dpi=110)  # pyright: ignore[reportUnknownMemberType]
    for run, rewards in curves.items():
        control = run.startswith("control")
        label = "control: rewards permuted within groups" if control else run
        style = {"color": "gray", "linestyle": "--"} if control else {}
        axes.plot(range(len(rewards)), rewards, marker="o", markersize=3, label=label, **style)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
    axes.set(xlabel="policy version (updates made)", ylabel="mean reward", ylim=(0, 1.02))  # pyright: ignore[reportUnknownMemberType]
    axes.grid(alpha=0.3)  # pyright: ignore[reportUnknownMemberType]
    axes.legend(fontsize=8, loc="upper left")  # pyright: ignore[reportUnknownMemberType]
    figure.tight_layout()
    figure.savefig(path)  # pyright: ignore[reportUnknownMemberType]
    pyplot.close(figure)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    draw(read_curves(FIGURES.read_text()), PICTURE)
    print(PICTURE)
