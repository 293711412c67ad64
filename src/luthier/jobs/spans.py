"""Where spans are made so that clients' own text is not in them. Needs the extra `otel`."""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider

PROPAGATORS = "OTEL_PROPAGATORS"
QUERY = "url.query"


class _WithoutQueries(SpanProcessor):
    """A query can hold what a client wrote (`metadata[key]=value` of lists); FastAPI hides only known signatures."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Here, as a span that has ended cannot be changed."""
        if QUERY in (span.attributes or {}):
            span.set_attribute(QUERY, "REDACTED")


class _WithoutParents(TextMapPropagator):
    """Each request begins a trace. An empty `CompositePropagator` makes no context, and FastAPI fails without one."""

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        """Nothing of the headers."""
        return Context() if context is None else context

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Nothing is passed on."""

    @property
    def fields(self) -> set[str]:
        """None."""
        return set()


def provide(environment: Mapping[str, str]) -> None:
    """Make the process's spans real; FastAPI adds the sender to whatever provider it finds.

    A client's `traceparent` could put its requests into others' traces or out of all, and its `tracestate` is free
    text: both are taken only where OTEL_PROPAGATORS names what reads them.
    """
    provider = TracerProvider(shutdown_on_exit=False)  # FastAPI flushes and ends the sender
    provider.add_span_processor(_WithoutQueries())
    trace.set_tracer_provider(provider)
    if not environment.get(PROPAGATORS) or not get_global_textmap().fields:
        set_global_textmap(_WithoutParents())
