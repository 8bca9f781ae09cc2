"""Which trace a call belongs to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from answers import piece
from conftest import Connect, FakeServer
from google.protobuf import empty_pb2
from opentelemetry.sdk.trace import TracerProvider

import palimpsest
from palimpsest import _trace
from palimpsest.v1 import generation_pb2 as generation

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def answers(server: FakeServer) -> None:
    server.answer["Detokenize"] = lambda request, context: generation.DetokenizeResponse(text="x")
    server.answer["DeleteSession"] = lambda request, context: empty_pb2.Empty()
    server.answer["Generate"] = lambda request, context: iter([piece("x")])


def sent(server: FakeServer, method: str = "Detokenize") -> tuple[str | None, str | None]:
    """The trace context that came with the last call of the method."""
    metadata = server.metadata[method]
    return metadata.get("traceparent"), metadata.get("tracestate")


def test_calls_in_a_block_belong_to_its_trace(server: FakeServer, client: Any) -> None:
    with palimpsest.trace_context(PARENT, "congo=t61rcWkgMzE"):
        client.detokenize([1])
        assert sent(server) == (PARENT, "congo=t61rcWkgMzE")
        with palimpsest.trace_context(OTHER):
            client.delete_session("s")
        assert sent(server, "DeleteSession") == (OTHER, None)
        next(iter(client.generate("x")))
    assert sent(server, "Generate") == (PARENT, "congo=t61rcWkgMzE")
    assert server.metadata["DeleteSession"]["x-goog-request-params"] == "session=sessions/s"
    client.detokenize([1])
    assert sent(server) == (None, None)


def test_a_block_wins_over_the_clients_metadata(server: FakeServer, connect: Connect) -> None:
    client = connect(server.target, metadata=[("traceparent", OTHER), ("tracestate", "a=1"), ("x-key", "k")])
    client.detokenize([1])
    assert sent(server) == (OTHER, "a=1")
    with palimpsest.trace_context(PARENT):
        client.detokenize([1])
    assert sent(server) == (PARENT, None)
    assert server.metadata["Detokenize"]["x-key"] == "k"


def test_the_current_span_of_opentelemetry_is_the_parent(server: FakeServer, connect: Connect) -> None:
    tracer = TracerProvider().get_tracer("test")
    client = connect(server.target)
    with tracer.start_as_current_span("caller") as span:
        client.detokenize([1])
        with palimpsest.trace_context(PARENT):
            client.delete_session("s")
    context = span.get_span_context()
    assert sent(server)[0] == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert sent(server, "DeleteSession") == (PARENT, None)
    client.detokenize([1])
    assert sent(server) == (None, None)


def test_without_opentelemetry_nothing_is_missing(
    server: FakeServer, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trace, "_propagate", None)
    client.detokenize([1])
    assert sent(server) == (None, None)


def test_each_task_has_a_trace_of_its_own() -> None:
    async def inside(traceparent: str) -> list[tuple[str, str]]:
        with palimpsest.trace_context(traceparent):
            await asyncio.sleep(0.01)
            return _trace.with_trace([])

    async def both() -> list[list[tuple[str, str]]]:
        return await asyncio.gather(inside(PARENT), inside(OTHER))

    assert asyncio.run(both()) == [[("traceparent", PARENT)], [("traceparent", OTHER)]]
