"""Defines the commands `fulgurite prompts`: versions of the prompts of an alias."""

from __future__ import annotations

import difflib
import getpass
from pathlib import Path
from typing import Annotated

import typer

from fulgurite.enums import PromptKind
from fulgurite.events import PromptUpdate
from fulgurite.prompts.history import AS_SENT, EFFECT_DELAY_MS, PromptHistory
from fulgurite.prompts.tuning import edits_of
from services.cli.errors import report_errors
from services.cli.gateway_models import GatewaySilent, aliases_of_gateway
from services.cli.output import print_json, print_table
from services.cli.prompt_files import (
    BadPrompt,
    read_demonstrations,
    read_named,
    read_sections,
    read_text,
)
from services.cli.prompt_log import read_prompts, write_return, write_version
from services.cli.prompt_views import (
    describe_version,
    edit_lines,
    scope_text,
    version_table,
    version_text,
)
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms
from services.common.runtime.terminal import make_console, plain
from services.replay.windows import shown

app = typer.Typer(
    no_args_is_help=True,
    help="Change the prompts of an alias without changing its agents, and look at their versions.",
)

Alias = Annotated[
    str, typer.Option(metavar="ALIAS", help="Alias: the model name that agents ask for.")
]
Role = Annotated[
    str | None,
    typer.Option(
        metavar="ROLE", help="Only calls of this agent role; without it, roles without their own."
    ),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for people who read it later.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_prompts(
    alias: Annotated[
        str | None, typer.Option(metavar="ALIAS", help="Only this alias; without it, all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List prompt versions: alias, role, what they change, who wrote them, and which is in force.

    Exits 1 if the alias has none, 2 if the log cannot be read.

    Example: `fulgurite prompts list --alias policy`
    """
    with report_errors("prompts list"):
        history = read_prompts(answering(KafkaSettings()))
        aliases = history.aliases()
        if alias is not None and alias not in aliases:
            raise BadPrompt(_no_version_of(alias, aliases))
        chosen = aliases if alias is None else [alias]
        found = [prompt for name in chosen for prompt in history.versions(name)]
    if as_json:
        print_json([describe_version(prompt, history) for prompt in found])
    elif found:
        print_table(version_table(found, history))
    else:
        make_console().print("no prompt versions: every request is served as it is sent")


@app.command("show")
def show_prompt(
    alias: Alias,
    version: Annotated[
        str | None,
        typer.Argument(metavar="VERSION", help="prompt@N; without it, the one in force."),
    ] = None,
    role: Role = None,
    as_json: AsJson = False,
) -> None:
    """Show a version: system prompt, sections, demonstrations, tool descriptions.

    Exits 1 if there is no such version, 2 if the log cannot be read.

    Example: `fulgurite prompts show --alias policy prompt@2`
    """
    with report_errors("prompts show"):
        history = read_prompts(answering(KafkaSettings()))
        if version is None:
            prompt = history.current(alias, role)
            if prompt is None:
                raise BadPrompt(f"no version is in force for {scope_text(alias, role)}")
        else:
            prompt = _find(history, alias, version)
    if as_json:
        print_json(describe_version(prompt, history) | edits_of(prompt))
        return
    console = make_console()
    parent = f", after {prompt.parent}" if prompt.parent else ""
    console.print(
        f"[bold]{plain(prompt.version)}[/bold] of "
        + plain(
            f"{scope_text(alias, prompt.role)}, {shown(prompt.event_time)} UTC{parent}, by "
            f"{prompt.author}: {prompt.reason}"
        )
    )
    for line in edit_lines(prompt):
        console.print(plain(line))


@app.command("diff")
def diff_prompts(
    alias: Alias,
    before: Annotated[
        str, typer.Argument(metavar="FROM", help="prompt@N, or none for what the agent sends.")
    ],
    after: Annotated[
        str | None,
        typer.Argument(metavar="TO", help="prompt@N or none; without it, the one in force."),
    ] = None,
    role: Role = None,
) -> None:
    """Print what differs between two versions, as a unified diff.

    Exits 1 if there is no such version, 2 if the log cannot be read.

    Example: `fulgurite prompts diff --alias policy prompt@1 prompt@2`
    """
    with report_errors("prompts diff"):
        history = read_prompts(answering(KafkaSettings()))
        old = _find_or_none(history, alias, before)
        new = (
            history.current(alias, role) if after is None else _find_or_none(history, alias, after)
        )
    names = tuple(AS_SENT if one is None else str(one.version) for one in (old, new))
    texts = edit_lines(old), edit_lines(new)
    lines = list(difflib.unified_diff(*texts, names[0], names[1], lineterm=""))
    console = make_console()
    for line in lines:
        console.print(plain(line))
    if not lines:
        console.print(plain(f"{names[0]} and {names[1]} say the same"))


@app.command("set")
def set_prompt(
    alias: Alias,
    role: Role = None,
    system: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replace the system prompt by this text.")
    ] = None,
    prefix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put this text before the system prompt.")
    ] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Fill this text between <NAME> and </NAME> in the system prompt; may be repeated.",
        ),
    ] = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Insert these chat messages, one JSON object a line, after the system prompt.",
        ),
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Describe the tool by this text where a call offers it; may be repeated.",
        ),
    ] = None,
    reason: Reason = "by hand",
) -> None:
    """Write a version, which gateways then apply to calls of the alias.

    It replaces the version in force, with all that this one changes. It counts for rollouts that
    begin two seconds later or after; others keep the version that they began with. A request that
    it does not fit (no messages, a section that is not there) is served as it was sent. Exits 1 if
    an option or a file is wrong, 2 if the log cannot be written.

    Example: `fulgurite prompts set --alias policy --system system.txt --reason "be brief"`
    """
    with report_errors("prompts set"):
        if not alias.strip():
            raise BadPrompt("--alias is empty: name the model that the agents ask for")
        if system is not None and (prefix is not None or section):
            raise BadPrompt(
                "--system replaces what --prefix and --section would edit: write it all into the "
                "file of --system"
            )
        edits = PromptUpdate(
            event_id="",
            event_time=now_ms(),
            alias=alias,
            role=_checked_role(role),
            kind=PromptKind.set,
            system=None if system is None else read_text(system),
            prefix=None if prefix is None else read_text(prefix),
            sections=read_sections(section or ()),
            demonstrations=() if demonstrations is None else read_demonstrations(demonstrations),
            tools=read_named("--tool", tool or ()),
            reason=reason,
            author=getpass.getuser(),
        )
        if not edits_of(edits):
            raise BadPrompt(
                "nothing to change: give --system, --prefix, --section, --demonstrations or "
                "--tool, or return to what the agent sends with `fulgurite prompts rollback --to "
                "none`"
            )
        kafka = answering(KafkaSettings())
        _check_alias(alias)
        written = write_version(kafka, edits)
    _print_effect(written)


@app.command("rollback")
def roll_back(
    alias: Alias,
    role: Role = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="prompt@N, or none: what the agent sends, of a role the alias's version; without "
            "it, what was in force before the last change.",
        ),
    ] = None,
    reason: Reason = "rolled back by hand",
) -> None:
    """Return to an earlier version, or to what the agent sends.

    A second rollback returns to what the first one left. Rollouts that run keep their version.
    Exits 1 if there is nothing to return to, 2 if the log cannot be written.

    Example: `fulgurite prompts rollback --alias policy --reason "rewards fell"`
    """
    with report_errors("prompts rollback"):
        kafka = answering(KafkaSettings())
        history = read_prompts(kafka)
        last = history.last_change(alias, role)
        if last is None:
            raise BadPrompt(f"no version was ever set for {scope_text(alias, role)}")
        target = _find_or_none(history, alias, to or last.parent or AS_SENT)
        if target is not None and target.role != role:
            raise BadPrompt(
                f"{target.version} is a version of {scope_text(alias, target.role)}, not of "
                f"{scope_text(alias, role)}"
            )
        if target == history.current(alias, role):
            named = version_text(target.version if target is not None else None, role)
            raise BadPrompt(f"{named} is in force already")
        version = target.version if target is not None else None
        written = write_return(kafka, PromptKind.rollback, alias, role, version, reason)
    _print_effect(written)


@app.command("promote")
def promote_prompt(
    alias: Alias,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The candidate, prompt@N.")],
    reason: Reason = "promoted by hand",
) -> None:
    """Put a candidate in force, such as one that `fulgurite tune` proposes.

    It counts for the role that it was made for, and for rollouts that begin two seconds later or
    after. Exits 1 if there is no such version, 2 if the log cannot be written.

    Example: `fulgurite prompts promote --alias policy prompt@3`
    """
    with report_errors("prompts promote"):
        kafka = answering(KafkaSettings())
        history = read_prompts(kafka)
        prompt = _find(history, alias, version)
        if prompt == history.current(alias, prompt.role):
            raise BadPrompt(f"{version} is in force already")
        written = write_return(kafka, PromptKind.promoted, alias, prompt.role, version, reason)
    _print_effect(written)


def _print_effect(written: PromptUpdate) -> None:
    scope = scope_text(written.alias, written.role)
    now = version_text(written.version, written.role)
    since = shown(written.event_time + EFFECT_DELAY_MS)
    make_console().print(
        plain(
            f"{scope}: {now}, for rollouts that begin after {since} UTC; those that run keep theirs"
        )
    )


def _check_alias(alias: str) -> None:
    """Raise BadPrompt for an alias that the gateway does not have; warn if it cannot be asked."""
    try:
        aliases = aliases_of_gateway()
    except GatewaySilent as error:
        make_console(stderr=True).print(
            "[yellow]prompts:[/yellow] "
            f"{plain(f'cannot check whether {alias!r} is an alias: {error}')}"
        )
        return
    if alias not in aliases:
        raise BadPrompt(
            f"the gateway has no alias {alias!r}; its aliases are: {', '.join(sorted(aliases))}"
        )


def _checked_role(role: str | None) -> str | None:
    if role is not None and not role.strip():
        raise BadPrompt("--role is empty: name a role, or leave it out for all of them")
    return role


def _find(history: PromptHistory, alias: str, version: str) -> PromptUpdate:
    found = history.find(alias, version)
    if found is None:
        names = [str(one.version) for one in history.versions(alias)]
        if not names:
            raise BadPrompt(_no_version_of(alias, history.aliases()))
        raise BadPrompt(f"{alias} has no {version!r}; its versions are: {', '.join(names)}")
    return found


def _find_or_none(history: PromptHistory, alias: str, version: str) -> PromptUpdate | None:
    return None if version == AS_SENT and history.has(alias) else _find(history, alias, version)


def _no_version_of(alias: str, aliases: list[str]) -> str:
    known = ", ".join(aliases) or "no alias"
    return f"no prompt version was ever set for {alias!r}; versions are set for: {known}"
