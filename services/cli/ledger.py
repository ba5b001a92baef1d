"""Defines the command `fulgurite ledger`: prints what became of every action.

It reads the topics, downstream first; see docs/reference/ledger.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from fulgurite.avro.codec import Codec
from fulgurite.ledger.balance import balance
from fulgurite.ledger.model import Balance, Sources
from fulgurite.ledger.remedies import frequent_remedies
from fulgurite.ledger.untrained import UNTRAINED, Untrained
from fulgurite.topics import (
    AGENT_STATUS,
    DEAD_LETTERS,
    EPISODES,
    LLM_CALLS,
    POLICY_UPDATES,
    TRAINING_LEDGER,
    TRAJECTORIES,
    Topic,
)
from services.cli.errors import report_errors
from services.cli.output import print_json
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import Record, read_all
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.clock import now_ms
from services.common.runtime.terminal import make_console, plain

ATTEMPTS = 3
PAUSE_S = 1.0
"""Seconds between attempts. While a processor handles a late event, its actions may be in no term
for a moment.
"""

_SHOWN = 5
REASONS = 3
"""How many of the most frequent reasons are printed with a remedy."""
NO_LEARNER = (
    "its actions wait for a learner, and none was ever started for it: `fulgurite train run.toml` "
    "starts one"
)


def ledger(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    partitions: Annotated[bool, typer.Option(help="Print a table for each partition too.")] = False,
) -> None:
    """Account for every successful training action in the log, and say what else is recorded.

    Each action is trained, filtered (with a reason), stale, amended, dead-lettered or still open.
    Each term is counted from its own topic. Exits 1 if an action is in no term (lost) or in two
    (counted twice), 2 if the log cannot be read.

    Example: `fulgurite ledger --partitions`
    """
    with report_errors("ledger"):
        books = read_books(answering(KafkaSettings()))
    if as_json:
        print_json(as_dict(books))
    else:
        show(books, make_console(), partitions=partitions)
    if books.remainder:
        raise typer.Exit(1)


def read_books(settings: KafkaSettings, attempts: int = ATTEMPTS) -> Balance:
    """Balance the ledger; tries again if it does not balance. Raises LogUnavailable."""
    codec = make_codec()
    for attempt in range(1, attempts + 1):
        books = balance(read_sources(settings, codec), codec.decode, now_ms())
        if not books.remainder or attempt == attempts:
            return books
        time.sleep(PAUSE_S)
    raise ValueError(f"attempts is {attempts}: it must be at least 1")


def read_sources(settings: KafkaSettings, codec: Codec) -> Sources:
    """The topics that the ledger is made of; each is read when it is iterated."""

    def topic(topic: Topic) -> Iterator[Record]:
        yield from read_all(settings, topic, codec)

    return Sources(
        updates=topic(POLICY_UPDATES),
        dead_letters=topic(DEAD_LETTERS),
        ledger=topic(TRAINING_LEDGER),
        trajectories=topic(TRAJECTORIES),
        episodes=topic(EPISODES),
        statuses=topic(AGENT_STATUS),
        calls=topic(LLM_CALLS),
    )


def as_dict(books: Balance) -> dict[str, Any]:
    """The ledger as a JSON object, totals first."""
    totals = {
        "actions": books.actions,
        "terms": books.terms,
        "remainder": books.remainder,
        "overdue": len(books.overdue),
    }
    return {
        **totals,
        "expired": books.expired,
        "live_rollouts": books.live_rollouts,
        "untrained": books.untrained,
        "without_learner": books.without_learner,
        "offline_actions": books.offline_actions,
        "accounts": books.accounts,
        "discrepancies": books.discrepancies,
        "open_overdue": books.overdue,
    }


def show(books: Balance, console: Console, *, partitions: bool = False) -> None:
    """Print a table for each policy, and if asked for each partition."""
    if not books.accounts:
        console.print("The log holds no successful training action.")
    for policy in sorted({account.policy for account in books.accounts}):
        mine = [account for account in books.accounts if account.policy == policy]
        _table(console, policy, msgspec.structs.replace(books, accounts=tuple(mine)))
        for account in mine if partitions else ():
            _table(
                console,
                f"{policy}, partition {account.partition} up to {account.until}",
                msgspec.structs.replace(books, accounts=(account,)),
            )
    for reason, words in frequent_remedies(books.terms, REASONS):
        console.print(plain(f"{reason}: {words}"))
    for policy in books.without_learner:
        console.print(plain(f"{policy}: {NO_LEARNER}"))
    for line in untrained_lines(books.untrained):
        console.print(line)
    if books.offline_actions:
        console.print(
            f"{books.offline_actions} actions were trained offline, which is no term "
            "(docs/reference/ledger.md, Offline training)."
        )
    if books.expired:
        console.print(
            f"{books.expired} actions of the ledger are not counted: their calls are older than "
            "the retention of llm.calls."
        )
    for problem in books.discrepancies[:_SHOWN]:
        where = " and ".join(problem.terms) if problem.terms else "in no term"
        console.print(
            f"[red]{plain(problem.action)}[/red]: "
            f"{plain(where)}{'' if problem.has_call else ', but llm.calls has no such call'}"
        )
    if len(books.discrepancies) > _SHOWN:
        console.print(f"... and {len(books.discrepancies) - _SHOWN} more (--json has them all)")
    if books.overdue:
        console.print(
            f"[yellow]{len(books.overdue)} actions are open past their group's "
            f"deadline[/yellow], for example {plain(books.overdue[0])}: "
            "are aggregator and rewarder running? See `fulgurite status`.",
            highlight=False,
        )


def untrained_lines(untrained: Mapping[str, int]) -> list[str]:
    """A line for each reason why actions are recorded and never trained."""
    return [
        f"{count} actions are recorded and not trained: {UNTRAINED[Untrained(reason)]}."
        for reason, count in sorted(untrained.items())
    ]


def _table(console: Console, title: str, books: Balance) -> None:
    table = Table(title=plain(title), title_justify="left", show_footer=True)
    table.add_column("term", footer="remainder")
    table.add_column(
        "actions",
        justify="right",
        footer=f"[{'red' if books.remainder else 'green'}]{books.remainder}",
    )
    table.add_row("[bold]successful training actions in llm.calls", f"[bold]{books.actions}")
    table.add_section()
    for term, count in sorted(books.terms.items()):
        table.add_row(plain(term), str(count))
    console.print(table)
