"""The trainer on a GPU: is the prefix forest what verl computes row by row, how fast is each, and
do exports and checkpoints keep it? And the same of a LoRA adapter.

    .venv/bin/python -m benchmarks.gpu_trainer [--json FILE] [--shapes 135m 1b]

Models are random Llamas of the shapes of SmolLM2-135M and Llama-3.2-1B, made on the spot; rows are
random tokens, of which only lengths and shared prefixes matter. `demo`: 48 rows of about 175 tokens
behind a shared prompt of 118. `long`: 64 rows of about 1,500 behind 1,000. Prints a line per figure
as it is known. `--shapes tiny --device cpu` tries the script itself out.
"""

# torch, transformers and verl are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportArgumentType=false

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.forest import NO_WATCH, demo_batch
from services.learner.config import RunConfig
from services.learner.train_row import TrainRow
from services.learner.trainer import Trainer

SHAPES: dict[str, dict[str, int]] = {
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
    }
    | {"num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
    }
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
    }
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1},
}

Dtype = Literal["bf16", "fp32"]


class Bench:
    """One shape of model on one device. Every figure is told once, by name."""

    def __init__(
        self,
        shape: str,
        device: Literal["cpu", "cuda"],
        folder: Path,
        figures: dict[str, Any],
        json_file: Path | None,
    ) -> None:
        self.shape, self.device, self.folder = shape, device, folder
        self._figures, self._json = figures, json_file
        folder.mkdir()
        self.model = write_model(folder / "model", SHAPES[shape], device)
        vocabulary, small = SHAPES[shape]["vocab_size"], shape == "tiny"
        self.demo = demo_batch(2 if small else 8, 3 if small else 6, vocabulary, 0)
        self.long = _long_batch(4 if small else 64, vocabulary, 10 if small else 1)

    def tell(self, name: str, **values: float) -> None:
        """Print, and keep in the file."""
        self._figures[f"{self.shape} {name}"] = values
        print(
            f"{self.shape} {name}: "
            + ", ".join(f"{key} {value:.6g}" for key, value in values.items()),
            flush=True,
        )
        if self._json:
            self._json.write_text(json.dumps(self._figures, indent=2) + "\n")

    def trainer(
        self, dtype: Dtype, *, share: bool, model: Path | None = None, lora: bool = False
    ) -> Trainer:
        forget()
        policy: dict[str, Any] = {"model": model or self.model}
        if lora:
            policy["weights"] = {"train": "lora"}
        engine = {
            "dtype": dtype,
            "device": self.device,
            "layout": "forest" if share else "rows",
            "micro_batch_tokens": 2048,
        }
        return Trainer(
            RunConfig.model_validate(
                {
                    "policy": policy,
                    "engine": engine,
                    "drift": NO_WATCH,
                    "algorithm": {"kl": 0.1 if lora else 0},
                }
            )
        )

    def compare(self, dtype: Dtype, repeats: int) -> tuple[Trainer, NDArray[np.float32]]:
        """Forest against row by row: log-probabilities, a first step on either batch, seconds.
        Returns the forest's trainer.
        """
        rows, long = self.demo, self.long
        seen: dict[str, list[NDArray[np.float32]]] = {}
        steps: dict[str, list[dict[str, float]]] = {}
        seconds: dict[str, dict[str, float]] = {}
        kept: Trainer | None = None
        for engine in ("rows", "forest"):
            trainer = self.trainer(dtype, share=engine == "forest")
            told = [trainer.row_logprobs(rows), trainer.row_logprobs(self.long[:8])]
            seen[engine] = [np.concatenate(values) for values in told]
            if engine == "rows":
                rows, long = _noisy(rows, told[0]), _noisy(long, trainer.row_logprobs(long))
            steps[engine] = [trainer.train([rows], 1).metrics]
            _wider(trainer, 8192)
            steps[engine].append(trainer.train([long], 1).metrics)
            seconds[engine] = {"long_8192": step_seconds(trainer, long, repeats)}
            _wider(trainer, 2048)
            seconds[engine]["demo_2048"] = step_seconds(trainer, rows, 2 * repeats)
            peak = peak_gib()
            self.tell(f"{dtype} {engine} seconds", **seconds[engine], peak_gib=peak)
            for batch, step in zip(("demo", "long"), steps[engine], strict=True):
                self.tell(f"{dtype} {engine} step on {batch}", **step)
            kept = trainer
            del trainer
            if engine == "rows":
                kept = None
        for index, batch in enumerate(("demo", "long")):
            one, other = (steps[engine][index] for engine in ("rows", "forest"))
            logprobs = seen["forest"][index], seen["rows"][index]
            loss, norm = (
                abs(one["loss"] - other["loss"]),
                abs(one["grad_norm"] / other["grad_norm"] - 1),
            )
            self.tell(
                f"{dtype} forest against rows on {batch}",
                **_apart(*logprobs),
                loss_difference=loss,
                grad_norm_relative=norm,
            )
        ratios = {name: seconds["rows"][name] / seconds["forest"][name] for name in seconds["rows"]}
        self.tell(f"{dtype} rows / forest", **ratios)
        assert kept is not None
        return kept, seen["forest"][0]

    def default_bound(self, dtype: Dtype) -> None:
        """The long rows in micro-batches of 2048 tokens, of which only two share one."""
        found: dict[str, float] = {}
        for engine in ("forest", "rows"):
            trainer = self.trainer(dtype, share=engine == "forest")
            found[engine] = step_seconds(trainer, self.long, 2)
            del trainer
        self.tell(f"{dtype} long_2048", **found, ratio=found["rows"] / found["forest"])

    def keeps(self, trainer: Trainer, dtype: Dtype) -> None:
        """Export and checkpoint, each read by a trainer that starts anew."""
        few, rows = self.demo[:12], self.demo
        checkpoint, exported = self.folder / "checkpoint", self.folder / "exported"
        shutil.copytree(self.model, exported)
        trainer.export(exported / "model.safetensors")
        trainer.save(checkpoint)
        before = np.concatenate(trainer.row_logprobs(few))
        step = trainer.train([rows], 1).metrics
        after = np.concatenate(trainer.row_logprobs(few))
        self.tell(
            f"{dtype} transformers on the export",
            **_apart(np.concatenate(_plain(exported, few, self.device, dtype)), before),
        )
        again = self.trainer(dtype, share=True, model=exported)
        self.tell(
            f"{dtype} trainer on the export",
            **_apart(np.concatenate(again.row_logprobs(few)), before),
        )
        again.load(checkpoint)
        self.tell(
            f"{dtype} resumed, before the step",
            **_apart(np.concatenate(again.row_logprobs(few)), before),
        )
        told = again.train([rows], 1).metrics
        apart = {name: abs(told[name] - step[name]) for name in ("loss", "grad_norm")}
        self.tell(
            f"{dtype} resumed, the next step",
            **_apart(np.concatenate(again.row_logprobs(few)), after),
            **apart,
        )
        self.tell(f"{dtype} that step itself moved", **_apart(after, before))

    def adapter(self, dtype: Dtype, repeats: int) -> None:
        """LoRA with a KL term: forest against rows, what it takes, and whether files keep it."""
        few = self.demo[:12]
        rows = self.demo
        seen: dict[str, NDArray[np.float32]] = {}
        for engine in ("rows", "forest"):
            trainer = self.trainer(dtype, share=engine == "forest", lora=True)
            if engine == "rows":
                rows = _noisy(rows, trainer.row_logprobs(rows))
            self.tell(f"{dtype} lora {engine} step", **trainer.train([rows], 1).metrics)
            seconds = step_seconds(trainer, rows, repeats)
            peak = peak_gib()
            self.tell(f"{dtype} lora {engine}", seconds=seconds, peak_gib=peak)
            seen[engine] = np.concatenate(trainer.row_logprobs(few))
        self.tell(f"{dtype} lora forest against rows", **_apart(seen["forest"], seen["rows"]))
        checkpoint, exported = self.folder / "adapter", self.folder / "peft"
        exported.mkdir()
        trainer.save(checkpoint)
        trainer.export(exported / "adapter_model.safetensors")
        self.tell(
            f"{dtype} lora files in MB",
            checkpoint=_megabytes(checkpoint),
            version=_megabytes(exported),
        )
        again = self.trainer(dtype, share=True, lora=True)
        again.load(checkpoint)
        found = np.concatenate(again.row_logprobs(few))
        self.tell(f"{dtype} lora resumed", **_apart(found, seen["forest"]))
        found = np.concatenate(_plain(self.model, few, self.device, dtype, adapter=exported))
        self.tell(f"{dtype} peft on the export", **_apart(found, seen["forest"]))
        shutil.rmtree(checkpoint)
        shutil.rmtree(exported)

    def plain(self, dtype: Dtype, seen: NDArray[np.float32]) -> None:
        """The base model in transformers alone, a row at a time, against the trainer's forest."""
        self.tell(
            f"{dtype} transformers on the base",
            **_apart(np.concatenate(_plain(self.model, self.demo, self.device, dtype)), seen),
        )
        changed = [
            msgspec.structs.replace(
                row, token_ids=np.concatenate([[7], row.token_ids[1:]]).astype(np.int32)
            )
            for row in self.demo
        ]
        other = np.concatenate(_plain(self.model, changed, self.device, dtype))
        self.tell(f"{dtype} control: another first token", **_apart(other, seen))


