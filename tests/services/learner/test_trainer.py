"""The trainer on prefix forests computes what verl computes row by row, with the loss and
correction it was told, or refuses.
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import random
import warnings
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlparse

import msgspec
import numpy as np
import pytest
import structlog
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fulgurite.versions import Version
from services.learner.algorithms import ALGORITHMS
from services.learner.artifacts import ArtifactStore
from services.learner.config import AlgorithmConfig, RunConfig
from services.learner.errors import (
    CheckpointForeign,
    ConfigInvalid,
    EntropyCollapse,
    IncompatibleObjective,
    PolicyDrift,
    StepNotFinite,
)
from services.learner.metrics import meaning_of
from services.learner.train_row import STEP_FAILURES, TrainRow
from services.local_stack.model import tiny_model
from tests.services.learner.workers import worker_of

with warnings.catch_warnings():
    # verl tells of every engine that is not installed.
    warnings.simplefilter("ignore")
    from services.learner.engine.cpu_platform import select
    from services.learner.trainer import Trainer

    select("cpu")
    import verl.workers.engine_workers  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from verl.trainer.ppo.core_algos import (
        POLICY_LOSS_REGISTRY,
        get_policy_loss_fn,
        kl_penalty,
    )
    from verl.workers.config import ActorConfig

    from services.learner.correction import correction_weights
    from services.learner.engine import forest_engine

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

VOCABULARY = 200
TOKENS = [5, 17, 99, 3, 64, 12]


def trainer(model: Path | None = None, **tables: dict[str, Any]) -> Trainer:
    engine = {"dtype": "fp32", "device": "cpu", "micro_batch_tokens": 64}
    return Trainer(
        RunConfig.model_validate(
            {
                **tables,
                "policy": {"model": model or tiny_model()} | tables.get("policy", {}),
                "engine": engine | tables.get("engine", {}),
            }
        )
    )


def step(of: Trainer, rows: list[TrainRow]) -> dict[str, float]:
    """A batch of one mini-batch."""
    return of.train([rows], 1).metrics


DECOUPLED = {"correction": "decoupled"}


@pytest.fixture(scope="module")
def forest() -> Trainer:
    return trainer()


def batch(seed: int = 0, *, groups: int = 3, samples: int = 3) -> list[TrainRow]:
    """Two turns behind a prompt that groups share with one another, and samples with one another."""
    chance = np.random.default_rng(seed)

    def tokens(count: int) -> NDArray[np.int32]:
        return chance.integers(1, VOCABULARY, count, dtype=np.int32)

    system, rows = tokens(10), list[TrainRow]()
    for _ in range(groups):
        question = tokens(5)
        for _ in range(samples):
            parts = [
                (system, False),
                (question, False),
                (tokens(int(chance.integers(2, 9))), True),
                (tokens(4), False),
                (tokens(3), True),
            ]
            trained = np.concatenate([np.full(len(part), flag) for part, flag in parts])
            weight = (trained / np.float32(trained.sum() * groups * samples)).astype(np.float32)
            advantages = (chance.normal() * trained).astype(np.float32)
            zeros = np.zeros(len(trained), np.float32)
            rows.append(
                TrainRow(
                    np.concatenate([part for part, _ in parts]),
                    trained,
                    zeros,
                    advantages,
                    weight,
                    zeros + 1,
                )
            )
    return rows


def sampled(by: Trainer, rows: list[TrainRow], noise: float = 0.05) -> list[TrainRow]:
    """The rows, with behaviour log-probabilities near those of the trainer."""
    chance = np.random.default_rng(1)
    logprobs = by.row_logprobs(rows)
    return [
        msgspec.structs.replace(
            row,
            behaviour_logprobs=(
                (told + noise * chance.normal(size=len(told))) * row.trained
            ).astype(np.float32),
        )
        for row, told in zip(rows, logprobs, strict=True)
    ]


def weights(of: Trainer) -> dict[str, torch.Tensor]:
    state = worker_of(of).module.state_dict()
    return {name: value.full_tensor().clone() for name, value in state.items()}


def reference_logprobs(row: TrainRow) -> NDArray[np.float32]:
    """Hugging Face's own forward of one row, each token's logits divided by its own temperature."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(row.token_ids.astype(np.int64))[None]).logits[0, :-1]
    scaled = torch.log_softmax(logits / torch.from_numpy(row.temperature[1:, None]), dim=-1)
    told = scaled[
        torch.arange(len(scaled)), torch.from_numpy(row.token_ids[1:].astype(np.int64))
    ].numpy()
    return np.concatenate([np.zeros(1, np.float32), told]) * row.trained


