"""Input whose handling raises: it is tried once more, then it is a dead letter, and the service
goes on.

An error of the log, a disk or the network is no fault of the input: it stops the service with
nothing acknowledged, and the next start tries again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from confluent_kafka import KafkaException

from services.common.kafka.errors import EventTooLarge, LogUnavailable

_AWAY = (LogUnavailable, KafkaException, OSError)


def is_away(error: BaseException) -> bool:
    """Whether the log, a disk or the network failed, and not the handling of an input."""
    return isinstance(error, _AWAY) and not isinstance(error, EventTooLarge)


async def failure_of(
    handle: Callable[[], Awaitable[object]], plain: tuple[type[Exception], ...] = ()
) -> Exception | None:
    """Handle an input; if that fails, once more, unless with a `plain` error. Returns what it
    failed with, None if it did not.

    Raises what `is_away`.
    """
    failure: Exception | None = None
    for _ in range(2):
        try:
            await handle()
        except Exception as error:
            if is_away(error):
                raise
            failure = error
            if isinstance(error, plain):
                break
        else:
            return None
    return failure
