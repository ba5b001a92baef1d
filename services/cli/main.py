"""Defines the command line `fulgurite`.

A command's module is imported when the command runs, so that `--help` is quick.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "up": (
        "services.local_stack.up:up",
        "Start the local stack: Kafka, vLLM, gateway, learner and the other services.",
    ),
    "env": (
        "services.local_stack.up:env",
        'Print the environment variables of the running stack: eval "$(fulgurite env)".',
    ),
    "run": (
        "services.runner.command:run",
        "Run an agent on tasks, in groups of rollouts, and reward each rollout.",
    ),
    "reward-worker": (
        "services.cli.reward_worker:reward_worker",
        "Run a reward worker: score every new episode with a reward function until stopped.",
    ),
    "judge": (
        "services.cli.judge:judge",
        "Run an LLM judge: rank the trajectories of every declared group until stopped.",
    ),
    "ledger": (
        "services.cli.ledger:ledger",
        "Account for every training action in the log; exit 1 if one is missing or counted twice.",
    ),
    "cost": (
        "services.cli.cost:cost",
        "Add up tokens, learner time and money per run, version, alias or group.",
    ),
    "diagnose": (
        "services.cli.diagnose:diagnose",
        "Say why a policy does not learn, and what to do; exit 3 if nothing is trained.",
    ),
    "replay": (
        "services.cli.replay:replay",
        "Rebuild trajectories from the log with another reward function, credit rule or weights.",
    ),
    "train": (
        "services.cli.train:train",
        "Train a policy on a topic of trajectories until stopped.",
    ),
    "sft": (
        "services.cli.offline:sft",
        "Train a policy on the best episodes in the log, without running agents.",
    ),
    "dpo": (
        "services.cli.offline:dpo",
        "Train a policy on pairs of better and worse episodes in the log, without running agents.",
    ),
    "try": (
        "services.cli.try_reward:try_reward",
        "Compare reward functions on recorded episodes; write nothing.",
    ),
    "select": (
        "services.cli.selection:app",
        "Choose between variants of an alias by what they earn.",
    ),
    "rollouts": (
        "services.cli.rollouts:app",
        "List the rollouts in the log, or show one as a timeline of its calls and rewards.",
    ),
    "sql": (
        "services.cli.sql:sql",
        "Query calls, rollouts, rewards, versions and all else in the log with SQL.",
    ),
    "policy": (
        "services.cli.policy:app",
        "List a policy's versions, show one, copy its weights, promote it, or roll back.",
    ),
    "prompts": (
        "services.cli.prompts:app",
        "Change the prompts of an alias without changing its agents, and look at their versions.",
    ),
    "track": (
        "services.cli.track:track",
        "Copy the metrics of versions to TensorBoard, W&B, MLflow or trackio.",
    ),
    "tune": (
        "services.cli.tune:tune",
        "Tune the prompt of an alias: make versions of it, score them, and keep the best.",
    ),
    "eval": (
        "services.cli.evaluate:evaluate",
        "Compare versions, aliases and other models on the same held-out tasks.",
    ),
    "gate": (
        "services.cli.gate_command:gate",
        "Give new versions a share of live traffic, and promote or roll them back, until stopped.",
    ),
    "pin": (
        "services.cli.pin:pin",
        "Make a recorded rollout a held-out task.",
    ),
    "lineage": (
        "services.cli.lineage:lineage",
        "List the calls that a version was trained on, or the versions trained on a call.",
    ),
    "export": (
        "services.cli.export:export",
        "Export rollouts as a data set: SFT chats, DPO pairs, transitions or Parquet.",
    ),
    "archive": (
        "services.cli.archive:archive",
        "Copy topics to Parquet files, so that their records outlive the topics' retention.",
    ),
    "claims": (
        "services.cli.claims:app",
        "Manage offloaded payloads: delete those that the log no longer names.",
    ),
    "dlq": (
        "services.cli.dlq:app",
        "List dead letters, show why they failed, and send them back to their topics.",
    ),
    "status": (
        "services.cli.status:status",
        "Show what answers, which versions are served, how far each service lags, and topic sizes.",
    ),
    "tail": (
        "services.cli.tail:tail",
        "Print the records of a topic as they are written, as text or JSON lines.",
    ),
    "watch": (
        "services.cli.watch:watch",
        "Watch a run: what its rollouts are doing, its curve, and its newest samples.",
    ),
    "doctor": (
        "services.cli.doctor:doctor",
        "Check this machine for the local stack; exit 1 if something needed is missing.",
    ),
}
"""Commands by name: their function, and the line that `--help` shows."""


class LazyGroup(TyperGroup):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the commands in the table's order, then the groups."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in for `--help`; `resolve_command` returns the real command."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is called."""
        if args and args[0] in COMMANDS:
            return args[0], load(args[0]), args[1:]
        return super().resolve_command(ctx, args)