def dense(rows: list[NDArray[Any]]) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.stack(
        [torch.from_numpy(np.pad(row.astype(np.float32), (0, longest - len(row)))) for row in rows]
    )


def test_a_step_on_the_forest_equals_verl_row_by_row() -> None:
    forest, by_row = trainer(), trainer(engine={"layout": "rows"})
    rows = sampled(forest, batch())
    for ours, theirs in zip(forest.row_logprobs(rows), by_row.row_logprobs(rows), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    shared, plain = step(forest, rows), step(by_row, rows)
    assert shared["forest_tokens"] < shared["row_tokens"]
    assert shared["micro_batches"] > 1
    for name in ("loss", "grad_norm", "k3", "ess"):
        assert shared[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("train", ["full", "lora"])
def test_gradient_checkpointing_changes_no_number(train: str) -> None:
    steps: list[dict[str, float]] = []
    for checkpointing in (False, True):
        made = trainer(
            policy={"weights": {"train": train}},
            engine={"gradient_checkpointing": checkpointing},
        )
        assert worker_of(made).module.is_gradient_checkpointing == checkpointing
        steps.append(step(made, sampled(made, batch())))
    for name in ("loss", "grad_norm", "entropy"):
        assert steps[0][name] == pytest.approx(steps[1][name], rel=1e-5), name
    assert steps[0]["grad_norm"] > 0


def test_the_order_of_rows_and_the_size_of_micro_batches_change_nothing() -> None:
    rows = sampled(trainer(), batch())
    shuffled = random.Random(0).sample(rows, len(rows))
    steps = [
        step(trainer(), rows),
        step(trainer(), shuffled),
        step(trainer(engine={"micro_batch_tokens": 4096}), rows),
    ]
    for name in ("loss", "grad_norm"):
        assert [one[name] for one in steps] == pytest.approx([steps[0][name]] * 3, rel=1e-4)


def test_computing_the_logits_in_parts_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sampled(trainer(), batch())
    steps = [step(trainer(), rows)]
    monkeypatch.setattr(forest_engine, "_HEADS_AT_ONCE", 7)
    steps.append(step(trainer(), rows))
    for name in ("loss", "grad_norm", "entropy", "k3"):
        assert steps[1][name] == pytest.approx(steps[0][name], rel=1e-5), name


def test_every_action_has_its_own_temperature_even_behind_a_shared_prefix(forest: Trainer) -> None:
    rows = [
        msgspec.structs.replace(
            row, temperature=np.full(len(row.trained), 0.5 + 0.25 * number, np.float32)
        )
        for number, row in enumerate(batch(groups=1))
    ]
    rows[0].temperature[-3:] = 2.0
    for row, told in zip(rows, forest.row_logprobs(rows), strict=True):
        np.testing.assert_allclose(told, reference_logprobs(row), atol=2e-5)


def test_logprobs_are_those_of_hugging_face(forest: Trainer) -> None:
    row = batch(groups=1, samples=1)[0]
    everything = msgspec.structs.replace(row, trained=np.arange(len(row.trained)) > 0)
    told = forest.logprobs(row.token_ids.tolist())
    assert told.dtype == np.float32
    np.testing.assert_allclose(told, reference_logprobs(everything)[1:], atol=2e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_equals_verl_s_own_loss_on_the_same_tensors(name: str) -> None:
    algorithm = ALGORITHMS[name]
    forest = trainer(algorithm={"name": name, "single_row_episodes": True})
    rows = sampled(forest, batch(), noise=0.2)
    mask = dense([row.trained for row in rows])
    advantages = dense([row.advantages for row in rows])
    low, high = algorithm.clip or (0.2, 0.2)
    config = ActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=algorithm.ratio_cap or 3.0,
    )
    expected, told = cast("Any", get_policy_loss_fn(algorithm.loss))(
        old_log_prob=dense([row.behaviour_logprobs for row in rows]),
        log_prob=dense(list(forest.row_logprobs(rows))),
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode="seq-mean-token-mean",
        config=config,
    )
    found = step(forest, rows)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert found["clip_fraction"] == pytest.approx(told["actor/pg_clipfrac"], abs=1e-6)


def test_losses_differ_where_the_ratio_is_not_1() -> None:
    after: dict[str, torch.Tensor] = {}
    for name in ("grpo", "gspo", "cispo", "sapo"):
        forest = trainer(
            algorithm={"name": name, "single_row_episodes": True}, optimizer={"lr": 1e-3}
        )
        step(forest, sampled(forest, batch(), noise=0.4))
        after[name] = torch.cat([value.flatten() for value in weights(forest).values()])
    for one, other in itertools.combinations(after, 2):
        assert not torch.allclose(after[one], after[other], atol=1e-5), (one, other)


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo"])
def test_the_second_mini_batch_moves_away_from_the_old_policy(name: str) -> None:
    """So that clips mean something: in the first, and in a batch of one, the ratio is 1."""
    algorithm = {"name": name, "single_row_episodes": True, **DECOUPLED, "mini_batches": 2}
    bounded = trainer(algorithm=algorithm, optimizer={"lr": 1e-2})
    parts = [sampled(bounded, batch(seed), noise=0) for seed in (0, 1)]
    trained = bounded.train(parts, 1)
    assert trained.mini_batches == (True, True)
    assert trained.metrics["optimizer_steps"] == 2
    assert trained.metrics["clip_fraction"] > 0


def test_epochs_pass_over_a_batch_again_with_the_same_old_policy() -> None:
    twice = trainer(algorithm={**DECOUPLED, "epochs": 2}, optimizer={"lr": 1e-2})
    rows = sampled(twice, batch(), noise=0)
    trained = twice.train([rows], 1)
    assert trained.metrics["optimizer_steps"] == 2
    assert trained.metrics["clip_fraction"] > 0
    assert trained.metrics["k3"] == pytest.approx(0, abs=1e-6), "of the policy before the batch"


def test_decoupled_recomputes_the_old_logprobs_and_weighs_by_the_engine_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[dict[str, Any]] = []
    vanilla = cast("Any", POLICY_LOSS_REGISTRY["vanilla"])

    def spy(**given: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        calls.append(given)
        return vanilla(**given)

    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "vanilla", cast("Any", spy))
    decoupled = trainer(algorithm=DECOUPLED)
    rows = sampled(decoupled, batch(), noise=0.4)
    assert step(decoupled, rows)["clip_fraction"] == 0
    assert calls
    for call in calls:
        torch.testing.assert_close(
            call["old_log_prob"], call["log_prob"].detach(), atol=1e-5, rtol=0
        )
        assert call["loss_agg_mode"] == "token-sum"
    per_token = [call["rollout_is_weights"][call["response_mask"]] for call in calls]
    every_weight = np.concatenate([row.weights[row.trained] for row in rows])
    assert float(torch.cat(per_token).max()) <= 2.0 * float(every_weight.max()) * 1.0001


def test_clips_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    vanilla = cast("Any", POLICY_LOSS_REGISTRY["vanilla"])

    def spy(**given: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        seen.append(given["config"])
        return vanilla(**given)

    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "vanilla", cast("Any", spy))
    forest = trainer(algorithm={"clip": {"high": 0.3}, "ratio_cap": 7.0})
    step(forest, sampled(forest, batch()))
    config = seen[0]
    assert (config.clip_ratio_low, config.clip_ratio_high, config.clip_ratio_c) == (0.2, 0.3, 7.0)


@pytest.mark.parametrize(
    ("weights_by", "expected"),
    [
        ("token", [1.0, 0.25, 2.0, 1.0]),
        ("sequence", [2.0, 2.0, 2.0, 0.0]),
        ("icepop", [1.0, 0.0, 0.0, 0.0]),
        ("reject", [1.0, 1.0, 1.0, 0.0]),
    ],
)
def test_the_weights_between_engine_and_trainer(weights_by: str, expected: list[float]) -> None:
    """Of a row of ratios 1, 1/4, 8 and padding: their product is 2, and so is what TIS allows."""
    config = RunConfig.model_validate(
        {"policy": {"model": "m"}, "algorithm": {**DECOUPLED, "weights": weights_by}}
    )
    log_ratio = torch.tensor([[1.0, 0.25, 8.0, 1.0]]).log()
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    found = correction_weights(log_ratio, mask, config.algorithm)
    assert (found[0] * mask[0]).tolist() == pytest.approx(
        [e * m for e, m in zip(expected, [1, 1, 1, 0], strict=True)]
    )


@pytest.mark.parametrize(("ratio", "kept"), [(0.4, 0.0), (0.6, 1.0), (3.0, 1.0), (5.0, 0.0)])
def test_rows_are_rejected_by_the_trainer_s_probability_over_the_engine_s(
    ratio: float, kept: float
) -> None:
    config = RunConfig.model_validate(
        {
            "policy": {"model": "m"},
            "algorithm": {
                **DECOUPLED,
                "weights": "reject",
                "weight_low": 0.5,
                "weight_high": 4.0,
            },
        }
    )
    found = correction_weights(
        torch.tensor([[ratio, ratio]]).log(), torch.ones(1, 2), config.algorithm
    )
    assert found.tolist() == [[kept, kept]]


def test_bypass_takes_the_engine_s_logprobs_as_the_old_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[torch.Tensor] = []
    vanilla = cast("Any", POLICY_LOSS_REGISTRY["vanilla"])

    def spy(**given: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        seen.append(given["old_log_prob"][given["response_mask"]])
        return vanilla(**given)

    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "vanilla", cast("Any", spy))
    forest = trainer()
    rows = sampled(forest, batch())
    step(forest, rows)
    told = np.sort(np.concatenate([row.behaviour_logprobs[row.trained] for row in rows]))
    np.testing.assert_array_equal(np.sort(torch.cat(seen).numpy()), told)


def test_entropy_and_kl_terms_join_the_loss() -> None:
    both = trainer(algorithm={"entropy_bonus": 0.1, "kl": 0.5}, optimizer={"lr": 1e-2})
    rows = sampled(both, batch())
    first = step(both, rows)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < first["entropy"] < np.log(300)
    assert first["loss"] == pytest.approx(
        first["policy_loss"] - 0.1 * first["entropy"] + 0.5 * first["kl"], rel=1e-4
    )
    assert step(both, sampled(both, rows))["kl"] > 0


@pytest.mark.parametrize(
    "estimator", get_args(AlgorithmConfig.model_fields["kl_estimator"].annotation)
)
def test_every_estimator_of_the_kl_pulls_towards_the_reference(estimator: str) -> None:
    """Of k1 the gradient is 1 whatever the two are: it would do the same to likely and unlikely
    tokens, which is nothing in expectation.
    """
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    penalty = kl_penalty(cast("Any", logprobs), cast("Any", torch.tensor([-2.0, -2.0])), estimator)
    penalty.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0] > 0 > logprobs.grad[1]


def test_tokens_weigh_the_same_in_episodes_of_one_row() -> None:
    one = trainer(algorithm={"name": "dr_grpo", "single_row_episodes": True})
    rows = [
        msgspec.structs.replace(row, weights=(row.trained / np.float32(600)).astype(np.float32))
        for row in batch()
    ]
    assert np.isfinite(step(one, sampled(one, rows))["loss"])


@pytest.mark.parametrize("correction", ["bypass", "decoupled"])
def test_the_metrics_of_a_step_are_documented_and_tell_of_ages(correction: str) -> None:
    one = trainer(algorithm={"kl": 0.5, "correction": correction})
    rows = sampled(one, batch())
    aged = [
        msgspec.structs.replace(row, ages=np.full(len(row.token_ids), 5 * (place % 2), np.int32))
        for place, row in enumerate(rows)
    ]
    metrics = step(one, aged)
    assert [name for name in metrics if meaning_of(name) is None] == []
    assert {name for name in metrics if "/age/" in name} == {
        f"{name}/age/{ages}" for name in ("k3", "ess") for ages in ("0", "4-7")
    }


def test_a_learning_rate_of_0_has_a_warning() -> None:
    over = trainer(optimizer={"schedule": "cosine", "decay_steps": 2})
    rows = sampled(over, batch())
    with structlog.testing.capture_logs() as logs:
        assert over.train([rows], 1).metrics["lr"] > 0
        assert not [line for line in logs if line["log_level"] == "warning"]
        assert over.train([sampled(over, rows)], 2).metrics["lr"] == 0
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert "the learning rate of a step is 0" in line["event"]
    assert (line["step"], line["decay_steps"]) == (2, 2)


def test_drift_beyond_the_bound_stops_the_step_and_changes_nothing() -> None:
    forest = trainer()
    rows = sampled(forest, batch())
    before = weights(forest)
    with pytest.raises(PolicyDrift) as raised:
        step(
            forest,
            [
                msgspec.structs.replace(row, behaviour_logprobs=row.behaviour_logprobs - 3)
                for row in rows
            ],
        )
    assert raised.value.k3 > 0.2
    for setting in (
        "drift.stop.k3 = 0.2",
        "batch.max_staleness",
        "optimizer.lr",
        "batch.groups",
    ):
        assert setting in str(raised.value)
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())
    assert step(forest, rows)["k3"] < 0.02
    assert not all(torch.equal(before[name], value) for name, value in weights(forest).items())


