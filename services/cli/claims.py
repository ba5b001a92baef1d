"""Defines the command `fulgurite claims prune`: deletes payloads that no event names."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from services.cli.errors import report_errors
from services.cli.output import print_json
from services.common.blobs.blob_store import open_store
from services.common.blobs.settings import ClaimSettings
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.pruning import GRACE_DAYS, prune

app = typer.Typer(
    no_args_is_help=True,
    help="Manage offloaded payloads: message texts stored outside Kafka, in a folder or a bucket.",
)

_DAY_S = 24 * 3600


@app.callback()
def _claims() -> None:
    """Manage offloaded payloads: message texts stored outside Kafka, in a folder or a bucket."""


@app.command("prune")
def prune_claims(
    older_than_days: Annotated[
        float,
        typer.Option(
            min=1,
            help="Least age in days of a payload to delete. Must exceed the time that an "
            "event may wait in a gateway's spool.",
        ),
    ] = GRACE_DAYS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be deleted; delete nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Delete old payloads that no call, episode or dead letter in the log names.

    It is safe beside live traffic: run it, for example, daily after `fulgurite archive`, which
    keeps copies. Payloads are stored at FULGURITE_CLAIMS_URL, or in the folder `claims` of
    FULGURITE_DATA_DIR. Exits 1 if an option is invalid, 2 if the log or the store cannot be read.

    Example: `fulgurite claims prune --older-than-days 60 --dry-run`
    """
    with report_errors("claims prune"):
        settings = ClaimSettings()
        store = open_store(settings.claims_url, settings.data_dir)
        done = prune(
            store,
            KafkaSettings(),
            make_codec(),
            time.time() - older_than_days * _DAY_S,
            dry=dry_run,
        )
    if as_json:
        print_json(done)
        return
    word = "would be removed" if dry_run else "removed"
    place = "" if settings.claims_url else f" in {(settings.data_dir / 'claims').resolve()}"
    make_console().print(
        f"{done.removed} payloads ({done.removed_bytes:,} bytes) {word} of {done.claims}"
        f"{plain(place)}; kept: {done.young} younger than {older_than_days:g} days, {done.named} "
        "older ones that events in the log name"
    )
