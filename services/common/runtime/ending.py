"""Ends a service's process: with an exit code, and a last line in its log that says why."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext

from pydantic import ValidationError

from services.common.kafka.dead_letters import words_of
from services.common.runtime import logs, metrics_port

logger = logs.get()


def run_service(name: str, main: Callable[[], int | None], *, shows_metrics: bool = True) -> int:
    """Run a service, log in one line why it ended, and return its exit code.

    78 (EX_CONFIG) means an invalid setting, so a restart does not help; 1 is any other error, after
    which a supervisor restarts it. A `main` that returns another code than 0 has logged the reason.
    The traceback is logged at level DEBUG. `shows_metrics`: whether FULGURITE_METRICS_PORT is for
    this service.
    """
    logs.configure(name)
    try:
        with metrics_port.shown() if shows_metrics else nullcontext():
            code = main() or 0
    except KeyboardInterrupt:
        return _ended(130, "interrupted")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return _ended(code, "told to stop" if code == 0 else str(end.code))
    except metrics_port.MetricsPortTaken as error:
        return _ended(os.EX_CONFIG, str(error))
    except ValidationError as error:
        return _ended(os.EX_CONFIG, settings_error_text(error))
    except Exception as error:
        logger.debug("where it failed", exc_info=error)
        return _ended(1, words_of(error))
    return _ended(code, "told to stop") if code == 0 else code


def settings_error_text(error: ValidationError) -> str:
    """Describe invalid settings in one line, without their values, which may be secrets."""
    findings = "; ".join(
        f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}" for finding in error.errors()
    )
    return f"{error.title} (docs/reference/settings.md): {findings}"


def _ended(code: int, reason: str) -> int:
    line = " ".join(reason.split())
    if code == 0:
        logger.info("ended", reason=line, exit_code=code)
    else:
        logger.error("ended", error=line, exit_code=code)
    return code