def step_seconds(
    trainer: Trainer, rows: Sequence[TrainRow], repeats: int, *, warm: bool = True
) -> float:
    """Median seconds of a step on these rows, after one that is not counted, if `warm`."""
    if warm:
        trainer.train([rows], 1)
    found: list[float] = []
    for _ in range(repeats):
        _wait()
        began = time.perf_counter()
        trainer.train([rows], 1)
        _wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def peak_gib() -> float:
    """Most GPU memory since `forget`; 0 without a GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_model(folder: Path, shape: dict[str, int], device: str) -> Path:
    """Write a random Llama of a shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from services.local_stack.model_files import write_tiny

    write_tiny(folder, tied=True, seed=0)
    # So wide that what a layer adds is as large as what it is added to: else no token would depend
    # on those before it.
    config = LlamaConfig(
        **shape,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        initializer_range=shape["hidden_size"] ** -0.5,
    )
    torch.manual_seed(0)
    with torch.device(device):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _long_batch(rows: int, vocabulary: int, shorter: int) -> list[TrainRow]:
    chance = np.random.default_rng(1)

    def tokens(length: int) -> Any:
        return chance.integers(
            10, vocabulary, length // shorter + int(chance.integers(0, 9)), dtype=np.int32
        )

    system, batch = tokens(1000), list[TrainRow]()
    for _ in range(rows):
        parts = [
            (system, False),
            (tokens(50), False),
            (tokens(200), True),
            (tokens(40), False),
            (tokens(200), True),
        ]
        trained = np.concatenate([np.full(len(part), flag) for part, flag in parts])
        zeros = np.zeros(len(trained), np.float32)
        weights = (trained / np.float32(trained.sum() * rows)).astype(np.float32)
        advantages = (chance.normal() * trained).astype(np.float32)
        batch.append(
            TrainRow(
                np.concatenate([part for part, _ in parts]),
                trained,
                zeros,
                advantages,
                weights,
                zeros + 1,
            )
        )
    return batch


