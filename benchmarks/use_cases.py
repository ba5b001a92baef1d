"""Trains each example of `benchmarks/use_cases/` with the demo: three seeds and a control, whose
rewards are permuted. Runs of one agent and seed begin with the same warm-started model.

    python -m benchmarks.use_cases [--runs text-to-sql] [--seeds 0 1 2] [--no-control]

What has a report already is not run again. Rows of the page whose reports are on another machine
stay.
"""

from __future__ import annotations

from benchmarks.learning import Benchmark, run_benchmark

INTRODUCTION = (
    "Held-out tasks that share nothing with those of training (`examples/*/tasks.py`); 95 % "
    "intervals. `before` is after the warm start. Seconds are from "
    "the first rollout to the last update. In the control, rewards are permuted within groups, and "
    "nothing can be learned. Parts are rewards that were recorded beside the one that counts."
)


def main() -> None:
    """Run what is asked for, and write the table of all reports that are there."""
    run_benchmark(Benchmark("use_cases", "Use cases", INTRODUCTION, shows_samples=True), __doc__)


if __name__ == "__main__":
    main()
