"""A run's file: what counts, what is refused and by which name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from services.learner.algorithms import ALGORITHMS
from services.learner.config import OptimizerConfig, RunConfig
from services.learner.config_file import (
    FORMER_VARIABLES,
    former_in,
    keys,
    load,
    load_all,
    presets,
    variable,
)
from services.learner.errors import ConfigInvalid

MODEL = {"FULGURITE_MODEL": "/models/tiny"}


def run(tmp_path: Path, text: str, environment: Mapping[str, str] = MODEL) -> RunConfig:
    file = tmp_path / "run.toml"
    file.write_text(text)
    return load(file, environment)


def test_an_offline_learning_rate_is_not_below_the_end_of_the_schedule() -> None:
    with pytest.raises(ConfigInvalid, match=r"optimizer\.min_lr = 1e-05 is above dpo\.lr = 1e-06"):
        load(
            None,
            {
                "FULGURITE_MODEL": "m",
                "FULGURITE__OPTIMIZER__SCHEDULE": "linear",
                "FULGURITE__OPTIMIZER__DECAY_STEPS": "9",
                "FULGURITE__OPTIMIZER__MIN_LR": "1e-5",
                "FULGURITE__DPO__LR": "1e-6",
            },
        )


def test_a_run_without_a_file_has_the_defaults() -> None:
    config = load(None, MODEL)
    assert config.policy.model == Path("/models/tiny")
    assert (config.policy.name, config.algorithm.name, config.batch.groups) == ("policy", "grpo", 8)


def test_the_environment_counts_before_the_file_and_the_file_before_its_preset(
    tmp_path: Path,
) -> None:
    text = 'preset = "laptop"\n[batch]\ngroups = 3\nmax_staleness = 2\n'
    config = run(
        tmp_path,
        text,
        {
            **MODEL,
            "FULGURITE__BATCH__GROUPS": "5",
            "FULGURITE__OPTIMIZER__BETAS": "[0.8, 0.95]",
            "FULGURITE__OPTIMIZER__LR": "1e-6",
        },
    )
    assert (config.batch.groups, config.batch.max_staleness) == (5, 2)
    assert (config.optimizer.betas, config.optimizer.lr) == ((0.8, 0.95), 1e-6)
    assert config.engine.device == "cpu", "as the preset says"


@pytest.mark.parametrize("name", presets())
def test_the_groups_of_a_preset_do_not_hinder_batches_by_tokens(tmp_path: Path, name: str) -> None:
    text = f'preset = "{name}"\n[batch]\nwait = "tokens"\ntokens = 5\n'
    assert run(tmp_path, text).batch.tokens == 5
    environment = {
        **MODEL,
        "FULGURITE__BATCH__WAIT": "tokens",
        "FULGURITE__BATCH__TOKENS": "5",
    }
    assert run(tmp_path, f'preset = "{name}"\n', environment).batch.tokens == 5
    with pytest.raises(ConfigInvalid, match="groups = 3 has no effect"):
        run(tmp_path, text + "groups = 3\n")


def test_variables_of_earlier_releases_count_before_the_default_only(tmp_path: Path) -> None:
    environment = {
        **MODEL,
        "FULGURITE_TRAINER_LR": "1e-3",
        "FULGURITE_GROUPS_PER_STEP": "4",
        "FULGURITE_TRAINER_SHARE_PREFIXES": "False",
        "FULGURITE_TRAINER_POLICY_LOSS": "vanilla",
        "FULGURITE_TRAINER_CLIP_LOW": "0.1",
        "FULGURITE_TRAINER_DTYPE": "",
    }
    config = run(tmp_path, "[batch]\ngroups = 3\n", environment)
    assert (config.optimizer.lr, config.batch.groups) == (1e-3, 3)
    assert (config.engine.layout, config.algorithm.name) == ("rows", "grpo")
    assert (config.algorithm.clip.low, config.algorithm.clip.high) == (0.1, None)
    assert former_in(environment) == {
        "FULGURITE_TRAINER_LR": "optimizer.lr",
        "FULGURITE_GROUPS_PER_STEP": "batch.groups",
        "FULGURITE_TRAINER_SHARE_PREFIXES": "engine.layout",
        "FULGURITE_TRAINER_POLICY_LOSS": "algorithm.name",
        "FULGURITE_TRAINER_CLIP_LOW": "algorithm.clip.low",
    }


def test_every_former_variable_names_a_key() -> None:
    assert {former.key for former in FORMER_VARIABLES.values()} <= keys().keys()


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_whole_run(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, f'preset = "{name}"\n').policy.name == "policy"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[batch]\ngropus = 3", "run.toml: batch.gropus: there is no such key; did you mean batch.groups?"),
        ("[batch]\nlr = 1e-5", "run.toml: batch.lr: there is no such key; did you mean optimizer.lr?"),
        ("[bach]\ngroups = 3", "run.toml: bach: there is no such key"),
        ("[batch]\ngroups = 0", "run.toml: batch.groups: Input should be greater than or equal to 1"),
        ('[batch]\ngroups = "many"', "run.toml: batch.groups: Input should be a valid integer"),
        ("[engine]\nworkers_per_node = 2", 'engine: nodes = 1 and workers_per_node = 2 need placement = "ray"'),
        ("[drift.alarm]\nk3 = 0", "run.toml: drift.alarm.k3: Input should be greater than 0"),
        ('preset = "desktop"', "preset = 'desktop' is not known; there are eight-gpus, laptop"),
        ("preset = 1", "preset = 1 is not known"),
        ("[batch", "run.toml is no TOML"),
        ('[batch]\nwait = "tokens"', "batch: wait = 'tokens' and tokens = None: `tokens` needs a number"),
        ("[batch]\ntokens = 5", "batch: wait = 'groups' and tokens = 5: `tokens` needs"),
        ('[batch]\nbaseline = "batch"\ngroups = 1', "batch: baseline = 'batch' with groups = 1 compares a group with"),
        ('[batch]\nwait = "tokens"\ntokens = 5\ngroups = 4', "batch: groups = 4 has no effect with wait = 'tokens'"),
        ("[drift.stop]\nk3 = 0.01", "drift: stop.k3 = 0.01 is tighter than alarm.k3 = 0.02"),
        ("[drift.alarm]\ness = 0.2", "drift: stop.ess = 0.3 is tighter than alarm.ess = 0.2"),
        ("[drift.stop]\nk3 = inf", "run.toml: drift.stop.k3: Input should be a finite number"),
        ("[algorithm]\nentropy_bonus = nan", "run.toml: algorithm.entropy_bonus: Input should be a finite number"),
        ("[optimizer]\nbetas = [0.9, nan]", "optimizer.betas.1: Input should be a finite number"),
        ("[batch]\nbaseline_decay = 0.5", "baseline_decay has no effect with baseline = 'group'"),
        ('[batch]\nbaseline = "batch"\npermute_rewards = 1', "permute_rewards with baseline = 'batch' is no control"),
        ('[algorithm]\nname = "reinforce++"\n[batch]\nbaseline = "moving_average"',
         "batch.baseline = 'moving_average' has no effect with algorithm.name = 'reinforce++'"),
        ("[algorithm]\nentropy_stop_below = 0.1", "entropy_stop_below = 0.1 is above entropy_alarm_below = 0.05"),
        ('[algorithm]\nkl = 0.1\nkl_estimator = "k1"', "algorithm.kl_estimator: Input should be 'k1+', 'abs'"),
        ('[algorithm]\nname = "gspo2"', "algorithm.name: 'gspo2' is no algorithm; there are grpo, "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_its_key_and_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as error:
        run(tmp_path, text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"FULGURITE__BATCH__GROUPS": "x"}, "FULGURITE__BATCH__GROUPS=x: batch.groups: Input should be"),
        ({"FULGURITE_TRAINER_LR": "fast"}, "FULGURITE_TRAINER_LR=fast: optimizer.lr: Input should be"),
        ({"FULGURITE__BATCH__GROPUS": "1"}, "did you mean batch.groups?"),
        ({"FULGURITE__OPTIMIZER__BETAS": "[1,"}, "FULGURITE__OPTIMIZER__BETAS=[1,: optimizer.betas: "),
        ({"FULGURITE__BATCH": "1", "FULGURITE__BATCH__GROUPS": "1"}, "batch is a key, not a table"),
        ({"FULGURITE_MODEL": ""}, "policy.model is missing; set it in the file or by FULGURITE__POLICY__MODEL"),
    ],
)  # fmt: skip
def test_so_are_variables(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigInvalid) as error:
        load(None, {**MODEL, **variables})
    assert says in str(error.value)


def test_weights_are_full_or_an_adapter(tmp_path: Path) -> None:
    assert load(None, MODEL).policy.weights.train == "full"
    config = run(
        tmp_path,
        '[policy]\nweights = { train = "lora", rank = 8, targets = ["q_proj"] }\n',
        {**MODEL, "FULGURITE__POLICY__WEIGHTS__ALPHA": "64"},
    )
    weights = config.policy.weights
    assert (weights.train, weights.rank, weights.alpha) == ("lora", 8, 64)
    assert weights.targets == ("q_proj",)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ('{ rank = 8, alpha = 8 }', "policy.weights: alpha, rank would have no effect with train = 'full'"),
        ('{ train = "qlora" }', "policy.weights.train: Input should be 'full' or 'lora'"),
        ('{ train = "lora", targets = [] }', "leaves nothing to train"),
        ('{ train = "lora", targets = "q_proj" }', "must be 'all-linear' or a list"),
        ('{ train = "lora", targets = ["q_proj", "lm_head"] }', "targets has lm_head"),
        ('{ train = "lora", dropout = 0.1 }', "policy.weights.dropout: there is no such key"),
    ],
)  # fmt: skip
def test_weights_that_do_not_go_together_are_refused(
    tmp_path: Path, weights: str, says: str
) -> None:
    with pytest.raises(ConfigInvalid) as error:
        run(tmp_path, f"[policy]\nweights = {weights}\n")
    assert says in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"none\.toml cannot be read: No such file"):
        load(tmp_path / "none.toml", MODEL)


@pytest.mark.parametrize(
    ("keys_given", "says"),
    [
        ('name = "gspo"', "set single_row_episodes = true"),
        ('mini_batches = 2', "set correction = 'decoupled'"),
        ("epochs = 2", "set correction = 'decoupled'"),
        ("weight_high = 3.0", "has no importance weights"),
        ('correction = "decoupled"\nname = "cispo"', "is `grpo`: the ratio to the old policy is 1"),
        ('correction = "decoupled"\nclip = {low = 0.1}', "have no effect"),
        ('correction = "decoupled"\nratio_cap = 5.0', "have no effect"),
        ('name = "sapo"\nsingle_row_episodes = true\nclip = {high = 0.1}', "clip has no effect"),
        ('name = "cispo"\nratio_cap = 5.0', "ratio_cap has no effect"),
        ('kl_estimator = "k2"', "kl_estimator has no effect with kl = 0"),
        ('correction = "decoupled"\nweight_low = 0.4', "weight_low has no effect"),
        ('correction = "decoupled"\nweights = "icepop"\nweight_low = 3.0', "is not below"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_or_has_no_effect_is_refused(
    tmp_path: Path, keys_given: str, says: str
) -> None:
    with pytest.raises(ConfigInvalid) as error:
        run(tmp_path, f"[algorithm]\n{keys_given}\n")
    assert "run.toml: algorithm: " in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("correction", ["bypass", "decoupled"])
def test_every_algorithm_goes_with_both_corrections(
    tmp_path: Path, name: str, correction: str
) -> None:
    steps = 2 if correction == "decoupled" else 1
    config = run(
        tmp_path,
        f'[algorithm]\nname = "{name}"\ncorrection = "{correction}"\nmini_batches = {steps}\n'
        "single_row_episodes = true\n",
    )
    assert config.algorithm.algorithm.name == name


@pytest.mark.parametrize(
    ("given_keys", "says"),
    [
        ('schedule = "cosine"', "need decay_steps"),
        ("decay_steps = 9", "`constant` has none"),
        ("betas = [0.9, 1.0]", "betas"),
        ("min_lr = 1e-6", "min_lr = 1e-06 has no effect with schedule = 'constant'"),
        ('schedule = "linear"\ndecay_steps = 9\nmin_lr = 1.0', "min_lr = 1 is above lr"),
        ('schedule = "linear"\nwarmup_steps = 9\ndecay_steps = 9', "must be above warmup_steps"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(tmp_path: Path, given_keys: str, says: str) -> None:
    with pytest.raises(ConfigInvalid) as error:
        run(tmp_path, f"[optimizer]\n{given_keys}\n")
    assert says in str(error.value)


def test_the_learning_rate_rises_and_falls() -> None:
    constant = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [constant.lr_at(step) for step in (1, 2, 4, 5, 900)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = OptimizerConfig(lr=1.0, schedule="linear", decay_steps=10, min_lr=0.5)
    assert [linear.lr_at(step) for step in (5, 10, 11)] == [0.75, 0.5, 0.5]
    cosine = OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=2, decay_steps=12)
    assert [round(cosine.lr_at(step), 6) for step in (2, 7, 12)] == [1.0, 0.5, 0.0]


@given(st.integers(1, 50), st.integers(1, 100), st.sampled_from(["linear", "cosine"]))
def test_a_learning_rate_stays_between_its_bounds(warmup: int, more: int, schedule: str) -> None:
    config = OptimizerConfig.model_validate(
        {"lr": 1.0, "min_lr": 0.1, "warmup_steps": warmup, "schedule": schedule}
        | {"decay_steps": warmup + more}
    )
    rates = [config.lr_at(step) for step in range(1, warmup + more + 5)]
    assert all(0 < rate <= 1.0 for rate in rates)
    assert rates[warmup - 1 :] == sorted(rates[warmup - 1 :], reverse=True)


def test_the_resolved_run_has_every_key_and_no_path(tmp_path: Path) -> None:
    resolved = json.loads(run(tmp_path, "[batch]\ngroups = 3").resolved())
    assert resolved["batch"]["groups"] == 3
    assert "model" not in resolved["policy"]
    assert resolved["optimizer"]["lr"] == OptimizerConfig().lr


def test_every_key_has_a_description_and_a_variable() -> None:
    for key, field in keys().items():
        assert field.description, key
        assert variable(key).startswith("FULGURITE__")
    assert issubclass(RunConfig, BaseModel)


SEVERAL = """
preset = "laptop"
[optimizer]
lr = 1e-5
[batch]
groups = 4

