"""Both clients make a call again that the server refused for the moment, and no other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from answers import abort_with, finish, piece, refuse_then, reply, retry_in, session_named
from conftest import Connect, FakeServer
from google.protobuf import empty_pb2

import palimpsest
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import session_pb2, snapshot_pb2

REFUSALS = [grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE]


@pytest.mark.parametrize("code", REFUSALS, ids=lambda code: code.name)
def test_every_call_is_made_again_after_a_refusal_that_says_when(
    server: FakeServer, client: Any, code: grpc.StatusCode
) -> None:
    def a_session(_request: Any, _context: Any) -> session_pb2.Session:
        return session_named("sessions/a")

    def an_empty(_request: Any, _context: Any) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    answers: dict[str, Any] = {
        "Generate": reply(piece("done", 1), finish()),
        "Score": lambda request, context: generation.ScoreResponse(),
        "DeleteSession": an_empty,
        "UpdateSession": a_session,
        "UploadSnapshot": lambda request, context: snapshot_pb2.Snapshot(name="snapshots/a"),
        "DownloadSnapshot": lambda request, context: iter([snapshot_pb2.DownloadSnapshotResponse(data=b"ab")]),
    }
    refusal = abort_with(code, "not now", retry_in(0.01))
    for name, answer in answers.items():
        server.answer[name] = refuse_then(2, refusal, answer)
    assert client.generate_text("x", session="a") == "done"
    client.score("x", session="a")
    client.delete_session("a")
    client.update_session("a", ttl=5)
    assert client.upload_snapshot(b"bytes").name == "snapshots/a"
    assert client.download_snapshot("a") == b"ab"
    assert {name: len(server.received(name)) for name in answers} == {name: 3 for name in answers}


def test_the_attempts_are_bounded_and_the_last_refusal_is_raised(server: FakeServer, connect: Connect) -> None:
    client = connect(server.target, retry=palimpsest.RetryPolicy(max_attempts=3))
    server.answer["Score"] = abort_with(grpc.StatusCode.ABORTED, "held", retry_in(0.01))
    server.answer["Generate"] = server.answer["Score"]
    with pytest.raises(palimpsest.Aborted, match="held"):
        client.score("x", session="a")
    with pytest.raises(palimpsest.Aborted, match="held"):
        client.generate_text("x", session="a")
    assert len(server.received("Score")) == len(server.received("Generate")) == 3


def test_a_wait_that_would_take_too_long_is_not_begun(server: FakeServer, connect: Connect) -> None:
    server.answer["Score"] = abort_with(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_in(0.5))
    with pytest.raises(palimpsest.ResourceExhausted, match="full"):
        connect(server.target, retry=palimpsest.RetryPolicy(max_seconds=0.4)).score("x")
    with pytest.raises(palimpsest.ResourceExhausted, match="full"):
        connect(server.target).score("x", timeout=0.45)
    assert len(server.received("Score")) == 2


def test_a_refusal_that_does_not_say_when_is_raised_at_once(server: FakeServer, client: Any) -> None:
    server.answer["Score"] = abort_with(grpc.StatusCode.ABORTED, "the etag is stale")
    with pytest.raises(palimpsest.Aborted):
        client.score("x", session="a")
    server.answer["Score"] = abort_with(grpc.StatusCode.FAILED_PRECONDITION, "quarantined", retry_in(0.01))
    with pytest.raises(palimpsest.FailedPrecondition):
        client.score("x", session="a")
    assert len(server.received("Score")) == 2


def test_a_reply_that_has_begun_is_never_asked_for_again(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        yield piece("so far", 1)
        abort_with(grpc.StatusCode.UNAVAILABLE, "draining", retry_in(0.01))(request, context)

    server.answer["Generate"] = answer
    with pytest.raises(palimpsest.Unavailable, match="draining"):
        client.generate_text("x")
    assert len(server.received("Generate")) == 1

    def half(request: Any, context: grpc.ServicerContext) -> Iterator[snapshot_pb2.DownloadSnapshotResponse]:
        yield snapshot_pb2.DownloadSnapshotResponse(data=b"half")
        abort_with(grpc.StatusCode.ABORTED, "gone", retry_in(0.01))(request, context)

    server.answer["DownloadSnapshot"] = half
    with pytest.raises(palimpsest.Aborted, match="gone"):
        client.download_snapshot("a")
    assert len(server.received("DownloadSnapshot")) == 1


def test_closing_ends_the_wait_for_the_next_attempt(server: FakeServer) -> None:
    refused = threading.Event()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        refused.set()
        return abort_with(grpc.StatusCode.ABORTED, "held", retry_in(0.9))(request, context)

    server.answer["Generate"] = answer
    with palimpsest.Client(server.target) as client:
        stream = client.generate("x", session="a")
        chunks: list[Any] = []
        reader = threading.Thread(target=lambda: chunks.extend(stream))
        reader.start()
        assert refused.wait(10)
        stream.close()
        reader.join(10)
        assert not reader.is_alive() and chunks == []
    assert len(server.received("Generate")) == 1
