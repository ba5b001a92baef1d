"""Defines the command `fulgurite lineage`: finds a version's calls, and a call's versions."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from fulgurite.ids import parse_completion
from fulgurite.topics import POLICY_UPDATES, TRAINING_LEDGER
from fulgurite.versions import parse_version
from services.cli.errors import report_errors
from services.cli.output import print_json
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import BadArgument
from services.replay.lineage import Behind, CallOutcome, Lineage
from services.replay.windows import shown


def lineage(
    version: Annotated[
        str | None,
        typer.Argument(metavar="POLICY@VERSION", help="Version, for example policy@1.7."),
    ] = None,
    call: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Id of a call (the completion id of its reply)."),
    ] = None,
    calls: Annotated[
        bool, typer.Option("--calls", help="List every call, not only the groups.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every action.")] = False,
) -> None:
    """List the calls that a version was trained on, or the versions that were trained on a call.

    For a version, lists the calls of its own step and names its ancestors, whose calls it was
    trained on too. Reads policy.updates and training.ledger, which are kept for ever. Exits 1 if
    there is no such version or call, 2 if the log cannot be read.

    Example: `fulgurite lineage policy@1.7 --calls`
    """
    with report_errors("lineage"):
        if (version is None) == (call is None):
            raise BadArgument("give either a version, POLICY@EPOCH.STEP, or a call with --call ID")
        wanted = (
            str(parse_version(version))
            if version is not None
            else parse_completion(call or "").completion_id
        )
        kafka, codec = answering(KafkaSettings()), make_codec()
        known = Lineage(
            *(
                (record.event for record in read_all(kafka, topic, codec))
                for topic in (POLICY_UPDATES, TRAINING_LEDGER)
            )
        )
        found = known.version(wanted) if version is not None else known.call(wanted)
    if as_json:
        more = {"calls": found.calls} if isinstance(found, Behind) else {}
        print_json({**msgspec.structs.asdict(found), **more})
        return
    console = make_console()
    if isinstance(found, Behind):
        _show_version(found, console, calls=calls)
    else:
        _show_call(found, console)


def _show_version(found: Behind, console: Console, *, calls: bool) -> None:
    how = f"trained offline ({found.offline_method})" if found.offline_method else "trained"
    on = f"topic {found.topic}" if found.topic else "an export"
    about = plain(f"from {found.parent}, {shown(found.time)} UTC, {how} on {on}")
    console.print(f"[bold]{plain(found.version)}[/bold] {about}")
    console.print(
        f"{sum(map(len, found.groups.values()))} actions of {len(found.calls)} calls in "
        f"{len(found.groups)} groups"
    )
    if found.ancestors:
        console.print(f"before it: {plain(', '.join(found.ancestors))}")
    table = Table("group", "actions", *(["calls"] if calls else []))
    for group_id, actions in found.groups.items():
        named = (
            [plain("\n".join(sorted({action.partition("#")[0] for action in actions})))]
            if calls
            else []
        )
        table.add_row(plain(group_id), str(len(actions)), *named)
    console.print(table)


def _show_call(found: CallOutcome, console: Console) -> None:
    for action in sorted(found.trained.keys() | found.other.keys()):
        words = [
            f"trained into [bold]{plain(version)}[/bold]"
            for version in found.trained.get(action, ())
        ]
        console.print(
            f"{plain(action)}: {', '.join([*words, *map(plain, found.other.get(action, ()))])}"
        )
    if found.inherited:
        console.print(f"and so behind: {plain(', '.join(found.inherited))}")
