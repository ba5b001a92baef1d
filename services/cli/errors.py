"""Prints the errors of a command that reads the log: one line on stderr, and an exit code.

The code is 1 for invalid input and 2 for a log that cannot be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console

from fulgurite.errors import FulguriteError
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.topic_admin import TopicLayoutError
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import ReplayError
from services.rewards.errors import PluginError

_REASONS = 3


@contextmanager
def report_errors(command: str) -> Generator[None]:
    """Print an error of the block as one line; exit 1 for bad input, 2 for an unreadable log."""
    try:
        yield
    except (
        ReplayError,
        FulguriteError,
        PluginError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        _print_error(command, error)
        raise typer.Exit(1) from error
    except (LogUnavailable, TopicLayoutError, OSError) as error:
        _print_error(command, error)
        raise typer.Exit(2) from error


def show_failures(console: Console, why: Mapping[str, int]) -> None:
    """Print why a reward function failed, the most frequent reasons first."""
    for reason, count in Counter(why).most_common(_REASONS):
        console.print(f"[yellow]failed for {count}:[/yellow] {plain(reason)}")
    if len(why) > _REASONS:
        console.print(f"... and {len(why) - _REASONS} other reasons (--json has them all)")


def show_left_out(lines: Sequence[str]) -> None:
    """Print to stderr the records and groups that are left out because they cannot be used."""
    console = make_console(stderr=True)
    for line in lines[:_REASONS]:
        console.print(f"[yellow]left out:[/yellow] {plain(line)}")
    if len(lines) > _REASONS:
        console.print(f"... and {len(lines) - _REASONS} more")


def _print_error(command: str, error: Exception) -> None:
    # librdkafka's error for a topic that does not exist.
    hint = (
        "; run `fulgurite topics create`, or choose another FULGURITE_TOPIC_PREFIX"
        if "_UNKNOWN_PARTITION" in str(error)
        else ""
    )
    make_console(stderr=True).print(f"[red]{command}:[/red] {plain(error)}{hint}")
