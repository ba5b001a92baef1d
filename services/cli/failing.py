"""How a command that reads the log ends when it cannot go on: a line on stderr; 1 for what makes no sense, 2 for a log that is away."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from fulgurite.errors import FulguriteError
from services.kafka import LogUnavailable
from services.replay.errors import ReplayError
from services.rewarder.errors import PluginError


@contextmanager
def told(command: str) -> Generator[None]:
    """Errors of the block as an exit code and a line."""
    try:
        yield
    except (ReplayError, FulguriteError, PluginError, ValueError) as error:
        _say(command, error)
        raise typer.Exit(1) from error
    except (LogUnavailable, OSError) as error:
        _say(command, error)
        raise typer.Exit(2) from error


def _say(command: str, error: Exception) -> None:
    Console(soft_wrap=True, stderr=True).print(f"[red]{command}:[/red] {escape(str(error))}", highlight=False)
