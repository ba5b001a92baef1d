"""What a training run is told: the tables of `run.toml`, their keys, defaults and meaning.

Unknown keys, and keys that do not go together or would have no effect, are refused.
`services.learner.config_file` reads them. Importable without torch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fulgurite.topics import TRAJECTORIES
from services.learner.algorithms import ALGORITHMS
from services.learner.algorithms.algorithm import Algorithm

ALL_LINEAR = "all-linear"
"""Targets of an adapter: every linear layer but the head."""

_SEPARATORS = frozenset("@,=/\\ \t\n")
"""Characters that mean something else in versions, aliases and paths."""

_NOT_SERVED = frozenset({"lm_head", "embed_tokens"})
"""Modules whose adapters the applier refuses."""


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class WeightsConfig(Section):
    """Which weights are trained: the model's own, or those of a LoRA adapter beside them."""

    train: Literal["full", "lora"] = "full"
    """`full` trains all weights; `lora` trains an adapter, and the base model stays as it is."""
    rank: int = Field(default=16, ge=1)
    """Rank of the adapter's matrices; vLLM needs `--max-lora-rank` of at least as much."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's product counts `alpha / rank` times."""
    targets: str | tuple[str, ...] = ALL_LINEAR
    """Modules that get an adapter, such as `["q_proj", "v_proj"]`; `all-linear` is every linear
    layer but the head."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        unused = sorted(self.model_fields_set - {"train"})
        if self.train == "full" and unused:
            raise ValueError(
                f"{', '.join(unused)} would have no effect with train = 'full'; set train = 'lora'"
            )
        problem = _wrong_targets(self.targets)
        if problem is not None:
            raise ValueError(problem)
        return self


def _wrong_targets(targets: str | tuple[str, ...]) -> str | None:
    """What is wrong with the modules of an adapter; None if nothing is."""
    if isinstance(targets, str):
        if targets == ALL_LINEAR:
            return None
        return (
            f"targets = {targets!r} must be {ALL_LINEAR!r} or a list of modules, such as "
            "['q_proj', 'v_proj']"
        )
    if not targets:
        return f"targets = [] leaves nothing to train; name modules, or set {ALL_LINEAR!r}"
    ends = [name for name in targets if name.rpartition(".")[2] in _NOT_SERVED]
    if ends:
        return (
            f"targets has {ends[0]}, but adapters of the embedding or the head cannot be served; "
            f"name other modules, or set {ALL_LINEAR!r}"
        )
    return None


class PolicyConfig(Section):
    """What is trained, and from which topic."""

    name: str = "policy"
    """The policy that is trained."""
    model: Path
    """Hugging Face folder of the base model."""
    topic: str = TRAJECTORIES.name
    """Topic of trajectories, without the prefix; another one after a replay."""
    rows_of: str | None = None
    """Another policy, whose trajectories this one learns from; for a replayed topic."""
    until_end: bool = False
    """Stop once everything that the topic holds is settled; for a replayed topic."""
    parent: str | None = None
    """Version of another policy whose weights `model` is. `fulgurite train --without` sets it."""
    without: tuple[str, ...] = ()
    """Subjects and tenants that the replayed topic leaves out. `fulgurite train --without` sets
    it."""
    weights: WeightsConfig = WeightsConfig()
    frozen: bool = False
    """Served as it is and trained by no learner: its actions are `filtered(frozen)`, their rewards
    stay in the baseline."""

    @field_validator("name")
    @classmethod
    def _can_be_an_alias(cls, name: str) -> str:
        if not name or set(name) & _SEPARATORS or name.startswith("."):
            raise ValueError(
                f"{name!r} cannot be a policy's name: it is empty, begins with a dot, or has one "
                "of `@ , = /` or a space in it"
            )
        return name

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.rows_of is not None and self.topic == TRAJECTORIES.name:
            raise ValueError(
                f"rows_of = {self.rows_of!r} needs a replayed topic: rows of the live topic are "
                "trained by the learner of their own policy"
            )
        if self.until_end and self.topic == TRAJECTORIES.name:
            raise ValueError(
                "until_end = true needs a replayed topic: the live topic has no end to stop at"
            )
        return self


class Clip(Section):
    """Bounds of the ratio to the old policy; without them, the algorithm's."""

    low: float | None = Field(default=None, gt=0)
    """How far the ratio may fall below 1; of `dppo_tv` and `dppo_kl`, the divergence downwards."""
    high: float | None = Field(default=None, gt=0)
    """How far the ratio may rise above 1; of `dppo_tv` and `dppo_kl`, the divergence upwards."""


