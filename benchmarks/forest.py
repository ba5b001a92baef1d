"""Times a training step on the prefix forest against verl's own, row by row: `python -m
benchmarks.forest`.

Each runs in a process of its own on the same rows: batches as the demo makes them (a system prompt
with examples, a question per group, a tool call, the tool's answer, a final answer), a demo's first
batch with `--demo DATA_FOLDER`, or recorded rows with `--batch FILE`. That is an .npz with
`lengths` (row,) and, rows end to end, `token_ids`, `trained`, `behaviour_logprobs`, `advantages`,
`weights`, `temperature`. Prints a table, and the figures as JSON with `--json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from services.learner.config import EngineConfig, RunConfig
from services.learner.train_row import TrainRow

NO_WATCH = {"alarm": {"k3": 1e9, "ess": 0}, "stop": {"k3": 1e9, "ess": 0}}
"""Random rows are no model's own words: whatever the engine is, it agrees with nobody."""

FIELDS = ("token_ids", "trained", "behaviour_logprobs", "advantages", "weights", "temperature")


def demo_batch(groups: int, samples: int, vocabulary: int, seed: int) -> list[TrainRow]:
    """Two turns per row, about 175 tokens, of which a row shares all but some 30 with others.
    Tokens are random: only lengths count.
    """
    chance = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> Any:
        return chance.integers(10, vocabulary, int(chance.integers(low, high + 1)), dtype=np.int32)

    system, rows = tokens(118, 118), list[TrainRow]()
    for _ in range(groups):
        question = tokens(14, 22)
        for _ in range(samples):
            parts = [
                (system, False),
                (question, False),
                (tokens(10, 18), True),
                (tokens(8, 12), False),
                (tokens(8, 14), True),
            ]
            trained = np.concatenate([np.full(len(part), flag) for part, flag in parts])
            zeros = np.zeros(len(trained), np.float32)
            advantages = (chance.normal() * trained).astype(np.float32)
            weights = (trained / np.float32(trained.sum() * groups * samples)).astype(np.float32)
            rows.append(
                TrainRow(
                    np.concatenate([part for part, _ in parts]),
                    trained,
                    zeros,
                    advantages,
                    weights,
                    zeros + 1,
                )
            )
    return rows


def save(rows: list[TrainRow], path: Path) -> None:
    """Rows as the .npz that `--batch` reads."""
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(row, name) for row in rows]) for name in FIELDS
    }
    np.savez_compressed(
        path, allow_pickle=False, lengths=np.array([len(row.token_ids) for row in rows]), **arrays
    )


def load(path: Path) -> list[TrainRow]:
    """Rows from such an .npz."""
    with np.load(path) as stored:
        bounds = np.cumsum(stored["lengths"])[:-1]
        columns = [np.split(stored[name], bounds) for name in FIELDS]
    return [TrainRow(*values) for values in zip(*columns, strict=True)]


def of_a_demo(data: Path, groups: int) -> list[TrainRow]:
    """The first batch that a demo trained on, from the topics in its data folder; the demo must not
    be running.
    """
    from fulgurite.avro.codec import Codec
    from fulgurite.events import Tombstone, Trajectory
    from fulgurite.learning.batching import BatchRules, RowBatcher
    from fulgurite.topics import TRAJECTORIES
    from fulgurite.versions import base_version
    from services.common.kafka.consumer import read_all
    from services.common.kafka.settings import KafkaSettings
    from services.learner.rows import advantages, mini_batches
    from services.local_stack.kafka_local import LocalKafka

    batcher = RowBatcher("policy", BatchRules(groups_per_step=groups))
    with LocalKafka(data / "kafka") as kafka:
        for record in read_all(
            KafkaSettings(bootstrap_servers=kafka.bootstrap_servers), TRAJECTORIES, Codec()
        ):
            if isinstance(record.event, Trajectory | Tombstone):
                batcher.add(record.partition, record.offset, record.event)
    config = RunConfig.model_validate({"policy": {"model": "any"}})
    batch = batcher.next_batch(base_version("policy"))
    ((_, rows),) = mini_batches(batch, advantages(batch, config), config, 1)
    return rows


def measure(rows: list[TrainRow], config: RunConfig, repeats: int) -> dict[str, float]:
    """Median seconds of a step after one to warm up, and the first step's loss and
    gradient norm.
    """
    from services.learner.trainer import Trainer

    trainer = Trainer(config)
    told = trainer.row_logprobs(rows)
    rows = [
        msgspec.structs.replace(row, behaviour_logprobs=values.astype(np.float32))
        for row, values in zip(rows, told, strict=True)
    ]
    first = trainer.train([rows], 1).metrics
    seconds = [trainer.train([rows], 2).metrics["train_seconds"] for _ in range(repeats)]
    return {**first, "step_seconds": statistics.median(seconds), "slowest_seconds": max(seconds)}


def main() -> None:
    """Parse, run each engine in its own process, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder; default SmolLM2-135M-Instruct"
    )
    parser.add_argument("--batch", type=Path, help="recorded rows (.npz)")
    parser.add_argument("--demo", type=Path, help="a demo's data folder: its first batch")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--max-forest-tokens", type=int, default=EngineConfig().micro_batch_tokens)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--only", choices=["forest", "rows"], help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.model is None:
        from services.local_stack.model import model_folder

        options.model = model_folder()
    if options.only:
        rows = (
            load(options.batch)
            if options.batch
            else demo_batch(
                options.groups, options.samples, _vocabulary(options.model), options.seed
            )
        )
        engine = {
            "dtype": options.dtype,
            "device": options.device,
            "micro_batch_tokens": options.max_forest_tokens,
            "layout": options.only,
        }
        config = RunConfig.model_validate(
            {"policy": {"model": options.model}, "engine": engine, "drift": NO_WATCH}
        )
        print(json.dumps(measure(rows, config, options.repeats)))
        return
    if options.demo:
        options.batch = options.demo.parent / "first-batch.npz"
        save(of_a_demo(options.demo, options.groups), options.batch)
    batch = ["--batch", str(options.batch)] if options.batch else []
    figures: dict[str, dict[str, float]] = {}
    for engine in ("rows", "forest"):
        argv = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.forest",
            "--only",
            engine,
            *sys.argv[1:],
            "--model",
            str(options.model),
            *batch,
        ]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
        figures[engine] = json.loads(done.stdout.splitlines()[-1])
    rows, forest = figures["rows"], figures["forest"]
    print(f"{'':24}{'row by row':>14}{'forest':>14}")
    for name in (
        "step_seconds",
        "slowest_seconds",
        "loss",
        "grad_norm",
        "row_tokens",
        "forest_tokens",
    ):
        print(f"{name:24}{rows[name]:14.5g}{forest[name]:14.5g}")
    print(
        f"\nThe forest's step is {rows['step_seconds'] / forest['step_seconds']:.1f} times as fast."
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _vocabulary(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


if __name__ == "__main__":
    main()
