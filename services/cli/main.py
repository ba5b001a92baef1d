"""The command line, `fulgurite`. A command's module is imported when the command runs, so that
`--help` is quick.
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
        "Start everything on this machine: Kafka, vLLM, gateway, learner and the rest.",
    ),
    "env": (
        "services.local_stack.up:env",
        'Print the exports of the stack that runs: eval "$(fulgurite env)".',
    ),
    "run": (
        "services.runner.command:run",
        "Run an agent on tasks: groups of rollouts, rewarded, and learned from.",
    ),
    "reward-worker": (
        "services.cli.reward_worker:reward_worker",
        "Judge all that comes with a reward function, for as long as it runs.",
    ),
    "judge": (
        "services.cli.judge:judge",
        "Have a model rank the trajectories of every declared group, for as long as it runs.",
    ),
    "ledger": (
        "services.cli.ledger:ledger",
        "Account for every action of the log; exit 1 if one is missing or counted twice.",
    ),
    "replay": (
        "services.cli.replay:replay",
        "Rebuild trajectories from the log: with another reward function, credit rule or weights.",
    ),
    "train": (
        "services.cli.train:train",
        "Train a policy on a topic, such as one that a replay has written.",
    ),
    "try": (
        "services.cli.try_reward:try_reward",
        "What other reward functions would make of recorded traffic; writes nothing.",
    ),
    "rollouts": (
        "services.cli.rollouts:app",
        "What agents did: a list of rollouts, and each as a readable timeline.",
    ),
    "lineage": (
        "services.cli.lineage:lineage",
        "The calls that a version was trained on, or the versions trained on a call.",
    ),
    "export": (
        "services.cli.export:export",
        "The log as a data set: SFT chats, DPO pairs, transitions, Parquet.",
    ),
    "archive": (
        "services.cli.archive:archive",
        "Topics to Parquet, partitioned by day, beyond their retention.",
    ),
    "claims": (
        "services.cli.claims:app",
        "Texts too large for a message, left in a folder or a bucket: removing the old ones.",
    ),
    "dlq": (
        "services.cli.dlq:app",
        "Dead letters: what could not be processed, why, and putting it back.",
    ),
    "status": (
        "services.cli.status:status",
        "What answers, what is served, how far behind each service is, what the topics hold.",
    ),
    "doctor": (
        "services.cli.doctor:doctor",
        "Say what this machine lacks, and what to do about it; exit 1 if something needed is "
        "missing.",
    ),
}
"""Name → function and the line that `--help` shows."""


class LazyGroup(TyperGroup):
    """Knows its commands by name and line, and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the table's order, then the groups."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in for `--help`; see `resolve_command` for the real one."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is called."""
        if args and args[0] in COMMANDS:
            return args[0], load(args[0]), args[1:]
        return super().resolve_command(ctx, args)


def load(name: str) -> Any:
    """The command of that name."""
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
    help="Train LLM agents from the log of what they did.\n\n"
    "Where Kafka is: KAFKA_BOOTSTRAP_SERVERS (default 127.0.0.1:9092). All settings: "
    "docs/reference/settings.md.",
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


topics = typer.Typer(no_args_is_help=True, help="The topics on the broker.")
app.add_typer(topics, name="topics")


@topics.callback()
def _topics() -> None:
    """The topics on the broker."""


@topics.command("create")
def create() -> None:
    """Create the topics that are missing, and check that the others are as they should be.

    Partitions and settings come from one table in the code; FULGURITE_TOPIC_PREFIX and
    FULGURITE_REPLICATION complete it.
    """
    from services.cli.topics import create_topics_command

    create_topics_command()


@topics.command("list")
def list_topics() -> None:
    """Show each topic: its name on the broker, what it holds, partitions, records, and how long
    they are kept.
    """
    from services.cli.topics import list_topics_command

    list_topics_command()


routes = typer.Typer(
    no_args_is_help=True, help="Which versions serve an alias: canary, promotion, rollback."
)
app.add_typer(routes, name="routes")

Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The model name that agents ask for.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="For people: why.")]


@routes.callback()
def _routes() -> None:
    """Which versions serve an alias: canary, promotion, rollback."""


@routes.command("set")
def set_route(
    alias: Alias,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...", help="policy@epoch.step=share, or policy=share for the newest."
        ),
    ],
    reason: Reason = "by hand",
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for backends to serve it; 0: do not wait.")
    ] = 30.0,
) -> None:
    """Route an alias: `fulgurite routes set policy policy@1.3=0.9 policy@1.4=0.1`.

    Replaces the alias's route, waits until backends serve it, and exits 1 if none does. Refuses an
    alias that the gateway does not know, and a version that was never published or whose weights
    are gone. A rollout keeps its version. Of full weights a backend holds one version: the greatest
    share is loaded everywhere, the next by backends whose applier has FULGURITE_APPLIER_CANARY.
    """
    from services.cli.routes import set_route_command

    set_route_command(alias, targets, reason, wait)


@routes.command("clear")
def clear_route(alias: Alias, reason: Reason = "by hand") -> None:
    """Take an alias's route back: it is served by the newest version of its policy again."""
    from services.cli.routes import clear_route_command

    clear_route_command(alias, reason)


@routes.command("list")
def list_routes() -> None:
    """Show the routes in force, who set them, when and why. An alias that is not listed is served
    by the newest version of its policy.
    """
    from services.cli.routes import list_routes_command

    list_routes_command()


if __name__ == "__main__":
    app()
