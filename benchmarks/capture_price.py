"""What vLLM's tokens a second are when token ids and log-probabilities are captured, beside text
only: `python -m benchmarks.capture_price`; figures and their reading in `capture_price.md`.

A random Llama of one layer makes vLLM's engine so fast that Python is the limit, as it is on a fast
GPU: the API process, and what the engine does around the model. The sides take turns, round by
round, on one engine. `--profile FOLDER` samples both processes with py-spy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil

from benchmarks.gateway_parts import bench_folder, load
from benchmarks.tables import table
from services.local_stack.model import tiny_model
from services.local_stack.vllm_local import LocalVllm

TEXT, PACKED, IN_JSON = "text only", "packed, as the gateway asks", "ids, log-probabilities in JSON"
SIDES = {TEXT: (), PACKED: ("--packed",), IN_JSON: ("--logprobs",)}
"""What is asked for, as arguments of the load."""
_WARM_S = 2.0


def write_model(folder: Path) -> Path:
    """Write a random Llama of one layer, 64 wide, with tokens of ASCII letters.

    A byte that is no character by itself takes vLLM several attempts to put into words, and half of
    what a random model of bytes writes are such.
    """
    made = json.loads((tiny_model() / "tokenizer.json").read_text(encoding="utf-8"))
    pairs = map("".join, itertools.product(string.ascii_lowercase, repeat=2))
    vocabulary = cast("dict[str, int]", made["model"]["vocab"])
    made["model"]["vocab"] = {
        symbol if symbol.isascii() or symbol in "ĠĊ" else next(pairs): number
        for symbol, number in vocabulary.items()
    }
    script = (
        "import sys, torch; from transformers import LlamaConfig, LlamaForCausalLM; "
        "config = LlamaConfig.from_pretrained(sys.argv[1]); "
        "config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 128, 1; "
        "config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 32; "
        "LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, str(tiny_model()), str(folder)], check=True)
    for file in tiny_model().glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    for file in tiny_model().glob("*.jinja"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    return folder


class Engine:
    """The processes of a vLLM."""

    def __init__(self, server: LocalVllm) -> None:
        self.url = server.base_url
        api = psutil.Process(cast(int, server.process.pid))
        self.api = api
        self.cores = [
            child for child in api.children(recursive=True) if _name(child).startswith("VLLM::")
        ]

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far: of the API process, and of the engine."""
        return _cpu_s(self.api), sum(map(_cpu_s, self.cores))


def _name(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def _cpu_s(process: psutil.Process) -> float:
    times = cast(Any, process).cpu_times()
    return float(times.user + times.system)


class Round:
    """One side's figures in one round."""

    def __init__(self, engine: Engine, arguments: Sequence[str], max_tokens: int) -> None:
        before = engine.cpu_s()
        told = load(engine.url, *arguments)
        tokens = told["done"] * max_tokens
        assert tokens > 0, told
        assert not told["failed"], told
        self.tokens_per_s = tokens / told["seconds"]
        self.api_us, self.engine_us = (
            1e6 * (after - then) / tokens
            for after, then in zip(engine.cpu_s(), before, strict=True)
        )


class Load(NamedTuple):
    """What is asked in each round."""

    streams: int
    streamed: bool
    max_tokens: int
    seconds: float

    def arguments(self, side: str) -> list[str]:
        """Those of `benchmarks.gateway_load`."""
        return [
            *("--prompt-tokens", "50", "--max-tokens", str(self.max_tokens), "--ignore-eos"),
            *("--connections", str(self.streams), "--seconds", str(self.seconds)),
            *(("--stream",) if self.streamed else ()),
            *SIDES[side],
        ]


def measure(
    engine: Engine, asked: Load, rounds: int, sides: Sequence[str] = tuple(SIDES)
) -> dict[str, list[Round]]:
    """Rounds of the sides in turns, after a short one that is not counted: what is compiled at its
    first call is compiled there.
    """
    warm = asked._replace(seconds=min(asked.seconds, _WARM_S))
    for side in sides:
        Round(engine, warm.arguments(side), asked.max_tokens)
    found: dict[str, list[Round]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in reversed(sides) if number % 2 else sides:
            found[side].append(Round(engine, asked.arguments(side), asked.max_tokens))
    return found


def share(found: dict[str, list[Round]], side: str) -> list[float]:
    """Tokens a second of each round, as a share of text only."""
    return [
        one.tokens_per_s / text.tokens_per_s
        for one, text in zip(found[side], found[TEXT], strict=True)
    ]


def _row(found: dict[str, list[Round]], side: str) -> list[Any]:
    values, shares = found[side], share(found, side)
    api, engine = (
        statistics.median(one.api_us for one in values),
        statistics.median(one.engine_us for one in values),
    )
    cheapest = statistics.median(one.api_us for one in found[TEXT])
    return [
        side,
        statistics.median(one.tokens_per_s for one in values),
        f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})",
        api,
        f"{cheapest / api:.2f}",
        engine,
    ]


COLUMNS = ["", "tokens / s", "ratio", "API process, µs a token", "its ratio", "engine, µs a token"]


def profile(engine: Engine, asked: Load, folder: Path) -> None:
    """Sample both processes with py-spy under each side's load, as flame graphs read it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, side in enumerate(SIDES):
        sampling = [
            subprocess.Popen(
                [
                    *("py-spy", "record", "--nonblocking", "--format=raw", "--rate=200"),
                    *(f"--duration={asked.seconds:.0f}", f"--pid={process.pid}"),
                    f"--output={folder / f'{asked.streams}-{asked.streamed}-{number}-{part}.txt'}",
                ],
                stdout=subprocess.DEVNULL,
            )
            for part, process in (("api", engine.api), ("core", engine.cores[0]))
        ]
        load(engine.url, *asked.arguments(side))
        for one in sampling:
            one.wait()


def main() -> None:
    """Start one engine, and measure each kind of load on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="*", default=[16, 64])
    parser.add_argument(
        "--kinds", nargs="*", choices=["stream", "whole"], default=["stream", "whole"]
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--profile", type=Path, help="a folder for the stacks of both processes")
    given = parser.parse_args()
    os.environ["PIN"] = "0"
    with bench_folder() as folder:
        model = write_model(folder / "model")
        with LocalVllm(model, folder / "vllm", threads=1) as server:
            engine = Engine(server)
            for streams, kind in itertools.product(given.streams, given.kinds):
                asked = Load(streams, kind == "stream", given.max_tokens, given.seconds)
                found = measure(engine, asked, given.rounds)
                table(
                    f"{streams} {kind}, {given.rounds} rounds of {given.seconds:g} s",
                    COLUMNS,
                    [_row(found, side) for side in SIDES],
                )
                if given.profile is not None:
                    profile(engine, asked, given.profile)


if __name__ == "__main__":
    main()
