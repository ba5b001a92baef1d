"""The trainer on prefix forests computes what verl computes row by row, with the loss and
correction it was told, or refuses.
"""

# verl and tensordict ship no usable annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from services.learner.errors import IncompatibleObjective, PolicyDrift, StepNotFinite
from services.learner.train_row import TrainRow
from services.learner.trainer_settings import TrainerSettings
from services.local_stack.model import tiny_model

with warnings.catch_warnings():
    # verl tells of every engine that is not installed.
    warnings.simplefilter("ignore")
    from services.learner.trainer import Trainer
    from services.learner.verl_cpu import select

    select("cpu")
    import verl.workers.engine_workers  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from verl.trainer.ppo.core_algos import (
        POLICY_LOSS_REGISTRY,
        get_adv_estimator_fn,
        get_policy_loss_fn,
    )
    from verl.workers.config import ActorConfig

    from services.learner.objective import check

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

VOCABULARY = 200


def trainer(**settings: Any) -> Trainer:
    return Trainer(
        tiny_model(),
        TrainerSettings.model_validate(
            {"dtype": "fp32", "device": "cpu", "max_forest_tokens": 64, **settings}
        ),
    )


@pytest.fixture(scope="module")
def forest() -> Trainer:
    return trainer()


def batch(
    seed: int = 0, *, groups: int = 3, samples: int = 3, one_row_each: bool = True
) -> list[TrainRow]:
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
    return (
        rows
        if one_row_each
        else [
            msgspec.structs.replace(row, weights=(row.weights / 2).astype(np.float32))
            for row in rows
        ]
    )


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
    return {name: value.full_tensor().clone() for name, value in of.module.state_dict().items()}


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
    forest, by_row = trainer(), trainer(share_prefixes=False)
    rows = sampled(forest, batch())
    for ours, theirs in zip(forest.row_logprobs(rows), by_row.row_logprobs(rows), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    shared, plain = forest.step(rows), by_row.step(rows)
    assert shared["forest_tokens"] < shared["row_tokens"]
    assert shared["micro_batches"] > 1
    for name in ("loss", "grad_norm", "k3", "ess"):
        assert shared[name] == pytest.approx(plain[name], rel=1e-4, abs=1e-7), name


def test_the_order_of_rows_and_the_size_of_micro_batches_change_nothing() -> None:
    rows = sampled(trainer(), batch())
    shuffled = random.Random(0).sample(rows, len(rows))
    steps = [
        trainer().step(rows),
        trainer().step(shuffled),
        trainer(max_forest_tokens=4096).step(rows),
    ]
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in steps] == pytest.approx([steps[0][name]] * 3, rel=1e-4)


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


def test_a_grpo_step_equals_verl_s_own_functions_on_the_same_tensors() -> None:
    forest = trainer()
    rows = sampled(forest, batch(), noise=0.2)
    mask = dense([row.trained for row in rows])
    rewards = torch.zeros_like(mask)
    rewards[:, -1] = torch.rand(len(rows), generator=torch.Generator().manual_seed(0))
    index = np.repeat(np.arange(3), 3)
    advantages, _ = get_adv_estimator_fn("grpo")(
        token_level_rewards=rewards, response_mask=mask, index=index
    )
    rows = [
        msgspec.structs.replace(row, advantages=advantages[n, : len(row.trained)].numpy())
        for n, row in enumerate(rows)
    ]
    config = ActorConfig(strategy="fsdp2", rollout_n=1, use_dynamic_bsz=True)
    expected, told = cast("Any", get_policy_loss_fn("vanilla"))(
        old_log_prob=dense([row.behaviour_logprobs for row in rows]),
        log_prob=dense(list(forest.row_logprobs(rows))),
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode="seq-mean-token-mean",
        config=config,
    )
    step = forest.step(rows)
    assert step["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert step["clip_fraction"] == pytest.approx(told["actor/pg_clipfrac"], abs=1e-6)
    assert step["clip_fraction"] > 0


def test_the_configured_loss_and_correction_are_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    vanilla = cast("Any", POLICY_LOSS_REGISTRY["vanilla"])

    def spy(**given: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        calls.append(given)
        return vanilla(**given)

    monkeypatch.setitem(POLICY_LOSS_REGISTRY, "spy", cast("Any", spy))
    decoupled = trainer(policy_loss="spy", correction="decoupled", clip_low=0.1, clip_high=0.3)
    rows = sampled(decoupled, batch(), noise=0.4)
    step = decoupled.step(rows)
    assert calls
    assert step["clip_fraction"] == 0
    for call in calls:
        # Recomputed, so equal to the trainer's own; the engine's enter as truncated weights.
        torch.testing.assert_close(
            call["old_log_prob"], call["log_prob"].detach(), atol=1e-5, rtol=0
        )
        assert (call["config"].clip_ratio_low, call["config"].clip_ratio_high) == (0.1, 0.3)
        assert call["loss_agg_mode"] == "token-sum"
    per_token = [call["rollout_is_weights"][call["response_mask"]] for call in calls]
    every_weight = np.concatenate([row.weights[row.trained] for row in rows])
    assert float(torch.cat(per_token).max()) <= 2.0 * float(every_weight.max()) * 1.0001


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
    forest.step(rows)
    told = np.sort(np.concatenate([row.behaviour_logprobs[row.trained] for row in rows]))
    np.testing.assert_array_equal(np.sort(torch.cat(seen).numpy()), told)


def test_entropy_and_kl_terms_join_the_loss() -> None:
    both = trainer(entropy_coef=0.1, kl_coef=0.5, lr=1e-2)
    rows = sampled(both, batch())
    first = both.step(rows)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < first["entropy"] < np.log(300)
    assert first["loss"] == pytest.approx(
        first["policy_loss"] - 0.1 * first["entropy"] + 0.5 * first["kl"], rel=1e-4
    )
    assert both.step(sampled(both, rows))["kl"] > 0


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"policy_loss": "gspo", "correction": "decoupled"}, "whole sequences"),
        ({"policy_loss": "sapo", "correction": "decoupled"}, "whole sequences"),
        ({"policy_loss": "gspo", "single_row_episodes": True}, "bypass"),
        ({"policy_loss": "cispo"}, "bypass"),
        ({"policy_loss": "geo_mean", "correction": "decoupled"}, "micro-batch"),
        ({"policy_loss": "bypass_mode"}, "correction"),
        ({"policy_loss": "nonesuch"}, "no policy loss"),
    ],
)
def test_what_does_not_go_together_is_refused_at_start(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(IncompatibleObjective, match=why):
        check(TrainerSettings.model_validate(settings))


def test_a_sequence_loss_refuses_a_batch_with_several_rows_per_episode() -> None:
    sapo = trainer(policy_loss="sapo", correction="decoupled", single_row_episodes=True)
    with pytest.raises(IncompatibleObjective, match="episodes of several rows"):
        sapo.step(batch(one_row_each=False))
    assert np.isfinite(sapo.step(sampled(sapo, batch()))["loss"])


def test_drift_beyond_the_bound_stops_the_step_and_changes_nothing() -> None:
    forest = trainer()
    rows = sampled(forest, batch())
    before = weights(forest)
    with pytest.raises(PolicyDrift) as raised:
        forest.step(
            [
                msgspec.structs.replace(row, behaviour_logprobs=row.behaviour_logprobs - 3)
                for row in rows
            ]
        )
    assert raised.value.k3 > 0.2
    for setting in (
        "FULGURITE_TRAINER_DRIFT_STOP_K3=0.2",
        "FULGURITE_MAX_STALENESS",
        "FULGURITE_TRAINER_LR",
        "FULGURITE_GROUPS_PER_STEP",
    ):
        assert setting in str(raised.value)
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())
    assert forest.step(rows)["k3"] < 0.02
    assert not all(torch.equal(before[name], value) for name, value in weights(forest).items())


