"""W3C trace context: under which trace the server logs a call.

Of these the first that there is: the block of `trace_context` that the call is made in, the client's own `metadata`,
the current span of OpenTelemetry where that package is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

try:
    from opentelemetry import propagate as _propagate
except ImportError:  # not a dependency of ours
    _propagate = None  # type: ignore[assignment]

_HEADERS = ("traceparent", "tracestate")
_current: ContextVar[list[tuple[str, str]] | None] = ContextVar("palimpsest_trace_context", default=None)


@contextmanager
def trace_context(traceparent: str, tracestate: str = "") -> Iterator[None]:
    """Calls made in the block belong to this W3C trace context: the server logs them under its trace id.

        with palimpsest.trace_context(request.headers["traceparent"]):
            client.generate_text("Once upon a time")

    Blocks may be nested, and each task of asyncio has its own. Code that uses OpenTelemetry needs none: the span that
    is current when a call is made is its parent.
    """
    headers = [("traceparent", traceparent)]
    if tracestate:
        headers.append(("tracestate", tracestate))
    token = _current.set(headers)
    try:
        yield
    finally:
        _current.reset(token)


def with_trace(metadata: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The metadata of a call: the client's, and the trace that the call belongs to."""
    headers = _current.get()
    if headers is not None:
        return [(name, value) for name, value in metadata if name not in _HEADERS] + headers
    if _propagate is None or any(name == "traceparent" for name, _ in metadata):
        return list(metadata)
    carrier: dict[str, str] = {}
    _propagate.inject(carrier)
    return [*metadata, *((name.lower(), value) for name, value in carrier.items())]
