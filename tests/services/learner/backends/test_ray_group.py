"""Several workers compute what one computes: the same steps, refusals and checkpoints."""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from services.learner.errors import ConfigInvalid, PolicyDrift, WorkersLost

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray

    from tests.services.learner.test_trainer import Trainer, batch, sampled, step, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    # One cluster at a time: each has processes for gigabytes.
    pytest.mark.xdist_group("ray"),
]

# AdamW divides by the size of a gradient, so the rounding of a small one grows with the rate.
OPTIMIZER = {"lr": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: it takes seconds to start."""
    ray.init(num_cpus=4, include_dashboard=False)
    yield
    ray.shutdown()


@contextmanager
def workers(count: int, **tables: Any) -> Generator[Trainer]:
    """A trainer with so many workers."""
    made = trainer(
        engine={"placement": "ray", "workers_per_node": count}, optimizer=OPTIMIZER, **tables
    )
    try:
        yield made
    finally:
        made.close()


def exported(of: Trainer, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    of.export(folder / "model.safetensors")
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("count", [2, 4])
def test_several_workers_make_the_steps_of_one(tmp_path: Path, count: int) -> None:
    alone = trainer(optimizer=OPTIMIZER)
    with workers(count) as several:
        rows = sampled(alone, batch())
        drifted = [
            msgspec.structs.replace(row, behaviour_logprobs=row.behaviour_logprobs - 3)
            for row in rows
        ]
        for number in range(3):
            one, many = step(alone, rows), step(several, rows)
            for name in ("loss", "grad_norm", "k3", "ess", "entropy", "policy_loss"):
                assert many[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), (number, name)
            with pytest.raises(PolicyDrift) as refused:
                step(several, drifted)
            assert refused.value.k3 > 0.2
            rows = sampled(alone, rows)
        for one, many in zip(alone.row_logprobs(rows), several.row_logprobs(rows), strict=True):
            torch.testing.assert_close(torch.tensor(many), torch.tensor(one), atol=5e-4, rtol=1e-3)
        ours, theirs = exported(several, tmp_path / "many"), exported(alone, tmp_path / "one")
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            # They are written in bf16.
            torch.testing.assert_close(ours[name], tensor, atol=2e-3, rtol=1e-2)
        (tmp_path / "saved").mkdir()
        several.save(tmp_path / "saved")
    resumed = trainer(optimizer=OPTIMIZER)
    resumed.load(tmp_path / "saved")
    again, expected = step(resumed, rows), step(alone, rows)
    for name in ("loss", "grad_norm", "entropy"):
        assert again[name] == pytest.approx(expected[name], rel=1e-3), name


def test_more_workers_than_there_are_devices_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="= 5, but Ray has 4 CPUs"), workers(5):
        pass


def test_a_worker_that_is_killed_ends_the_group() -> None:
    with workers(2) as several:
        rows = sampled(several, batch())
        ray.kill(cast("Any", several.workers)._group.workers[1])
        with pytest.raises(WorkersLost, match="one of 2 workers has failed"):
            step(several, rows)