@pytest.mark.parametrize("correction", ["bypass", "decoupled"])
def test_logprobs_that_are_no_numbers_are_no_drift(correction: str) -> None:
    """So the batch is tried again and halved, and the learner goes on."""
    forest = trainer(algorithm={"correction": correction})
    rows = sampled(forest, batch())
    before = weights(forest)
    rows[0].behaviour_logprobs[rows[0].trained] = np.nan
    with pytest.raises(StepNotFinite, match="a log-probability of the batch is not finite"):
        step(forest, rows)
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())


@pytest.mark.parametrize("advantage", [3e38, np.inf, np.nan])
@pytest.mark.parametrize("correction", ["bypass", "decoupled"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_step_and_changes_nothing(
    advantage: float, correction: str
) -> None:
    forest = trainer(algorithm={"correction": correction})
    rows = sampled(forest, batch())
    step(forest, rows)
    before = weights(forest)
    state = [value.clone() for value in optimizer_state(forest)]
    poisoned = rows[0].advantages.copy()
    poisoned[rows[0].trained] = advantage
    with pytest.raises(StepNotFinite, match="no weight was changed"):
        step(forest, [msgspec.structs.replace(rows[0], advantages=poisoned), *rows[1:]])
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())
    assert all(
        torch.equal(old, new) for old, new in zip(state, optimizer_state(forest), strict=True)
    )
    assert np.isfinite(step(forest, rows)["grad_norm"])
    assert not all(torch.equal(before[name], value) for name, value in weights(forest).items())


def optimizer_state(of: Trainer) -> list[torch.Tensor]:
    state = worker_of(of).optimizer.state
    tensors = [
        value
        for values in state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]
    return [
        cast("Any", value).full_tensor() if hasattr(value, "full_tensor") else value
        for value in tensors
    ]


def test_a_batch_without_trained_tokens_is_refused(forest: Trainer) -> None:
    with pytest.raises(IncompatibleObjective):
        step(
            forest,
            [
                msgspec.structs.replace(row, trained=np.zeros(len(row.trained), np.bool_))
                for row in batch()
            ],
        )


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_has_the_base_model_s_names_and_dtype(tmp_path: Path, *, tied: bool) -> None:
    model = tiny_model(tied=tied)
    trainer(model, engine={"dtype": "bf16"}).export(tmp_path / "model.safetensors")
    base, exported = (
        load_file(model / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    assert exported.keys() == base.keys()
    for name, tensor in base.items():
        assert exported[name].dtype is torch.bfloat16
        torch.testing.assert_close(exported[name], tensor, atol=0, rtol=0)


def logprobs_of(model: Any) -> NDArray[np.float32]:
    """What a model of transformers says of TOKENS."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([TOKENS])).logits[0, :-1].float().log_softmax(-1)
    return logprobs[range(len(TOKENS) - 1), TOKENS[1:]].numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_a_version_computes_what_its_trainer_computes(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    model = tiny_model()
    made = trainer(model, engine={"dtype": dtype}, optimizer={"lr": 1e-3})
    step(made, sampled(made, batch()))
    artifact = ArtifactStore(tmp_path, "policy", model, durable=False).write(
        Version("policy", 1, 1), made.export
    )
    folder = Path(urlparse(artifact.uri).path).parent
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    np.testing.assert_allclose(logprobs_of(loaded), made.logprobs(TOKENS), atol=tolerance)
    before = load_file(model / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert loaded.dtype is {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert {tensor.dtype for tensor in after.values()} == {loaded.dtype}
    assert any(not torch.equal(after[name].to(before[name].dtype), before[name]) for name in before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_loaded_trainer_goes_on_as_the_saved_one(tmp_path: Path, dtype: str) -> None:
    saved, loaded = (trainer(engine={"dtype": dtype}, optimizer={"lr": 1e-2}) for _ in range(2))
    rows = sampled(saved, batch())
    step(saved, rows)
    # A forward pass leaves copies of the weights in the model, in the type that it computes in.
    saved.row_logprobs(rows)
    loaded.row_logprobs(rows)
    saved.save(tmp_path)
    loaded.load(tmp_path)
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in weights(saved).items())
    again = sampled(saved, rows)
    one, other = step(saved, again), step(loaded, again)
    for name in ("loss", "grad_norm", "k3"):
        assert one[name] == pytest.approx(other[name], rel=1e-6), name


@pytest.mark.parametrize("copied", [False, True])
def test_what_is_saved_beside_the_loop_is_what_was_there_when_it_began(
    tmp_path: Path, *, copied: bool
) -> None:
    saved, loaded = (trainer(optimizer={"lr": 1e-2}) for _ in range(2))
    # On a CPU the next step waits, as a copy on a GPU's host need not.
    worker_of(saved)._is_on_cpu = not copied  # pyright: ignore[reportPrivateUsage]
    rows = sampled(saved, batch())
    step(saved, rows)
    again, then = sampled(saved, rows), weights(saved)
    assert saved.is_saved(), "nothing was begun"
    saved.begin_to_save(tmp_path)
    step(saved, again)
    assert saved.is_saved(wait=True)
    loaded.load(tmp_path)
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in then.items())
    assert not torch.equal(*(next(iter(found.values())) for found in (then, weights(saved))))


def test_what_the_run_says_counts_after_a_resume_not_what_was_saved(tmp_path: Path) -> None:
    saved = trainer(optimizer={"lr": 1e-2})
    rows = sampled(saved, batch())
    step(saved, rows)
    saved.save(tmp_path)
    told = {"lr": 1e-6, "weight_decay": 0.1, "betas": [0.5, 0.6], "eps": 1e-4}
    loaded = trainer(optimizer=told)
    loaded.load(tmp_path)
    before = weights(loaded)
    assert step(loaded, sampled(loaded, rows))["lr"] == 1e-6
    (group,) = worker_of(loaded).optimizer.param_groups
    assert {name: group[name] for name in told} == {**told, "betas": (0.5, 0.6)}
    moved = max(
        float((value - before[name]).abs().max()) for name, value in weights(loaded).items()
    )
    assert 0 < moved < 1e-4


def test_a_row_that_the_model_fails_on_changes_nothing_and_the_next_step_is_made() -> None:
    forest = trainer()
    rows = sampled(forest, batch())
    before = weights(forest)
    unknown = rows[0].token_ids.copy()
    unknown[0] = forest.vocabulary + 7
    with pytest.raises(STEP_FAILURES):
        step(forest, [msgspec.structs.replace(rows[0], token_ids=unknown), *rows[1:]])
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())
    fresh = trainer()
    assert step(forest, rows)["grad_norm"] == pytest.approx(
        step(fresh, sampled(fresh, rows))["grad_norm"], rel=1e-5
    )


def test_a_collapsed_entropy_stops_the_step_and_changes_nothing() -> None:
    forest = trainer(algorithm={"entropy_stop_below": 50, "entropy_alarm_below": 60})
    rows = sampled(forest, batch())
    before = weights(forest)
    with pytest.raises(EntropyCollapse) as raised:
        step(forest, rows)
    assert "algorithm.entropy_stop_below = 50" in str(raised.value)
    assert "algorithm.entropy_bonus" in str(raised.value)
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())


def test_a_low_entropy_is_warned_of_and_trained() -> None:
    forest = trainer(algorithm={"entropy_alarm_below": 60})
    rows = sampled(forest, batch())
    with structlog.testing.capture_logs() as lines:
        metrics = step(forest, rows)
    (line,) = [line for line in lines if "entropy is low" in line["event"]]
    assert (line["log_level"], line["entropy"]) == ("warning", metrics["entropy"])
    assert "optimizer.lr" in line["remedy"]


def test_a_mini_batch_that_is_not_finite_is_passed_over() -> None:
    forest = trainer(algorithm={**DECOUPLED, "mini_batches": 2})
    rows = sampled(forest, batch())
    poisoned = [
        msgspec.structs.replace(row, advantages=np.full_like(row.advantages, np.inf))
        for row in rows[:3]
    ]
    trained = forest.train([poisoned, rows[3:]], 1)
    assert trained.mini_batches == (False, True)
    assert isinstance(trained.failures[0], StepNotFinite)
    assert all(map(np.isfinite, trained.metrics.values()))


def test_a_checkpoint_of_another_model_or_an_earlier_release_is_refused(tmp_path: Path) -> None:
    forest = trainer()
    forest.save(tmp_path / "tied")
    with pytest.raises(CheckpointForeign, match=r"the shape of lm_head\.weight is None there"):
        trainer(tiny_model(tied=False)).load(tmp_path / "tied")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model_world_size_1_rank_0.pt").touch()
    with pytest.raises(CheckpointForeign, match="of an earlier release"):
        forest.load(tmp_path / "old")


def test_a_checkpoint_has_no_pickle(tmp_path: Path) -> None:
    forest = trainer()
    step(forest, sampled(forest, batch()))
    forest.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors"}
    names = {name for path in files for name in load_file(path)}
    assert "optimizer.model.norm.weight.exp_avg" in names


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigInvalid, match="WORLD_SIZE=2, but each learner starts its workers"):
        trainer()


@pytest.mark.parametrize(("fast_bf16", "dtype"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_without_fast_bf16_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch, dtype: str, *, fast_bf16: bool
) -> None:
    monkeypatch.setattr("services.learner.trainer.multiplies_bf16", lambda: fast_bf16)
    made = trainer(engine={"dtype": "auto"})
    assert made.config.engine.dtype == dtype
    assert made.config.engine.device == "cpu"
