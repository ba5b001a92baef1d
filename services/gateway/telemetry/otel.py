"""`tracing` with OpenTelemetry: a thread sends spans in batches over OTLP/HTTP. The OTEL_*
variables configure it.
"""

from __future__ import annotations

import os

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fulgurite.events import LlmCall
from services.gateway.telemetry.tracing import CallTrace

_SERVER_ERROR = 500
_propagator = TraceContextTextMapPropagator()


class OtelTracer:
    """See Tracer."""

    def __init__(self) -> None:
        resource = Resource.create(
            {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "fulgurite-gateway")}
        )
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("fulgurite.gateway")

    def begin(self, name: str, traceparent: str | None) -> CallTrace:
        """See Tracer."""
        parent = (
            Context()
            if traceparent is None
            else _propagator.extract({"traceparent": traceparent}, Context())
        )
        return OtelCallTrace(self._tracer, self._tracer.start_span(name, parent, SpanKind.SERVER))

    def close(self) -> None:
        """See Tracer. Waits a few seconds at most."""
        self._provider.shutdown()


class OtelCallTrace(CallTrace):
    """See CallTrace."""

    __slots__ = ("_context", "_publish", "_span", "_tracer", "_upstream")

    def __init__(self, tracer: SdkTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, Context())
        self._upstream: Span | None = None
        self._publish: Span | None = None
        super().__init__(_traceparent(self._context))

    def upstream(self) -> str | None:
        """See CallTrace. A second backend that is asked gets a span of its own."""
        self.answered()
        self._upstream = self._tracer.start_span("upstream", self._context, SpanKind.CLIENT)
        return _traceparent(set_span_in_context(self._upstream, Context()))

    def answered(self) -> None:
        """See CallTrace."""
        if self._upstream is not None:
            self._upstream.end()
            self._upstream = None

    def publish(self) -> None:
        """See CallTrace."""
        self._publish = self._tracer.start_span("publish", self._context, SpanKind.PRODUCER)

    def published(self) -> None:
        """See CallTrace."""
        if self._publish is not None:
            self._publish.end()
            self._publish = None

    def end(self, event: LlmCall | None) -> None:
        """See CallTrace."""
        self.answered()
        self.published()
        if event is not None:
            self._span.set_attributes(_attributes(event))
            if (event.status_code or 0) >= _SERVER_ERROR:
                self._span.set_status(Status(StatusCode.ERROR, event.error))
        self._span.end()


def _attributes(event: LlmCall) -> dict[str, str | int | bool]:
    """The span's attributes, under OpenTelemetry's names for generative AI where it has one."""
    attributes: dict[str, str | int | bool | None] = {
        "gen_ai.request.model": event.alias,
        "gen_ai.response.model": event.version_last,
        "gen_ai.usage.input_tokens": event.prompt_tokens,
        "gen_ai.usage.output_tokens": event.completion_tokens,
        "http.response.status_code": event.status_code,
        "fulgurite.backend": event.backend,
        "fulgurite.rollout_id": event.rollout_id,
        "fulgurite.call_id": event.call_id,
        "fulgurite.outcome": event.outcome.value,
        "fulgurite.stream": event.stream,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _traceparent(context: Context) -> str | None:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier.get("traceparent")
