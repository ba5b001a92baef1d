"""Defines the commands `fulgurite policy`: a policy's versions, their weights, and what serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from fulgurite.events import PolicyUpdate, RouteTarget
from fulgurite.learning.evaluation import ENOUGH_TASKS, MARGIN, shortcoming
from fulgurite.versions import Version, parse_version
from services.cli.errors import report_errors
from services.cli.gateway_models import GatewaySilent, aliases_of_gateway, policy_of
from services.cli.held_out import Earned, held_out_rewards, pairs, reason_of
from services.cli.options import Margin, MinTasks
from services.cli.output import print_json, print_table
from services.cli.pull import pull
from services.cli.routes import change_route
from services.cli.versions import Listed, listed, named_version
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import former_targets, last_routes
from services.common.policies.route_targets import BadTarget, Published, read_published
from services.common.runtime.terminal import make_console, plain
from services.replay.windows import shown

app = typer.Typer(
    no_args_is_help=True,
    help="List a policy's versions, show one, copy its weights, promote it, or roll back.",
)

MAIN_METRICS = ("reward_mean", "entropy", "k3", "grad_norm")
"""Metrics of an update that the list shows."""

_NOT_GOOD_ENOUGH = 3

_SIZES = ("B", "KB", "MB", "GB", "TB")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AVersion = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="POLICY@EPOCH.STEP, or POLICY for its newest version."),
]
Reason = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Why, for people who read the route later."),
]
Wait = Annotated[
    float,
    typer.Option(min=0, help="Seconds to wait until backends serve the route; 0: do not wait."),
]


@app.command("list")
def list_versions(
    policy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only this policy; without it, all of them."),
    ] = None,
    last: Annotated[
        int, typer.Option(min=0, help="Newest versions to show of each policy; 0: all.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List versions: when they were published, trained actions, metrics, routes, weights on disk.

    The learner keeps the weights of the newest versions (`publish.keep`), of those that a route
    names, and of those that a rollback would return to. Exits 1 if there is no such policy, 2 if
    the log cannot be read.

    Example: `fulgurite policy list --policy writer`
    """
    with report_errors("policy list"):
        kafka = answering(KafkaSettings())
        published, routes = read_published(kafka), last_routes(kafka).values()
        policies = sorted(published.folds) if policy is None else [policy]
        found = {name: listed(published, routes, name) for name in policies}
    if as_json:
        print_json([one for versions in found.values() for one in versions[-last:]])
        return
    if not any(found.values()):
        make_console().print("no versions: no learner has published one yet")
        return
    for name, versions in found.items():
        print_table(_table(name, versions[-last:], left_out=len(versions) - len(versions[-last:])))


@app.command("show")
def show_version(version: AVersion, as_json: AsJson = False) -> None:
    """Show a version: its parent, weights, routes, metrics, and the settings it was trained with.

    The settings are those that its learner's claim recorded. `fulgurite lineage` lists the calls
    behind it. Exits 1 if there is no such version, 2 if the log cannot be read.

    Example: `fulgurite policy show policy@1.7`
    """
    with report_errors("policy show"):
        kafka = answering(KafkaSettings())
        published = read_published(kafka)
        name = named_version(published, version)
        update = published.update(name)
        routes = last_routes(kafka).values()
        about = next(
            one for one in listed(published, routes, name.policy) if one.version == str(name)
        )
        config = _config(published, name)
    if as_json:
        print_json({**msgspec.structs.asdict(about), "artifact": update.artifact, "config": config})
        return
    _show(about, update, config, make_console())


@app.command("pull")
def pull_version(
    version: AVersion,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; it must not exist, or be empty.")
    ],
) -> None:
    """Copy a version's weights, config, tokenizer and chat template to a folder, and verify them.

    Full weights are a Hugging Face folder, which `from_pretrained` and vLLM load; an adapter is a
    PEFT folder. The weights' SHA-256 is compared with the one in the log. Run it where the
    learner's FULGURITE_DATA_DIR can be seen. Exits 1 if the version or its weights are gone or
    damaged, 2 if the log or the folder cannot be used.

    Example: `fulgurite policy pull policy@1.7 my-model`
    """
    with report_errors("policy pull"):
        published = read_published(answering(KafkaSettings()))
        update = published.update(named_version(published, version))
        files = pull(update, folder)
        size = sum(path.stat().st_size for path in files)
    make_console().print(
        plain(f"{update.version} is in {folder}: {len(files)} files, {_size(size)}, verified")
    )


@app.command("promote")
def promote_version(
    version: AVersion,
    alias: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS",
            help="Alias that the version is to serve; without it, the only one of its policy.",
        ),
    ] = None,
    reason: Reason = None,
    wait: Wait = 30.0,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--unless-worse-than",
            metavar="VERSION",
            help="Promote only if it is not worse than this version on the held-out tasks that "
            "both answered (`fulgurite eval`).",
        ),
    ] = None,
    margin: Margin = MARGIN,
    min_tasks: MinTasks = ENOUGH_TASKS,
    tasks: Annotated[
        Path | None, typer.Option(help="Count only the held-out tasks in this file.")
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Read the held-out rollouts from this time on: an age (24h, 7d), an ISO time in "
            "UTC, or `all`.",
        ),
    ] = "7d",
) -> None:
    """Have one version serve an alias until it is promoted over or rolled back.

    Writes a route with this version as its only target, and waits until backends serve it. The
    learner continues with its newest version, whichever is served. With --unless-worse-than, what
    both versions earned on held-out tasks decides, and is written into the route's reason. Exits 1
    if the version cannot be served, 2 if the log cannot be read, 3 if it is not good enough.

    Example: `fulgurite policy promote policy@1.7 --unless-worse-than policy@1.3`
    """
    with report_errors("policy promote"):
        kafka = answering(KafkaSettings())
        name = named_version(read_published(kafka), version)
        if baseline is not None:
            earned = held_out_rewards(
                kafka, (str(parse_version(baseline)), str(name)), since, tasks
            )
            reason = _held_to(earned, margin, min_tasks, reason)
        served = alias or _alias_of(name.policy)
        target = RouteTarget(policy=name.policy, version=str(name), weight=1.0)
        took_effect = change_route(
            kafka, served, (target,), reason or f"promoted {name} by hand", wait
        )
    if not took_effect:
        raise typer.Exit(1)


