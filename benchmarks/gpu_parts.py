"""The parts of `benchmarks.gpu_session`, each a function from a size to what it found:
`python -m benchmarks.gpu_parts PART [--tiny] FILE`.

What a part has found so far it writes to FILE, so that nothing is lost to a time limit.
"""

# torch, transformers and verl are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.learner.train_row import TrainRow

_LOAD_S = 12
"""Longer than three loadings take."""

Tell = Callable[..., None]
"""Keeps a figure, by name."""


class Batch(NamedTuple):
    """Rows that share a system prompt, a question in each group, and a trunk in each rollout, from
    which branches part. Lengths in tokens.
    """

    groups: int
    samples: int
    branches: int
    system: int
    question: int
    trunk: int
    branch: int
    turns: int

    def smaller(self) -> Batch:
        """One for a CPU."""
        lengths = {
            name: max(1, getattr(self, name) // 50)
            for name in ("system", "question", "trunk", "branch")
        }
        return self._replace(groups=2, samples=2, turns=2, **lengths)


BATCHES = {
    "8 groups of 6, two turns": Batch(8, 6, 1, 120, 60, 0, 56, 2),
    "8 x 8, 4 turns, 1k system": Batch(8, 8, 1, 1000, 60, 0, 1250, 4),
    "4 x 8, 12 turns, 3k system": Batch(4, 8, 1, 3000, 60, 0, 5700, 12),
    "4 x 8, 8 turns, 4 branches": Batch(4, 8, 4, 988, 60, 2624, 473, 4),
}
"""With as many tokens in rows and in the forest as those that were measured on an H200."""


def rows_of(batch: Batch, vocabulary: int, *, shared: bool = True) -> list[TrainRow]:
    """Random rows. Not `shared`: each begins with a token of its own, so that no other has its
    prefix, and a forest of them is the rows one behind the other, under a mask for each.
    """
    chance = np.random.default_rng(0)

    def tokens(length: int) -> NDArray[np.int32]:
        return chance.integers(1000 % vocabulary, vocabulary, length, dtype=np.int32)

    def turns(length: int) -> list[tuple[NDArray[np.int32], bool]]:
        # Answers, and what tools say to them.
        pieces = np.array_split(tokens(length), 2 * batch.turns - 1)
        return [(piece, number % 2 == 0) for number, piece in enumerate(pieces)]

    system, rows = tokens(batch.system), list[TrainRow]()
    for _ in range(batch.groups):
        question = tokens(batch.question)
        for _ in range(batch.samples):
            trunk = turns(batch.trunk)
            for _ in range(batch.branches):
                parts = [(system, False), (question, False), *trunk, *turns(batch.branch)]
                ids = np.concatenate([part for part, _ in parts])
                if not shared:
                    ids[0] = len(rows)
                trained = np.concatenate([np.full(len(part), flag) for part, flag in parts])
                rows.append(_row(ids, trained, chance.normal()))
    return rows


def _row(ids: NDArray[np.int32], trained: NDArray[np.bool_], advantage: float) -> TrainRow:
    zeros = np.zeros(len(ids), np.float32)
    weights = (trained / np.float32(trained.sum())).astype(np.float32)
    advantages = (advantage * trained).astype(np.float32)
    return TrainRow(ids, trained, zeros, advantages, weights, zeros + 1)


WAYS: dict[str, dict[str, Any]] = {
    "forest": {"micro_batch_tokens": 1 << 20},
    "packed rows": {"micro_batch_tokens": 32_768},
    "verl without padding": {"micro_batch_tokens": 32_768, "by_verl": True},
}


def forest(tell: Tell, *, tiny: bool) -> None:
    """Seconds and memory of a step: as a forest, as packed rows, and by verl without padding."""
    from benchmarks.gpu_trainer import SHAPES, forget, peak_gib, step_seconds, write_model

    shape = SHAPES["tiny" if tiny else "1b"]
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", shape, "cpu" if tiny else "cuda")
        for way, options in WAYS.items():
            trainer = _trainer(model, tiny=tiny, **options)
            for name, batch in BATCHES.items():
                forget()
                rows = rows_of(
                    batch.smaller() if tiny else batch,
                    shape["vocab_size"],
                    shared=way != "packed rows",
                )
                try:
                    # Compiles what the batch's lengths need.
                    metrics = trainer.train([rows], 1).metrics
                    seconds = step_seconds(trainer, rows, 1, warm=False)
                except RuntimeError as error:
                    tell(f"{name}: {way}", failed=str(error)[:200])
                    continue
                tell(
                    f"{name}: {way}",
                    seconds=seconds,
                    peak_gib=peak_gib(),
                    row_tokens=metrics["row_tokens"],
                    computed_tokens=metrics["tokens/computed"],
                    grad_norm=metrics["grad_norm"],
                )
            trainer.close()
            del trainer


def _trainer(
    model: Path, *, micro_batch_tokens: int, tiny: bool, by_verl: bool = False, lora: bool = False
) -> Any:
    from benchmarks.forest import NO_WATCH
    from services.learner.config import RunConfig
    from services.learner.trainer import Trainer

    class WithoutPadding(Trainer):
        """Verl's own engine: rows one behind the other, positions say where each begins."""

        def _batch(self, mini_batch: Any, **options: Any) -> Any:
            from verl.utils import tensordict_utils as tu

            data = super()._batch(mini_batch, **{**options, "share_prefixes": False})
            tu.assign_non_tensor(data, use_remove_padding=True)
            return data

    config = RunConfig.model_validate(
        {
            "policy": {"model": model, "weights": {"train": "lora" if lora else "full"}},
            "engine": {
                "dtype": "bf16",
                "device": "cpu" if tiny else "cuda",
                "micro_batch_tokens": micro_batch_tokens,
                "gradient_checkpointing": True,
            },
            "drift": NO_WATCH,
        }
    )
    return (WithoutPadding if by_verl else Trainer)(config)


def lora(tell: Tell, *, tiny: bool) -> None:
    """Seconds and memory of an adapter's step on one row, by its length; a random 8B."""
    from benchmarks.gpu_trainer import SHAPES, forget, peak_gib, step_seconds, write_model

    shape = SHAPES["tiny" if tiny else "8b"]
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", shape, "cpu" if tiny else "cuda")
        lengths = (64, 128) if tiny else (4096, 16_384, 32_768)
        trainer = _trainer(model, micro_batch_tokens=max(lengths), tiny=tiny, lora=True)
        for length in lengths:
            forget()
            chance = np.random.default_rng(0)
            ids = chance.integers(0, shape["vocab_size"], length, dtype=np.int32)
            rows = [_row(ids, np.arange(length) > length // 2, 1.0)]
            seconds = step_seconds(trainer, rows, 1 if tiny else 2)
            tell(f"{length} tokens", seconds=seconds, peak_gib=peak_gib())
        trainer.close()


def capture(tell: Tell, *, tiny: bool) -> None:
    """Tokens a second with ids and log-probabilities, as a share of those without."""
    from benchmarks.capture_price import PACKED, TEXT, Engine, Load, measure, share, write_model
    from benchmarks.gateway_parts import bench_folder
    from services.local_stack.model import model_folder
    from services.local_stack.vllm_local import LocalVllm

    os.environ["PIN"] = "0"
    with bench_folder() as folder:
        model = write_model(folder / "model") if tiny else model_folder()
        options: dict[str, Any] = {"threads": 1} if tiny else {}
        with LocalVllm(model, folder / "vllm", **options) as server:
            engine = Engine(server)
            for streams in (4, 8) if tiny else (64, 128, 256):
                asked = Load(streams, streamed=True, max_tokens=128, seconds=1 if tiny else 30)
                found = measure(engine, asked, 1, (TEXT, PACKED))
                [text], [captured] = found[TEXT], found[PACKED]
                tell(
                    f"{streams} streams",
                    share=share(found, PACKED)[0],
                    text_tokens_per_s=text.tokens_per_s,
                    captured_tokens_per_s=captured.tokens_per_s,
                    text_api_us=text.api_us,
                    captured_api_us=captured.api_us,
                )


def served(tell: Tell, *, tiny: bool) -> None:
    """Milliseconds from a version's event to the applier's, for all weights of a random 1B and for
    an adapter, without other requests and beside 64 streams.
    """
    steps = itertools.count(1)
    with _served_model(tiny=tiny) as (bench, full, probe, adapter):
        bench.process.start()
        bench.claim(1)

        def publish_all_weights() -> str:
            step = next(steps)
            bench.update(1, step, full, probe)
            return f"policy@1.{step}"

        def publish_adapter() -> str:
            version = f"writer@1.{next(steps)}"
            bench.adapter(version, adapter)
            return version

        def timed(publish: Callable[[], str]) -> int:
            began = time.time()
            return bench.wait_applied(publish()).event_time - round(1000 * began)

        kinds = {"all weights": publish_all_weights, "adapter": publish_adapter}
        for kind, publish in kinds.items():
            tell(f"{kind}, quiet", ms=[timed(publish) for _ in range(3)])
        for kind, publish in kinds.items():
            with _load_beside(bench.vllm.base_url, 4 if tiny else 64) as ended:
                times = [timed(publish) for _ in range(3)]
                told = ended()
            counts = {f"requests_{name}": told[name] for name in ("done", "failed")}
            tell(f"{kind}, under load", ms=times, **counts)


@contextmanager
def _served_model(*, tiny: bool) -> Generator[tuple[Any, Any, Any, Any]]:
    """An applier between a log and a vLLM; all weights and their probe, and an adapter."""
    from benchmarks.gpu_trainer import SHAPES, write_model
    from fulgurite.enums import ArtifactFormat
    from fulgurite.events import Artifact, Probe
    from fulgurite.tokens import pack_ids, pack_logprobs
    from services.local_stack.kafka_local import LocalKafka
    from services.local_stack.vllm_local import LocalVllm
    from tests.integration.lora_adapter import Adapter
    from tests.integration.test_applier import PROBE_IDS, Bench, hugging_face_logprobs

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shape = SHAPES["tiny" if tiny else "1b"]
        model = write_model(folder / "model", shape, "cpu" if tiny else "cuda")
        weights = model / "model.safetensors"
        full = Artifact(
            uri=weights.as_uri(),
            sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
            size=weights.stat().st_size,
            format=ArtifactFormat.full,
        )
        probe = Probe(
            token_ids=pack_ids(PROBE_IDS), logprobs=pack_logprobs(hugging_face_logprobs(model))
        )
        adapter = Adapter(folder / "adapter", 0, model).artifact()
        kafka = stack.enter_context(LocalKafka(folder / "kafka"))
        vllm = stack.enter_context(
            LocalVllm(
                model,
                folder / "vllm",
                threads=1 if tiny else None,
                extra=["--enable-lora", "--max-lora-rank=8", "--max-loras=2", "--max-cpu-loras=8"],
                env={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
            )
        )
        bench = Bench(kafka, vllm, "gpu.", folder, model)
        stack.callback(bench.close)
        yield bench, full, probe, adapter


@contextmanager
def _load_beside(url: str, streams: int) -> Generator[Callable[[], dict[str, Any]]]:
    """Streams beside what is measured; the function that is given waits for the last, and returns
    what came of them.
    """
    from benchmarks.gateway_parts import load

    with ThreadPoolExecutor() as threads:
        running = threads.submit(
            load,
            url,
            *("--prompt-tokens", "50", "--stream", "--ignore-eos", "--packed"),
            *("--connections", str(streams), "--seconds", str(_LOAD_S)),
        )
        # Until all of them have begun.
        time.sleep(2)
        yield running.result


def resume(tell: Tell, *, tiny: bool) -> None:
    """A learner killed with -9 before its checkpoint, and before its tensors: the tests of it, on
    this device.
    """
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "tests/integration/test_learner_resume.py"),
            *("-k", "its_tensors or before_checkpoint"),
        ],
        env={**os.environ, "FULGURITE_TEST_DEVICE": "cpu" if tiny else "cuda"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    tell("tests", said=done.stdout.splitlines()[-1], seconds=time.monotonic() - began)
    done.check_returncode()


def demo(tell: Tell, *, tiny: bool) -> None:
    """The demo with three seeds."""
    from benchmarks.demo_runs import run

    more = ["--updates", "1", "--held-out", "12"] if tiny else []
    for seed in (0,) if tiny else (0, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            report = run(Path(folder) / "demo", seed, more=more)
        names = ("reward_before", "reward_after", "first_rollout_to_last_update_s", "phases")
        tell(
            f"seed {seed}",
            **{name: report[name] for name in names},
            ledger_remainder=report["ledger"]["remainder"],
        )


PARTS: dict[str, Callable[..., None]] = {
    "forest": forest,
    "capture": capture,
    "served": served,
    "lora": lora,
    "resume": resume,
    "demo": demo,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = {}

    def tell(name: str, **values: Any) -> None:
        found[name] = {key: _rounded(value) for key, value in values.items()}
        given.file.write_text(json.dumps(found))

    PARTS[given.part](tell, tiny=given.tiny)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