def load(name: str) -> Any:
    """Import the command of this name."""
    module, _, function = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(module), function)
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False)
    single.command(name)(found)
    return typer.main.get_command(single)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fulgurite {metadata.version('fulgurite')}")
        raise typer.Exit


app = typer.Typer(
    name="fulgurite",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    help="Train LLM agents from the log of what they did.\n\nWhere Kafka is: "
    "KAFKA_BOOTSTRAP_SERVERS (default 127.0.0.1:9092). All settings: docs/reference/settings.md.",
)


@app.callback()
def _app(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Train LLM agents from the log of what they did."""


topics = typer.Typer(no_args_is_help=True, help="Create or list the topics on the broker.")
app.add_typer(topics, name="topics")


@topics.callback()
def _topics() -> None:
    """Create or list the topics on the broker."""


@topics.command("create")
def create() -> None:
    """Create missing topics, and check the settings of those that exist.

    Partitions and settings come from one table in the code (docs/reference/topics.md).
    FULGURITE_TOPIC_PREFIX is put before each name; FULGURITE_REPLICATION sets the replicas. Exits 1
    if a topic cannot be created or has other settings, or no broker answers.

    Example: `fulgurite topics create`
    """
    from services.cli.topics import create_topics_command

    create_topics_command()


@topics.command("list")
def list_topics() -> None:
    """List the topics: name on the broker, event types, key, partitions, records and retention.

    Topics that `fulgurite replay` wrote are listed too. Exits 1 if a topic is missing, 2 if no
    broker answers.

    Example: `fulgurite topics list`
    """
    from services.cli.topics import list_topics_command

    list_topics_command()


routes = typer.Typer(
    no_args_is_help=True, help="Choose which variants serve an alias: canary, promotion, rollback."
)
app.add_typer(routes, name="routes")

Alias = Annotated[
    str, typer.Argument(metavar="ALIAS", help="Alias: the model name that agents ask for.")
]
Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="Why, for people who read the route later.")
]


@routes.callback()
def _routes() -> None:
    """Choose which variants serve an alias: canary, promotion, rollback."""


@routes.command("set")
def set_route(
    alias: Alias,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="POLICY@EPOCH.STEP=SHARE, POLICY=SHARE for the newest version, or "
            "upstream:ALIAS=SHARE for a model of FULGURITE_UPSTREAMS. A prompt version and "
            "sampling parameters stand before the share: "
            "policy@1.3,prompt@2,temperature=0.7=SHARE.",
        ),
    ],
    reason: Reason = "by hand",
    wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait until backends serve the route; 0: do not wait."),
    ] = 30.0,
) -> None:
    """Route an alias to one or more variants, by share.

    Replaces the alias's route, waits until backends serve it, and exits 1 if none does. Refuses an
    alias or upstream that the gateway does not know, a version that was never published or whose
    weights are deleted, a prompt version that the alias lacks, and fractions that do not add up to
    1. A rollout keeps the variant it began
    with while that has a share. A backend holds one version of full
    weights: backends load the version with the greatest share, and those whose applier has
    FULGURITE_APPLIER_CANARY load the next.

    Example: `fulgurite routes set policy policy@1.3=0.9 policy@1.4=0.1`
    """
    from services.cli.routes import set_route_command

    set_route_command(alias, targets, reason, wait)


@routes.command("clear")
def clear_route(alias: Alias, reason: Reason = "by hand") -> None:
    """Remove an alias's route, so that the newest version of its policy serves it.

    Example: `fulgurite routes clear policy --reason "canary failed"`
    """
    from services.cli.routes import clear_route_command

    clear_route_command(alias, reason)


@routes.command("list")
def list_routes() -> None:
    """List the routes in force: who set them, when and why.

    The newest version of its policy serves an alias that is not listed.

    Example: `fulgurite routes list`
    """
    from services.cli.routes import list_routes_command

    list_routes_command()


if __name__ == "__main__":
    app()
