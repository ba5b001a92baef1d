"""Times how long the learner's loop waits for a checkpoint, and how long for one whose weights and
optimizer are written beside it: `python -m benchmarks.checkpoint`.

Trains SmolLM2-135M for a step, so that the optimizer has a state, and writes checkpoints of it in
both ways, alternately.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.forest import NO_WATCH, demo_batch
from benchmarks.tables import table
from fulgurite.events import Probe
from fulgurite.tokens import pack_ids, pack_logprobs
from services.learner.checkpoint import CheckpointState, CheckpointStore
from services.learner.config import RunConfig
from services.learner.redo import write_step


def state(serial: int) -> CheckpointState:
    """What a checkpoint has beside tensors, small."""
    return CheckpointState(
        policy="policy",
        topic="trajectories",
        topic_id="",
        epoch=1,
        step=serial,
        version=f"policy@1.{serial}",
        serial=serial,
        positions=(),
        settled={},
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M-Instruct")
    options: Any = parser.parse_args()
    from services.learner.trainer import Trainer
    from services.local_stack.model import model_folder

    config = RunConfig.model_validate(
        {"policy": {"model": options.model or model_folder()}, "drift": NO_WATCH}
    )
    trainer = Trainer(config)
    # A batch of the demo's size, of which a small part is enough for a step.
    batch = [demo_batch(8, 6, trainer.vocabulary, seed=1)]
    trainer.train([batch[0][:8]], 1)
    probe = Probe(token_ids=pack_ids([1, 2]), logprobs=pack_logprobs([-1.0]))
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as name:
        store = CheckpointStore(Path(name), "policy")
        for serial in range(1, 4 * options.rounds + 1, 4):
            began = restart()
            store.write(state(serial), trainer.save)
            waits = time.monotonic() - began
            rows.append(["in the loop", waits, waits, "", peak_mb()])
            began = restart()
            version = f"policy@1.{serial + 1}"
            step = partial(
                write_step,
                version=version,
                batch=batch,
                probe=probe,
                config=config,
                schedule_step=serial + 1,
            )
            store.write(state(serial + 1), None, step)
            before_update = time.monotonic() - began
            beside = store.folder_beside(serial + 1)
            trainer.begin_to_save(beside)
            copied = time.monotonic()
            trainer.is_saved(wait=True)
            written = time.monotonic()
            store.adopt(beside, serial + 1, serial + 2)
            waits = copied - began + time.monotonic() - written
            rows.append(["beside it", before_update, waits, written - copied, peak_mb()])
            began = restart()
            trainer.train(batch, serial)
            rows.append(["(a step)", "", time.monotonic() - began, "", peak_mb()])
    table(
        "A checkpoint of 135M parameters",
        [
            "weights and optimizer are written",
            *("s before the update", "s the loop waits in all", "s beside the loop"),
            "largest memory of the process, MB",
        ],
        rows,
    )


def restart() -> float:
    """Measure time and memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    return time.monotonic()


def peak_mb() -> float:
    """The largest memory of the process since `restart`."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
