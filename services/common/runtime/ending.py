"""How a service's process ends: with an exit code, and one last line of its log that says why."""

from __future__ import annotations

import os
from collections.abc import Callable

from pydantic import ValidationError

from services.common.kafka.dead_letters import words_of
from services.common.runtime import logs

logger = logs.get()


def run_service(name: str, main: Callable[[], int | None]) -> int:
    """The exit code of a service; whatever it ends with is told in one line, without a traceback
    (that is told at level DEBUG).

    78 (EX_CONFIG) for a setting that cannot be used, which trying again does not mend; 1 for any
    other error, after which a supervisor starts it again. A `main` that returns another code than 0
    has said why itself.
    """
    logs.configure(name)
    try:
        code = main() or 0
    except KeyboardInterrupt:
        return _ended(130, "interrupted")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return _ended(code, "told to stop" if code == 0 else str(end.code))
    except ValidationError as error:
        return _ended(os.EX_CONFIG, told_settings(error))
    except Exception as error:
        logger.debug("where it failed", exc_info=error)
        return _ended(1, words_of(error))
    return _ended(code, "told to stop") if code == 0 else code


def told_settings(error: ValidationError) -> str:
    """What is wrong with settings, on one line and without their values: one may be a secret."""
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