[[policy]]
name = "writer"
weights = {train = "lora", rank = 8}
[policy.optimizer]
lr = 2e-5
betas = [0.8, 0.9]

[[policy]]
name = "critic"
frozen = true
"""


def test_each_policy_of_a_file_has_its_own_tables_before_the_shared_ones(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(SEVERAL)
    writer, critic = load_all(file, MODEL)
    assert (writer.policy.name, writer.policy.weights.rank, writer.policy.frozen) == (
        "writer",
        8,
        False,
    )
    assert (writer.optimizer.lr, writer.optimizer.betas, writer.batch.groups) == (
        2e-5,
        (0.8, 0.9),
        4,
    )
    assert (critic.policy.name, critic.policy.frozen) == ("critic", True)
    assert (critic.optimizer.lr, critic.optimizer.betas) == (1e-5, (0.9, 0.999))
    assert {run.engine.device for run in (writer, critic)} == {"cpu"}, "as the preset says"


@pytest.mark.parametrize(
    ("named", "environment"),
    [
        ("critic", {}),
        (None, {"FULGURITE_POLICY": "critic"}),
        (None, {"FULGURITE_POLICY": "writer", "FULGURITE__POLICY__NAME": "critic"}),
        ("critic", {"FULGURITE_POLICY": "writer", "FULGURITE__POLICY__NAME": "writer"}),
    ],
)
def test_a_policy_is_picked_by_its_name(
    tmp_path: Path, named: str | None, environment: dict[str, str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(SEVERAL)
    config = load(file, {**MODEL, **environment, "FULGURITE__BATCH__GROUPS": "2"}, named)
    assert (config.policy.name, config.batch.groups) == ("critic", 2)


def test_the_only_policy_of_a_list_needs_no_name(tmp_path: Path) -> None:
    assert run(tmp_path, '[[policy]]\nname = "writer"').policy.name == "writer"


def test_a_file_with_one_policy_takes_another_name(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[policy]\nname = "writer"')
    assert load(file, MODEL, "writer-2").policy.name == "writer-2"
    assert [one.policy.name for one in load_all(file, MODEL)] == ["writer"]
    assert [one.policy.name for one in load_all(None, MODEL)] == ["policy"]


@pytest.mark.parametrize(
    ("text", "environment", "says"),
    [
        (SEVERAL, {}, "run.toml has several policies (writer, critic), and a learner trains one"),
        (SEVERAL, {"FULGURITE_POLICY": "wirter"}, "run.toml has no policy 'wirter'; it has writer, critic"),
        ("[[policy]]\nname='a'\n[[policy]]\n", {}, "[[policy]] 2 of 2 has no name"),
        ("[[policy]]\nname='a'\n[[policy]]\nname='a'", {}, "two policies are named 'a'"),
        ("policy = []", {}, "policy = [] has no policy"),
        ("policy = [1]", {}, "[[policy]] 1 of 1 has no name"),
        ("[[policy]]\nname = 'a'\n[policy.batch]\ngroups = 0", {}, "run.toml, policy a: batch.groups: Input should be"),
        ("[batch]\ngroups = 0\n[[policy]]\nname = 'a'", {}, "run.toml: batch.groups: Input should be"),
        ("[[policy]]\nname = 'a'\nlr = 1", {}, "run.toml, policy a: policy.lr: there is no such key; did you mean optimizer.lr?"),
        ("[[policy]]\nname = 'a=b'", {}, "policy.name: 'a=b' cannot be a policy's name"),
        ("[policy]\nname = '../x'", {}, "policy.name: '../x' cannot be a policy's name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_several_policies_is_told(
    tmp_path: Path, text: str, environment: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigInvalid) as error:
        run(tmp_path, text, {**MODEL, **environment})
    assert says in str(error.value)
