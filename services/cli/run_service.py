"""Runs a service as a command, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

import typer

from services.cli.errors import report_errors
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics_port


def serve(
    command: str, run: Callable[[Sequence[str]], Coroutine[Any, Any, int]], **options: object
) -> NoReturn:
    """Run a service until it stops; exits with its code, or with 2 if no broker answers.

    `options` become the options of its command line, except those that are None or False; True is
    an option without a value.
    """
    arguments: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        arguments.append(f"--{name.replace('_', '-')}")
        if value is not True:
            arguments.append(str(value))
    with report_errors(command), metrics_port.shown():
        answering(KafkaSettings())
        code = asyncio.run(run(arguments))
    raise typer.Exit(code)