def test_logprobs_that_are_no_numbers_stop_the_step_too() -> None:
    forest = trainer()
    rows = sampled(forest, batch())
    rows[0].behaviour_logprobs[rows[0].trained] = np.nan
    with pytest.raises(PolicyDrift):
        forest.step(rows)


@pytest.mark.parametrize("advantage", [3e38, np.inf, np.nan])
@pytest.mark.parametrize("correction", ["bypass", "decoupled"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_step_and_changes_nothing(
    advantage: float, correction: str
) -> None:
    forest = trainer(correction=correction)
    rows = sampled(forest, batch())
    forest.step(rows)
    before = weights(forest)
    state = [value.clone() for value in optimizer_state(forest)]
    poisoned = rows[0].advantages.copy()
    poisoned[rows[0].trained] = advantage
    with pytest.raises(StepNotFinite, match="no weight was changed"):
        forest.step([msgspec.structs.replace(rows[0], advantages=poisoned), *rows[1:]])
    assert all(torch.equal(before[name], value) for name, value in weights(forest).items())
    assert all(
        torch.equal(old, new) for old, new in zip(state, optimizer_state(forest), strict=True)
    )
    assert np.isfinite(forest.step(rows)["grad_norm"])
    assert not all(torch.equal(before[name], value) for name, value in weights(forest).items())


def optimizer_state(of: Trainer) -> list[torch.Tensor]:
    state = of._worker.engine.optimizer.state  # pyright: ignore[reportPrivateUsage]
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
        forest.step(
            [
                msgspec.structs.replace(row, trained=np.zeros(len(row.trained), np.bool_))
                for row in batch()
            ]
        )


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_has_the_base_model_s_names_and_dtype(tmp_path: Path, *, tied: bool) -> None:
    model = tiny_model(tied=tied)
    Trainer(model, TrainerSettings(device="cpu", dtype="bf16")).export(
        tmp_path / "model.safetensors"
    )
    base, exported = (
        load_file(model / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    assert exported.keys() == base.keys()
    for name, tensor in base.items():
        assert exported[name].dtype is torch.bfloat16
        torch.testing.assert_close(exported[name], tensor, atol=0, rtol=0)


def test_a_loaded_trainer_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    saved, loaded = trainer(lr=1e-2), trainer(lr=1e-2)
    rows = sampled(saved, batch())
    saved.step(rows)
    saved.save(tmp_path)
    loaded.load(tmp_path)
    again = sampled(saved, rows)
    one, other = saved.step(again), loaded.step(again)
    for name in ("loss", "grad_norm", "k3"):
        assert one[name] == pytest.approx(other[name], rel=1e-6), name
    after = weights(loaded)
    assert all(
        torch.allclose(value, after[name], atol=1e-7) for name, value in weights(saved).items()
    )
