"""Defines the commands `fulgurite rollouts list|show`: show what agents did, from the log."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from fulgurite.enums import Mode
from fulgurite.failures import FailureKind
from fulgurite.untrusted_json import Json
from fulgurite.versions import parse_version
from services.cli.errors import report_errors, show_left_out
from services.cli.options import Since
from services.cli.output import print_json, print_table
from services.common.blobs.blob_store import readable
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import NotFound
from services.replay.groups import read_groups
from services.replay.leaving_out import LeftOut
from services.replay.listing import Wanted, listed
from services.replay.log_source import LogSource
from services.replay.lookup import find_group, group_of
from services.replay.prompts import WITH_PROMPTS, read_prompts, with_served_requests
from services.replay.timeline import rollout_ids, shortened, timeline
from services.replay.windows import parse_window, shown
from services.rewarder.closing_settings import ClosingSettings

app = typer.Typer(
    no_args_is_help=True,
    help="List the rollouts in the log, or show one as a timeline of its calls and rewards.",
)

_TASK = 40
_ANSWER = 60
"""Longest text of a table cell, in characters."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_rollouts(
    since: Since = "24h",
    mode: Annotated[Mode | None, typer.Option(help="Only rollouts of this mode.")] = None,
    reward_below: Annotated[
        float | None, typer.Option(help="Only rollouts with a reward below this.")
    ] = None,
    reward_above: Annotated[
        float | None, typer.Option(help="Only rollouts with a reward above this.")
    ] = None,
    failure: Annotated[
        FailureKind | None,
        typer.Option(
            metavar="KIND",
            help="Only rollouts with this failure kind (docs/reference/failures.md).",
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY@VERSION",
            help="Only rollouts that this version answered: POLICY@EPOCH.STEP.",
        ),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Only rollouts of this run.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP",
            help="Only rollouts of this group; the id of a rollout selects its group.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Only rollouts whose task, messages or answers contain this text."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Print at most this many rollouts, the newest.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List recent rollouts: task, last answer, version, reward, failure, group and run.

    Exits 1 if an option is invalid, 2 if the log cannot be read.

    Example: `fulgurite rollouts list --version policy@1.8 --reward-below 0.5`
    """
    with report_errors("rollouts list"):
        wanted = Wanted(
            mode=mode,
            reward_below=reward_below,
            reward_above=reward_above,
            failure=failure,
            version=None if version is None else str(parse_version(version)),
            run_id=run,
            group_id=None if group is None else group_of(group)[0],
            text=text,
        )
        codec, since_ms, left_out = (
            make_codec(),
            parse_window(since),
            LeftOut(),
        )
        keys = None if wanted.group_id is None else {wanted.group_id}
        groups = read_groups(LogSource(KafkaSettings(), codec), codec, since_ms=since_ms, keys=keys)
        found = sorted(
            left_out.each(groups, lambda one: listed(one, wanted)), key=lambda row: row["began_at"]
        )[-limit:]
    show_left_out(left_out.lines)
    if as_json:
        print_json(found)
        return
    named = Column("rollout", no_wrap=True)
    table = Table(
        "began (UTC)",
        named,
        "mode",
        "task",
        "last answer",
        "reward",
        "failure",
        "version",
        "calls",
        "run",
    )
    for row in found:
        table.add_row(*map(plain, _cells(row)))
    print_table(table)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(row: Json) -> tuple[object, ...]:
    reward = _number(row["reward"]) if row["reward"] is not None else row["reason"] or ""
    ended = row["failure"] or (row["outcome"] if row["outcome"] != "finished" else "")
    return (
        shown(row["began_at"]),
        row["rollout_id"],
        row["mode"],
        shortened(row["task"] or "", _TASK),
        shortened(row["answer"] or "", _ANSWER),
        reward,
        ended,
        ", ".join(row["versions"]),
        row["calls"],
        row["run_id"] or "",
    )


@app.command("show")
def show_rollout(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Id of a rollout, a call (its rollout is shown), or a group (all its rollouts).",
        ),
    ],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print token ids and log-probabilities too.")
    ] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Print messages in full.")] = False,
    as_sent: Annotated[
        bool,
        typer.Option(
            "--as-sent",
            help="Show messages as the agent sent them, without the edits of prompt versions.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a rollout as a timeline: status, calls, tool calls, rewards, and the credit of each
    action.

    Messages are shown as they were served (`fulgurite prompts`). Those that an earlier call
    contained are not repeated. Exits 1 if the log has nothing with that id, 2 if the log cannot be
    read.

    Example: `fulgurite rollouts show ID --tokens`
    """
    with report_errors("rollouts show"):
        group_id, rollout_id = group_of(name)
        codec = make_codec()
        source = LogSource(KafkaSettings(), codec, WITH_PROMPTS)
        group = find_group(source, codec, group_id)
        if not as_sent:
            group = with_served_requests(group, read_prompts(source, codec), readable)
        chosen = [rollout for rollout in rollout_ids(group) if rollout_id in (None, rollout)]
        if not chosen:
            raise NotFound(
                f"the log has no rollout {rollout_id}: `fulgurite rollouts list` lists what it has"
            )
        settings = ClosingSettings()
        found = [timeline(group, rollout, settings, tokens=tokens) for rollout in chosen]
    show_left_out(group.unreadable)
    if as_json:
        print_json(found if rollout_id is None else found[0])
        return
    console = make_console()
    for one in found:
        show(one, console, 1_000_000 if whole else 160)


def show(one: Json, console: Console, width: int) -> None:
    """Print one rollout, with one or more lines per event."""
    console.print(f"[bold]{plain(one['rollout_id'])}[/bold]  began {shown(one['began_at'])} UTC")
    if one["task"] is not None:
        console.print(f"  task {plain(shortened(one['task'], width))}")
    for event in one["events"]:
        at = f"{(event['at'] - one['began_at']) / 1000:9.3f} s "
        match event["what"]:
            case "status":
                about = " ".join(
                    f"{key}={event[key]}"
                    for key in ("failure", "message", "exit_code")
                    if key in event
                )
                about = plain(f"by {event['source']}, attempt {event['attempt']} {about}")
                console.print(f"{at} [blue]{plain(event['kind'])}[/blue] {about}")
            case "reward":
                value = "none" if event["value"] is None else _number(event["value"])
                where = f" at {event['call_id']}" if event["call_id"] else ""
                why = f" ({event['error']})" if event["error"] else ""
                about = plain(f"{event['name']} = {value} from {event['source']}{where}{why}")
                console.print(f"{at} [green]reward[/green] {about}")
            case _:
                _show_call(event, at, console, width)


def _show_call(call: Json, at: str, console: Console, width: int) -> None:
    role = f" as {call['agent']}" if call["agent"] else ""
    colour = "magenta" if call["outcome"] == "success" else "red"
    about = (
        f"{call['milliseconds']} ms, {call['prompt_tokens']} prompt tokens, "
        f"{call['version'] or 'no version'}"
        f"{', ' + call['prompt_version'] if call['prompt_version'] else ''} {call['error'] or ''}"
    )
    named = plain(f"{call['call_id']}{role}: {about}")
    console.print(f"{at} [{colour}]call[/{colour}] {named}")
    for message in call["messages"]:
        _show_message(message, "<", console, width)
    for choice in call["choices"]:
        _show_message(choice["message"], ">", console, width)
        credit = (
            ""
            if choice["credit"] is None
            else f", reward {choice['reward']:g}, credit {choice['credit']:g}"
        )
        masked = f", masked ({choice['mask']})" if choice["mask"] else ""
        ended = plain(f"{choice['tokens']} tokens, {choice['finish_reason']}{credit}{masked}")
        console.print(f"{'':14}[dim]{ended}[/dim]")
        if choice.get("token_ids") is not None:
            pairs = zip(
                choice["token_ids"],
                choice["logprobs"] or [None] * len(choice["token_ids"]),
                strict=False,
            )
            console.print(
                f"{'':14}[dim]{' '.join(f'{token}:{logprob}' for token, logprob in pairs)}[/dim]"
            )


def _show_message(message: Json, mark: str, console: Console, width: int) -> None:
    if message["content"] or not message["tool_calls"]:
        console.print(
            f"{'':12}{mark} [cyan]{plain(message['role'])}[/cyan] "
            f"{plain(shortened(message['content'] or '', width))}"
        )
    for call in message["tool_calls"]:
        called = plain(f"{call['name']}({shortened(call['arguments'], width)})")
        console.print(f"{'':12}{mark} [cyan]{plain(message['role'])}[/cyan] calls {called}")
