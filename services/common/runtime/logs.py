"""Configures logging with structlog: JSON lines in containers, coloured text on a terminal.

Secrets are replaced before they are written.
Services bind `rollout_id` and `call_id` with `structlog.contextvars.bound_contextvars`, so that
every line of a request bears them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, cast

import structlog

from services.common.runtime import metrics
from services.common.runtime.escaping import escaped
from services.common.runtime.redaction import HIDDEN, without_secrets

_SECRET_NAME = re.compile(
    r"authorization|api[_-]?key|password|secret|signing_keys|admin_key|reward_key", re.IGNORECASE
)
_PROBLEMS = frozenset({"warning", "error", "critical"})

_RENDERERS: dict[bool, structlog.typing.Processor] = {
    True: structlog.processors.JSONRenderer(),
    False: structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
}

get = cast("Callable[..., structlog.stdlib.BoundLogger]", structlog.get_logger)
"""`logger = logs.get()`"""


def hide_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace secrets: values with names such as `password`, and what looks like a key in texts."""
    for name, value in event.items():
        event[name] = hidden(value, name)
    return event


def hidden(value: Any, name: str = "") -> Any:
    """Replace a value whose name is that of a secret, and what looks like a key in a text."""
    if _SECRET_NAME.search(name):
        return HIDDEN
    return without_secrets(value) if isinstance(value, str) else value


def count_problems(
    _logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Count the lines that tell of a problem."""
    level = event.get("level", method)
    if level in _PROBLEMS:
        metrics.count("fulgurite_log_lines_total", level)
    return event


def escape_texts(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escape characters in texts that a terminal would interpret."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = escaped(value)
    return event


def configure(service: str, level: str = "INFO", json: bool | None = None) -> None:
    """Set up logging of this process and its libraries.

    `json=None`: JSON unless standard error is a terminal.
    """
    for problem in _PROBLEMS:
        metrics.start_counter("fulgurite_log_lines_total", problem)
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        count_problems,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        hide_secrets,
    ]
    shared.append(structlog.processors.format_exc_info)
    if not as_json:
        shared.append(escape_texts)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _RENDERERS[as_json],
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    structlog.contextvars.bind_contextvars(service=service)