def _noisy(rows: Sequence[TrainRow], logprobs: Sequence[NDArray[np.float32]]) -> list[TrainRow]:
    """As if an engine had sampled them that computes nearly the same."""
    chance = np.random.default_rng(2)
    return [
        msgspec.structs.replace(
            row,
            behaviour_logprobs=((told + 0.05 * chance.normal(size=len(told))) * row.trained).astype(
                np.float32
            ),
        )
        for row, told in zip(rows, logprobs, strict=True)
    ]


def _plain(
    folder: Path,
    rows: Sequence[TrainRow],
    device: str,
    dtype: Dtype,
    *,
    adapter: Path | None = None,
) -> list[NDArray[np.float32]]:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    model.to(device)
    found: list[NDArray[np.float32]] = []
    with torch.no_grad():
        for row in rows:
            tokens = torch.from_numpy(row.token_ids.astype(np.int64)).to(device)[None]
            logprobs = (
                model(tokens)
                .logits[0, :-1]
                .float()
                .log_softmax(-1)
                .gather(1, tokens[0, 1:, None])[:, 0]
            )
            found.append(
                np.concatenate([[0], logprobs.cpu().numpy()]).astype(np.float32) * row.trained
            )
    return found


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> dict[str, float]:
    difference = np.abs(one - other)
    return {
        "logprob_max": float(difference.max()),
        "logprob_mean": float(difference[other != 0].mean()),
    }


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _wider(trainer: Trainer, tokens: int) -> None:
    engine = trainer.config.engine.model_copy(update={"micro_batch_tokens": tokens})
    trainer.config = trainer.config.model_copy(update={"engine": engine})


def forget() -> None:
    """Free what a trainer before has left on the GPU, and measure its memory anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=["135m", "1b", "tiny"], default=["135m", "1b"]
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="timed steps on the long rows; twice as many on the short ones",
    )
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if options.device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        benches = [
            Bench(shape, options.device, Path(folder) / shape, figures, options.json)
            for shape in options.shapes
        ]
        for bench in benches:
            trainer, seen = bench.compare("bf16", options.repeats)
            if bench.shape != "1b":
                bench.plain("bf16", seen)
                bench.keeps(trainer, "bf16")
                del trainer
                trainer, exact = bench.compare("fp32", options.repeats)
                bench.tell("bf16 against fp32, both as forests", **_apart(seen, exact))
                bench.plain("fp32", exact)
            del trainer
            bench.adapter("bf16", options.repeats)
            if bench.shape != "1b":
                bench.adapter("fp32", options.repeats)
        for bench in benches:
            bench.default_bound("bf16")


if __name__ == "__main__":
    main()
