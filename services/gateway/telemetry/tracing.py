"""Traces of calls, which join the agent's `traceparent`. Off, and almost free, unless
OTEL_EXPORTER_OTLP_ENDPOINT is set.

Each call has one span, with the children `upstream` (until the answer is complete) and `publish`
(until Kafka's acknowledgement). The upstream gets the traceparent of its span; the Kafka record and
the event get that of the call's. With traces off, the agent's own is handed on.
"""

from __future__ import annotations

import os
from typing import Protocol

from fulgurite.events import LlmCall
from services.common.runtime.extras import how_to_install

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class CallTrace:
    """The trace of one call; this class is what it is when traces are off."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent
        """Traceparent of the call's span."""

    def upstream(self) -> str | None:
        """Note that an upstream is asked now; returns the traceparent to hand on."""
        return self.traceparent

    def answered(self) -> None:
        """Note that the upstream's answer is complete, or will not come."""

    def publish(self) -> None:
        """Note that the event is on its way to the log."""

    def published(self) -> None:
        """Note that the event is in the log, or will not get there."""

    def end(self, event: LlmCall | None) -> None:
        """Note that the call is over; `event` is its event, if it has one."""


class Tracer(Protocol):
    """Makes traces of calls."""

    def begin(self, name: str, traceparent: str | None) -> CallTrace:
        """Begin the trace of a call, perhaps with the agent's trace context."""
        ...

    def close(self) -> None:
        """Send what has not been sent."""
        ...


class NoTracer:
    """The tracer when traces are off."""

    def begin(self, name: str, traceparent: str | None) -> CallTrace:
        """Hands on what the agent sent."""
        return CallTrace(traceparent)

    def close(self) -> None:
        """Nothing to send."""


def open_tracer() -> Tracer:
    """The tracer that the environment asks for. Raises ValueError when traces are asked for and
    OpenTelemetry is not installed.
    """
    if (
        not any(os.environ.get(name) for name in _ENDPOINTS)
        or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    ):
        return NoTracer()
    try:
        from services.gateway.telemetry.otel import OtelTracer
    except ImportError as error:
        raise ValueError(
            f"{_ENDPOINTS[0]} is set, but OpenTelemetry is not installed: {how_to_install('otel')}"
        ) from error
    return OtelTracer()
