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
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fulgurite.versions import Version
from services.applier.artifacts import check, find
from services.common.runtime.weights_index import NAME
from services.learner.artifacts import ArtifactStore
from services.learner.errors import ConfigInvalid, PolicyDrift, WorkersLost
from services.local_stack.model import tiny_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray

    from tests.services.learner.test_trainer import (
        TOKENS,
        Trainer,
        batch,
        logprobs_of,
        sampled,
        step,
        trainer,
    )

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
    """The tensors of a version, in one file or in the shards of several workers."""
    folder.mkdir()
    of.export(folder / "model.safetensors")
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    tensors = {name: tensor for file in files for name, tensor in file.items()}
    assert len(tensors) == sum(map(len, files)), "each tensor is in one file"
    return tensors


def test_several_workers_make_the_steps_of_one(tmp_path: Path) -> None:
    alone = trainer(optimizer=OPTIMIZER)
    # Three cannot have the same share of each weight.
    with workers(3) as several:
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
            torch.testing.assert_close(ours[name], tensor, atol=2e-3, rtol=1e-2)
        (tmp_path / "saved").mkdir()
        several.save(tmp_path / "saved")
    resumed = trainer(optimizer=OPTIMIZER)
    resumed.load(tmp_path / "saved")
    again, expected = step(resumed, rows), step(alone, rows)
    for name in ("loss", "grad_norm", "entropy"):
        assert again[name] == pytest.approx(expected[name], rel=1e-3), name


def test_workers_write_a_version_in_shards_that_every_tool_reads(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, "policy", tiny_model(), durable=False)
    with workers(2) as several:
        rows = sampled(several, batch())
        step(several, rows)
        artifact = store.write(Version("policy", 1, 1), several.export)
        expected = several.logprobs(TOKENS)
    folder = store.folder / "1.1"
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 2 * min(sizes)
    assert (artifact.uri, artifact.size) == ((folder / NAME).as_uri(), sum(sizes))
    weights = find(artifact)
    check(weights)
    assert weights.engine_path == folder
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    np.testing.assert_allclose(logprobs_of(loaded), expected, atol=1e-4)


def test_workers_write_what_they_resume_from_while_they_go_on(tmp_path: Path) -> None:
    with workers(2) as several:
        rows = sampled(several, batch())
        step(several, rows)
        again, expected = sampled(several, rows), several.logprobs(TOKENS)
        several.begin_to_save(tmp_path)
        step(several, again)
        assert several.is_saved(wait=True)
        assert several.is_saved()
        np.testing.assert_raises(
            AssertionError, np.testing.assert_allclose, several.logprobs(TOKENS), expected
        )
    resumed = trainer(optimizer=OPTIMIZER)
    resumed.load(tmp_path)
    np.testing.assert_allclose(resumed.logprobs(TOKENS), expected, atol=1e-4)


def test_more_workers_than_there_are_devices_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="= 5, but Ray has 4 CPUs"), workers(5):
        pass


def test_a_worker_that_is_killed_ends_the_group() -> None:
    with workers(2) as several:
        rows = sampled(several, batch())
        ray.kill(cast("Any", several.workers)._group.workers[1])
        with pytest.raises(WorkersLost, match="one of 2 workers has failed"):
            step(several, rows)
