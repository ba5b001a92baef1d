"""`fulgurite rollouts list|show`: what agents did, read from the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from fulgurite.codec import Codec
from fulgurite.events import LlmCall
from fulgurite.tokens import token_count
from services.cli.failing import told
from services.cli.printing import print_json, print_table
from services.closing_settings import ClosingSettings
from services.kafka import KafkaSettings
from services.replay.errors import NotFound
from services.replay.finding import find_group, group_of
from services.replay.groups import Group, read_groups
from services.replay.log_source import LogSource
from services.replay.scoring import scores
from services.replay.timeline import Json, rollout_ids, shortened, timeline
from services.replay.windows import parse_since, shown
from services.terminal import make_console

app = typer.Typer(no_args_is_help=True, help="What agents did: rollouts of the log as a list, and each as a readable timeline.")

AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@app.command("list")
def list_rollouts(
    since: Annotated[str, typer.Option(help="Groups that began since: 90s, 30m, 24h, 7d, or ISO.")] = "24h",
    mode: Annotated[str | None, typer.Option(help="train, val or live.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the rollouts of groups that began lately: how they ended, their calls, tokens and reward. Exits 2 if the log cannot be read."""
    with told("rollouts list"):
        codec, since_ms = Codec(), parse_since(since)
        groups = read_groups(LogSource(KafkaSettings(), codec), codec, since_ms=since_ms)
        found = [row for group in groups for row in _summaries(group) if mode in (None, row["mode"])]
    found = sorted(found, key=lambda row: row["began_at"])[-limit:]
    if as_json:
        print_json(found)
        return
    table = Table("began (UTC)", Column("rollout", no_wrap=True), "mode", "outcome", "calls", "tokens", "reward")
    for row in found:
        reward = row["reward"] if row["reward"] is not None else row["reason"]
        cells = (shown(row["began_at"]), row["rollout_id"], row["mode"], row["outcome"], row["calls"], row["tokens"], _number(reward))
        table.add_row(*(str(cell) for cell in cells))
    print_table(table)


@app.command("show")
def show_rollout(
    name: Annotated[str, typer.Argument(metavar="ID", help="A rollout, a call, or a group (all its rollouts).")],
    tokens: Annotated[bool, typer.Option("--tokens", help="Token ids and log-probabilities too.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Messages as they are, not shortened.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a rollout as a timeline: status, calls with role, latency and messages, tool calls, rewards, and the credit of each action.

    Messages that an earlier call had are not repeated. Exits 1 if the log holds nothing of that name, 2 if it cannot be read.
    """
    with told("rollouts show"):
        group_id, rollout_id = group_of(name)
        codec = Codec()
        group = find_group(LogSource(KafkaSettings(), codec), codec, group_id)
        chosen = [rollout for rollout in rollout_ids(group) if rollout_id in (None, rollout)]
        if not chosen:
            raise NotFound(f"the log holds nothing of rollout {rollout_id}")
        settings = ClosingSettings()
        found = [timeline(group, rollout, settings, tokens=tokens) for rollout in chosen]
    if as_json:
        print_json(found if rollout_id is None else found[0])
        return
    console = make_console()
    for one in found:
        show(one, console, 1_000_000 if whole else 160)


def show(one: Json, console: Console, width: int) -> None:
    """One rollout, a line or a few per event."""
    console.print(f"[bold]{one['rollout_id']}[/bold]  began {shown(one['began_at'])} UTC")
    if one["task"] is not None:
        console.print(f"  task {escape(shortened(one['task'], width))}")
    for event in one["events"]:
        at = f"{(event['at'] - one['began_at']) / 1000:9.3f} s "
        match event["what"]:
            case "status":
                about = " ".join(f"{key}={event[key]}" for key in ("failure", "message", "exit_code") if key in event)
                console.print(f"{at} [blue]{event['kind']}[/blue] by {event['source']}, attempt {event['attempt']} {escape(about)}")
            case "reward":
                value = "none" if event["value"] is None else _number(event["value"])
                where = f" at {event['call_id']}" if event["call_id"] else ""
                why = f" ({event['error']})" if event["error"] else ""
                console.print(f"{at} [green]reward[/green] {event['name']} = {value} from {event['source']}{where}{escape(why)}")
            case _:
                _show_call(event, at, console, width)


def _show_call(call: Json, at: str, console: Console, width: int) -> None:
    role = f" as {call['agent']}" if call["agent"] else ""
    colour = "magenta" if call["outcome"] == "success" else "red"
    about = f"{call['milliseconds']} ms, {call['prompt_tokens']} prompt tokens, {call['version'] or 'no version'}"
    console.print(f"{at} [{colour}]call[/{colour}] {call['call_id']}{role}: {about} {call['error'] or ''}")
    for message in call["messages"]:
        _show_message(message, "<", console, width)
    for choice in call["choices"]:
        _show_message(choice["message"], ">", console, width)
        credit = "" if choice["credit"] is None else f", reward {choice['reward']:g}, credit {choice['credit']:g}"
        masked = f", masked ({choice['mask']})" if choice["mask"] else ""
        console.print(f"{'':14}[dim]{choice['tokens']} tokens, {choice['finish_reason']}{credit}{masked}[/dim]")
        if choice.get("token_ids") is not None:
            pairs = zip(choice["token_ids"], choice["logprobs"] or [None] * len(choice["token_ids"]), strict=False)
            console.print(f"{'':14}[dim]{' '.join(f'{token}:{logprob}' for token, logprob in pairs)}[/dim]")


def _show_message(message: Json, mark: str, console: Console, width: int) -> None:
    if message["content"] or not message["tool_calls"]:
        console.print(f"{'':12}{mark} [cyan]{message['role']}[/cyan] {escape(shortened(message['content'] or '', width))}")
    for call in message["tool_calls"]:
        console.print(f"{'':12}{mark} [cyan]{message['role']}[/cyan] calls {call['name']}({escape(shortened(call['arguments'], width))})")


def _summaries(group: Group) -> Iterator[Json]:
    scored = {score.episode.rollout_id: score for score in scores(group)}
    modes = {status.rollout_id: status.mode for status in group.statuses}
    for rollout_id in rollout_ids(group):
        inputs = [event for key, events in group.inputs.items() if key[0] == rollout_id for event in events.values()]
        calls = [event for event in inputs if isinstance(event, LlmCall)]
        score = scored.get(rollout_id)
        mode = calls[0].mode if calls else modes.get(rollout_id, modes.get(None, "train"))
        yield {
            "rollout_id": rollout_id,
            "group_id": group.group_id,
            "mode": str(mode),
            "began_at": min((event.event_time for event in inputs), default=group.began_at),
            "outcome": str(score.episode.outcome) if score else "open",
            "failure": str(score.episode.failure) if score and score.episode.failure else None,
            "calls": len(calls),
            "tokens": sum(token_count(choice.token_ids or b"") for call in calls for choice in call.choices),
            "reward": score.reward if score else None,
            "reason": str(score.reason) if score and score.reason else None,
        }


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value or ""