@app.command("rollback")
def roll_back(
    alias: Annotated[
        str, typer.Argument(metavar="ALIAS", help="Alias: the model name that agents ask for.")
    ],
    reason: Reason = None,
    wait: Wait = 30.0,
) -> None:
    """Return an alias to what served it before its last route.

    Where it has no route, so that the newest version serves it, the version before that is routed.
    A second rollback returns to what the first one left. The learner goes on from its newest
    version all the same: stop it if its training went wrong. Exits 1 if there is nothing to return
    to or its weights are gone, 2 if the log cannot be read.

    Example: `fulgurite policy rollback policy --reason "rewards fell"`
    """
    with report_errors("policy rollback"):
        kafka = answering(KafkaSettings())
        published, route = read_published(kafka), last_routes(kafka).get(alias)
        targets = former_targets(published, route, policy_of(alias))
        took_effect = change_route(kafka, alias, targets, reason or "rolled back by hand", wait)
    if not took_effect:
        raise typer.Exit(1)


def _held_to(earned: Sequence[Earned], margin: float, min_tasks: int, reason: str | None) -> str:
    """The reason to promote the second over the first. Prints why not, and exits 3."""
    (pair,) = pairs(earned)
    why_not = shortcoming(pair.difference, margin, min_tasks)
    if why_not is not None or pair.difference is None:
        make_console(stderr=True).print(
            f"[yellow]not promoted:[/yellow] {plain(pair.candidate)} against "
            f"{plain(pair.baseline)} on held-out tasks: {plain(why_not)}"
        )
        raise typer.Exit(_NOT_GOOD_ENOUGH)
    found = reason_of(pair.difference, pair.baseline)
    return found if reason is None else f"{reason}: {found}"


def _alias_of(policy: str) -> str:
    """The alias that a policy serves; its own name if the gateway cannot be asked."""
    try:
        found = [alias for alias, name in aliases_of_gateway().items() if name == policy]
    except GatewaySilent:
        return policy
    if len(found) != 1:
        raise BadTarget(
            f"{policy} serves {', '.join(sorted(found)) or 'no alias of the gateway'}: name the "
            "alias with --alias"
        )
    return found[0]


def _config(published: Published, version: Version) -> Any:
    claim = published.claims.get((version.policy, version.epoch))
    if claim is None or claim.config is None:
        return None
    try:
        return msgspec.json.decode(claim.config)
    except msgspec.DecodeError:
        return claim.config


def _table(policy: str, versions: list[Listed], *, left_out: int) -> Table:
    table = Table(
        Column("version", no_wrap=True),
        "published (UTC)",
        Column("actions", justify="right"),
        *(Column(name, justify="right") for name in MAIN_METRICS),
        "kept by",
        "weights",
        Column("size", justify="right"),
        title=plain(policy) + (f" ({left_out} older versions: --last 0)" if left_out else ""),
        title_justify="left",
    )
    for one in versions:
        table.add_row(
            plain(one.version),
            shown(one.published_at),
            str(one.trained_actions),
            *(_number(one.metrics.get(name)) for name in MAIN_METRICS),
            plain(_kept_by(one)),
            one.weights,
            _size(one.size),
        )
    return table


def _kept_by(one: Listed) -> str:
    """Routes and rollbacks that keep the version's weights on disk."""
    routes = [f"{alias} {share:.0%}" for alias, share in sorted(one.routed.items())]
    return ", ".join([*routes, *(["rollback"] if one.rollback_target else [])])


def _show(about: Listed, update: PolicyUpdate, config: Any, console: Console) -> None:
    parent = plain(about.parent or "the base model")
    source = f"topic {update.topic}" if update.topic else "an export"
    how = f", trained offline ({update.offline_method})" if update.offline_method else ""
    console.print(
        f"[bold]{plain(about.version)}[/bold] from {parent}, {shown(about.published_at)} UTC, by "
        f"{plain(update.learner_id)}, {about.trained_actions} actions of {plain(source + how)}"
    )
    if update.artifact is not None:
        console.print(
            plain(
                f"weights: {about.format}, {_size(about.size)}, {about.weights}, "
                f"{update.artifact.uri}\nsha256: {update.artifact.sha256}"
            )
        )
    console.print(plain(f"kept by: {_kept_by(about) or 'nothing but its age (publish.keep)'}"))
    table = Table("metric", Column("value", justify="right"))
    for name, value in sorted(about.metrics.items()):
        table.add_row(plain(name), _number(value))
    console.print(table)
    if config is not None:
        console.print("settings of its learner:")
        console.print(plain(msgspec.json.format(msgspec.json.encode(config)).decode()))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _size(size: int | None) -> str:
    if size is None:
        return ""
    value, unit = float(size), 0
    while value >= 1000 and unit < len(_SIZES) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_SIZES[unit]}"