class AlgorithmConfig(Section):
    """How credits become gradients."""

    name: str = "grpo"
    """`grpo`, `dr_grpo`, `rloo`, `reinforce++`, `gspo`, `cispo`, `dppo_tv`, `dppo_kl`, `sapo`."""
    correction: Literal["bypass", "decoupled"] = "bypass"
    """Old log-probabilities: `bypass` takes those that the engine recorded; `decoupled` recomputes
    them before the step, with importance weights between the two (`weights`)."""
    weights: Literal["token", "sequence", "icepop", "reject"] = "token"
    """Importance weights of `decoupled`, trainer's probability over engine's: `token` truncates
    each, `sequence` takes one per row, `icepop` and `reject` leave out tokens or rows beyond the
    bounds."""
    weight_low: float = Field(default=0.5, gt=0)
    """Lower bound of these weights, for `icepop` and `reject`."""
    weight_high: float = Field(default=2.0, gt=0)
    """Upper bound of these weights."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps in one pass over a batch, each on whole groups. More than one makes the ratio
    to the old policy differ from 1, which clips are about."""
    epochs: int = Field(default=1, ge=1)
    """Passes over a batch."""
    clip: Clip = Clip()
    ratio_cap: float | None = Field(default=None, gt=1)
    """Largest ratio: dual clip of `grpo` and its kin, truncation of `dppo`. Without it, the
    algorithm's."""
    single_row_episodes: bool = False
    """Promise that every episode is one row, as losses over whole sequences need. The learner stops
    at a batch that breaks it."""
    entropy_bonus: float = 0.0
    """Weight of the entropy bonus."""
    entropy_alarm_below: float = Field(default=0.05, ge=0)
    """Mean entropy of the trained tokens, in nats, below which the learner warns."""
    entropy_stop_below: float = Field(default=0.0, ge=0)
    """Entropy below which no update is made, and the learner stops; 0: never."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the KL term against the base model."""
    kl_estimator: Literal["k1+", "abs", "k2", "low_var_kl", "k3", "k3+"] = "low_var_kl"
    """verl's estimator of that KL; `low_var_kl` is `k3`. `k1+` and `k3+` have the values of k1 and
    k3 and the gradient of `k2`, which is that of the KL. The gradient of k1 itself is 0 in
    expectation, so there is no `k1`."""

    @property
    def algorithm(self) -> Algorithm:
        """What the name stands for."""
        return ALGORITHMS[self.name]

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that one batch makes."""
        return self.mini_batches * self.epochs

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in ALGORITHMS:
            raise ValueError(f"{name!r} is no algorithm; there are {', '.join(ALGORITHMS)}")
        return name

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        problem = _conflict(self, self.algorithm)
        if problem is not None:
            raise ValueError(problem)
        return self


def _conflict(config: AlgorithmConfig, algorithm: Algorithm) -> str | None:
    """What does not go together, or would have no effect; None if all is well."""
    name, given = config.name, config.model_fields_set
    bounded = config.clip != Clip() or config.ratio_cap is not None
    one_step = config.correction == "decoupled" and config.steps_per_batch == 1
    if algorithm.whole_sequences and not config.single_row_episodes:
        return (
            f"name = {name!r} is a loss over whole sequences, and episodes may have several rows; "
            "set single_row_episodes = true if yours never do, or take `grpo`"
        )
    if config.correction == "bypass" and config.steps_per_batch > 1:
        return (
            f"correction = 'bypass' makes one optimizer step per batch, not "
            f"{config.steps_per_batch} (mini_batches x epochs); set correction = 'decoupled'"
        )
    if config.correction == "bypass" and given & {"weights", "weight_low", "weight_high"}:
        return "correction = 'bypass' has no importance weights; set correction = 'decoupled'"
    if one_step and algorithm.is_its_ratio:
        return (
            f"name = {name!r} with correction = 'decoupled' and one optimizer step per batch is "
            "`grpo`: the ratio to the old policy is 1; set mini_batches = 2 or more, or "
            "correction = 'bypass'"
        )
    if one_step and bounded:
        return (
            "clip and ratio_cap have no effect with correction = 'decoupled' and one optimizer "
            "step per batch: the ratio to the old policy is 1; set mini_batches = 2 or more"
        )
    if config.clip != Clip() and algorithm.clip is None:
        return f"clip has no effect with name = {name!r}, whose loss has no such bounds"
    if config.ratio_cap is not None and algorithm.ratio_cap is None:
        return f"ratio_cap has no effect with name = {name!r}, whose loss has none"
    if config.entropy_stop_below > config.entropy_alarm_below:
        return (
            f"entropy_stop_below = {config.entropy_stop_below:g} is above entropy_alarm_below = "
            f"{config.entropy_alarm_below:g}: the learner would stop without a warning"
        )
    if "kl_estimator" in given and config.kl == 0:
        return "kl_estimator has no effect with kl = 0"
    if "weight_low" in given and config.weights in ("token", "sequence"):
        return f"weight_low has no effect with weights = {config.weights!r}"
    if config.weight_low >= config.weight_high:
        return (
            f"weight_low = {config.weight_low:g} is not below weight_high = {config.weight_high:g}"
        )
    return None


class BatchConfig(Section):
    """Which groups become a batch, and when."""

    groups: int = Field(default=8, ge=1)
    """Groups with a signal in one batch; those without one are settled on the way."""
    wait: Literal["groups", "tokens"] = "groups"
    """What makes a batch whole: `groups` of them, or `tokens` to train in however many."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens to train in one batch, with `wait = "tokens"`."""
    max_wait_s: float = Field(default=120.0, gt=0)
    """Seconds that a group with a signal waits before a smaller batch is taken."""
    max_staleness: int = Field(default=8, ge=0)
    """Versions after which an action is too old to be trained."""
    max_row_tokens: int = Field(default=4096, ge=2)
    """Longest row in tokens; actions of longer ones are `filtered(oversized)`."""
    baseline: Literal["group", "batch", "moving_average"] = "group"
    """What groups with fewer than two scored episodes are compared with: `batch`, all scored
    episodes of the batch; `moving_average`, those of the batches before. With `group` they are
    `filtered(no_baseline)`."""
    baseline_decay: float = Field(default=0.9, gt=0, lt=1)
    """Share of the moving average that remains after a batch."""
    permute_rewards: int | None = None
    """Seed of a control experiment that permutes rewards within groups, and must not learn."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if (self.wait == "tokens") != (self.tokens is not None):
            raise ValueError(
                f"wait = {self.wait!r} and tokens = {self.tokens}: `tokens` needs a number of "
                "tokens, `groups` has none"
            )
        if self.wait == "tokens" and "groups" in self.model_fields_set:
            raise ValueError(
                f"groups = {self.groups} has no effect with wait = 'tokens': leave it out, and "
                "unset FULGURITE__BATCH__GROUPS; where policies share it, set it for those that "
                "wait for groups"
            )
        if self.baseline == "batch" and self.wait == "groups" and self.groups == 1:
            raise ValueError(
                "baseline = 'batch' with groups = 1 compares a group with itself; set groups = 2 "
                "or more, or baseline = 'moving_average'"
            )
        if self.baseline != "moving_average" and "baseline_decay" in self.model_fields_set:
            raise ValueError(f"baseline_decay has no effect with baseline = {self.baseline!r}")
        if self.baseline != "group" and self.permute_rewards is not None:
            raise ValueError(
                f"permute_rewards with baseline = {self.baseline!r} is no control: it permutes "
                "within groups, and a single reward stays where it is; set baseline = 'group'"
            )
        return self


class OptimizerConfig(Section):
    """AdamW."""

    lr: float = Field(default=4e-5, gt=0)
    """Learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises to `lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after that."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Step at which `linear` and `cosine` reach `min_lr`; each batch of the learner is a step."""
    min_lr: float = Field(default=0.0, ge=0)
    """Where they end."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the square root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if (self.schedule == "constant") != (self.decay_steps is None):
            raise ValueError(
                f"schedule = {self.schedule!r} and decay_steps = {self.decay_steps}: "
                "`linear` and `cosine` need decay_steps, `constant` has none"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)}: each must be from 0 to below 1")
        if self.schedule == "constant" and self.min_lr:
            raise ValueError(
                f"min_lr = {self.min_lr:g} has no effect with schedule = 'constant'; set 'linear' "
                "or 'cosine', and decay_steps"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr:g} is above lr = {self.lr:g}")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps = {self.decay_steps} must be above warmup_steps = {self.warmup_steps}"
            )
        return self

    def lr_at(self, step: int) -> float:
        """The learning rate of an optimizer step, counted from 1: a function of the step alone."""
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.decay_steps is None:
            return self.lr
        done = min(1.0, (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps))
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.min_lr + (self.lr - self.min_lr) * left


class EngineConfig(Section):
    """What computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cpu`, `cuda`, or `auto`, which takes a GPU if there is one."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type that the model computes in: `bf16`, `fp32`, or `auto`, which is `fp32` on a CPU without
    AVX-512, where bf16 is seven times slower. Master weights and optimizer are fp32 either way.
    Versions of all weights have the base model's type, or this one if it is more precise. Let
    engines compute in it too (vLLM's `--dtype`), or they sample a policy that is rounded more."""
    seed: int = 0
    """Seed of initialisation and order."""
    layout: Literal["forest", "rows"] = "forest"
    """`forest` computes each shared prefix once; `rows` computes rows one by one, as verl does, at
    one temperature each."""
    attention: Literal["auto", "dense", "flex"] = "auto"
    """How a forest is masked. `dense`: a matrix of all its tokens. `flex`: lists of blocks
    (FlexAttention), on GPUs only; it carries micro-batches of 100,000 tokens and more. `auto`:
    `flex` for a forest on a GPU, else `dense`."""
    micro_batch_tokens: int = Field(default=512, ge=2)
    """Tokens in a micro-batch. Larger ones share more, but attention is quadratic in them. A longer
    row makes a micro-batch of its own."""
    placement: Literal["process", "ray"] = "process"
    """`process` computes in the learner's process, on one device. `ray` starts a worker for each
    device; together they hold the model. RAY_ADDRESS names the cluster, without it Ray starts on
    this machine."""
    workers_per_node: int = Field(default=1, ge=1)
    """Workers on each node, with `placement = "ray"`: as many as it has GPUs to train on."""
    nodes: int = Field(default=1, ge=1)
    """Nodes with workers. FULGURITE_DATA_DIR must be a folder that all of them share."""
    gradient_checkpointing: bool = False
    """Keep the inputs of each layer only, and compute the rest again in the backward pass: a third
    more time, and memory for longer micro-batches."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.attention == "flex" and (self.device == "cpu" or self.layout == "rows"):
            raise ValueError(
                f'attention = "flex" with device = {self.device!r} and layout = {self.layout!r}: '
                "FlexAttention masks a forest, and has no backward pass on a CPU"
            )
        if self.placement == "process" and self.worker_count != 1:
            raise ValueError(
                f"nodes = {self.nodes} and workers_per_node = {self.workers_per_node} need "
                'placement = "ray": a process computes on one device'
            )
        return self

    @property
    def worker_count(self) -> int:
        """How many workers hold the model."""
        return self.nodes * self.workers_per_node


class DriftAlarm(Section):
    """Beyond these the learner warns."""

    k3: float = Field(default=0.02, gt=0)
    """Mean k3 estimate of KL(engine ‖ trainer) over trained tokens; 0.002 is usual between bf16
    engines."""
    ess: float = Field(default=0.8, ge=0, le=1)
    """Effective sample size of the ratios trainer/engine, as a share of the trained tokens."""


class DriftStop(Section):
    """Beyond these no update is made, and the learner stops."""

    k3: float = Field(default=0.2, gt=0)
    """As in `drift.alarm`."""
    ess: float = Field(default=0.3, ge=0, le=1)
    """As in `drift.alarm`."""


class DriftConfig(Section):
    """How far engine and trainer may be apart on a batch."""

    alarm: DriftAlarm = DriftAlarm()
    stop: DriftStop = DriftStop()

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        alarm, stop = self.alarm, self.stop
        for name, bound, warned_at, is_tighter in (
            ("k3", stop.k3, alarm.k3, stop.k3 < alarm.k3),
            ("ess", stop.ess, alarm.ess, stop.ess > alarm.ess),
        ):
            if is_tighter:
                raise ValueError(
                    f"stop.{name} = {bound:g} is tighter than alarm.{name} = {warned_at:g}: the "
                    "learner would stop without a warning"
                )
        return self


class CheckpointConfig(Section):
    """What a learner resumes from."""

    every_steps: int = Field(default=1, ge=1)
    """Write weights and optimizer after every so many steps, beside the loop. Until they are
    written, checkpoints have the batches instead, and a resumed learner makes these steps again."""
    resume_from: str | None = None
    """Version of an older checkpoint to go on from, such as `policy@1.7`, where the log knows later
    ones; what those generated is stale. Without it such a checkpoint is refused."""


class PublishConfig(Section):
    """What becomes of a version."""

    keep: int = Field(default=4, ge=1)
    """How many of the newest versions keep their weights on disk. Versions that a route names, or
    that a rollback would return to, keep them too."""


class OfflineConfig(Section):
    """What `fulgurite sft` and `fulgurite dpo` have in common."""

    epochs: int = Field(default=1, ge=1)
    """Passes over what was chosen; each ends with a version."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate in the place of `optimizer.lr`; the schedule is that of `[optimizer]`, with
    steps counted from the start of the command."""
    batch_size: int = Field(default=8, ge=1)
    """Episodes (SFT) or pairs (DPO) in one optimizer step."""
    modes: tuple[Literal["train", "live"], ...] = Field(default=("train",), min_length=1)
    """Modes of the rollouts: `train` and `live`. Rollouts of mode `val` are never trained."""
    rows_of: str | None = None
    """Another policy, whose trajectories are trained on; without it `policy.rows_of`, or the policy
    itself."""


class SftConfig(OfflineConfig):
    """What `fulgurite sft` trains on."""

    top_k: int = Field(default=1, ge=1)
    """Most episodes of a group, the best-rewarded first."""
    min_reward: float | None = None
    """Least reward of an episode. Without it, a reward above the lowest of its group; a rollout
    without a group then has nothing to be compared with."""


class DpoConfig(OfflineConfig):
    """What `fulgurite dpo` trains on, and how."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: larger values hold it more."""
    margin: float = Field(default=0.0, ge=0)
    """Least difference of the rewards of a pair. Equal rewards are never a pair."""
    pairs_per_group: int = Field(default=1, ge=1)
    """Most pairs of a group, the widest first. An episode is in one pair at most."""
    compare: Literal["episode", "first_action"] = "episode"
    """What is compared: all actions of the two episodes, or the first of each."""
    reference: Literal["parent", "base"] = "parent"
    """What the policy is held to: the version that the command starts from, or the base model."""


class RunConfig(Section):
    """A whole run of one policy."""

    policy: PolicyConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    drift: DriftConfig = DriftConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    publish: PublishConfig = PublishConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for name, lr in (("sft", self.sft.lr), ("dpo", self.dpo.lr)):
            if lr is not None and self.optimizer.min_lr > lr:
                raise ValueError(
                    f"optimizer.min_lr = {self.optimizer.min_lr:g} is above {name}.lr = {lr:g}"
                )
        by_batch = self.algorithm.algorithm.comparison == "batch"
        if by_batch and self.batch.baseline == "moving_average":
            raise ValueError(
                f"batch.baseline = 'moving_average' has no effect with algorithm.name = "
                f"{self.algorithm.name!r}, which compares within the batch; set it to 'batch'"
            )
        return self

    def resolved(self) -> str:
        """Every key with its value, as JSON: what the claim of an epoch records."""
        return self.model_dump_json(exclude={"policy": {"model"}})
