"""Both clients make, use, fork, list and delete sessions."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import grpc
import pytest
from answers import abort_with, finish, piece, refuse_then, reply, retry_in, session_named
from conftest import Connect, FakeServer
from google.protobuf import duration_pb2, empty_pb2

import palimpsest
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import session_pb2, snapshot_pb2


def test_a_session_is_created_used_and_deleted(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a", 3)
    server.answer["Generate"] = reply(piece("hi", 1), finish())
    server.answer["DeleteSession"] = lambda request, context: empty_pb2.Empty()
    with client.create_session("a", model="m", ttl=timedelta(seconds=1.5)) as session:
        assert (session.name, session.info.position) == ("sessions/a", 3)
        assert session.info.condition is palimpsest.SessionCondition.IDLE
        assert session.info.expire_time is None
        assert session.generate_text("x") == "hi"
    (request,) = server.received("CreateSession")
    assert request.session == session_pb2.Session(
        model="models/m", ttl=duration_pb2.Duration(seconds=1, nanos=500_000_000)
    )
    assert len(request.request_id) == 36
    assert server.received("Generate")[0].session == "sessions/a"
    assert server.received("DeleteSession") == [session_pb2.DeleteSessionRequest(name="sessions/a")]


def test_a_source_may_be_an_object_or_a_full_name(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/b")
    parent = client.create_session()
    client.create_session(source=parent)
    client.create_session(source="snapshots/evening")
    _, from_session, from_snapshot = server.received("CreateSession")
    assert from_session.source_session == "sessions/b"
    assert from_snapshot.source_snapshot == "snapshots/evening"
    with pytest.raises(ValueError, match=r'"evening".*begins with'):
        client.create_session(source="evening")


def test_deleting_at_the_end_forgives_a_session_that_is_gone(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    server.answer["DeleteSession"] = abort_with(grpc.StatusCode.NOT_FOUND, "expired")
    with client.create_session():
        pass


def test_deleting_at_the_end_waits_for_a_cancelled_reply_to_let_go(server: FakeServer, client: Any) -> None:
    held = abort_with(grpc.StatusCode.ABORTED, "a call holds it", retry_in(0.01))
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    server.answer["DeleteSession"] = refuse_then(2, held, lambda request, context: empty_pb2.Empty())
    with client.create_session():
        pass
    assert len(server.received("DeleteSession")) == 3


def test_the_error_of_the_block_wins_over_the_error_of_deleting(server: FakeServer, client: Any) -> None:
    server.answer["CreateSession"] = lambda request, context: session_named("sessions/a")
    server.answer["DeleteSession"] = abort_with(grpc.StatusCode.PERMISSION_DENIED, "no")
    with pytest.raises(ZeroDivisionError), client.create_session():
        raise ZeroDivisionError
    with pytest.raises(palimpsest.PermissionDenied), client.create_session():
        pass


def test_a_fork_gives_sessions(server: FakeServer, client: Any) -> None:
    server.answer["GetSession"] = lambda request, context: session_named(request.name, 9)
    server.answer["ForkSession"] = lambda request, context: session_pb2.ForkSessionResponse(
        sessions=[session_named(f"sessions/{id_}", 9) for id_ in request.session_ids]
    )
    children = client.get_session("a").fork(session_ids=["b", "c"], ttl=0)
    assert [child.name for child in children] == ["sessions/b", "sessions/c"]
    (request,) = server.received("ForkSession")
    assert request.name == "sessions/a"
    assert request.HasField("ttl") and request.ttl == duration_pb2.Duration()


def test_update_changes_the_time_to_live_only(server: FakeServer, client: Any) -> None:
    server.answer["GetSession"] = lambda request, context: session_named(request.name)
    server.answer["UpdateSession"] = lambda request, context: session_pb2.Session(
        name=request.session.name, ttl=request.session.ttl, expire_time=datetime(2030, 1, 2, tzinfo=timezone.utc)
    )
    info = client.get_session("a").update(ttl=60)
    assert (info.ttl, info.expire_time) == (60.0, datetime(2030, 1, 2, tzinfo=timezone.utc))
    client.update_session("a", ttl=5, etag="e1")
    first, second = server.received("UpdateSession")
    assert list(first.update_mask.paths) == ["ttl"]
    assert (first.session.etag, second.session.etag) == ("", "e1")


def test_a_session_is_interrupted_and_may_be_deleted_by_force(server: FakeServer, client: Any) -> None:
    held = abort_with(grpc.StatusCode.ABORTED, "the call has not ended yet", retry_in(0.01))
    server.answer["GetSession"] = lambda request, context: session_named(request.name)
    server.answer["InterruptSession"] = refuse_then(1, held, lambda request, context: session_named(request.name, 7))
    server.answer["DeleteSession"] = lambda request, context: empty_pb2.Empty()
    session = client.get_session("a")
    assert session.interrupt().position == session.info.position == 7
    assert client.interrupt_session("b").name == "sessions/b"
    assert [request.name for request in server.received("InterruptSession")] == ["sessions/a"] * 2 + ["sessions/b"]
    session.delete(force=True)
    client.delete_session("b", etag="e1")
    assert server.received("DeleteSession") == [
        session_pb2.DeleteSessionRequest(name="sessions/a", force=True),
        session_pb2.DeleteSessionRequest(name="sessions/b", etag="e1"),
    ]


def test_pages_are_followed_to_the_end_even_through_empty_ones(server: FakeServer, client: Any) -> None:
    pages = {"": (["a", "b"], "1"), "1": ([], "2"), "2": (["c"], "")}

    def answer(request: Any, context: grpc.ServicerContext) -> session_pb2.ListSessionsResponse:
        ids, token = pages[request.page_token]
        return session_pb2.ListSessionsResponse(
            sessions=[session_named(f"sessions/{id_}") for id_ in ids], next_page_token=token
        )

    server.answer["ListSessions"] = answer
    assert [session.name for session in client.list_sessions(page_size=2)] == ["sessions/a", "sessions/b", "sessions/c"]
    assert [(request.page_size, request.page_token) for request in server.received("ListSessions")] == [
        (2, ""),
        (2, "1"),
        (2, "2"),
    ]


def test_pages_are_asked_for_only_as_they_are_needed(server: FakeServer, client: Any) -> None:
    server.answer["ListSnapshots"] = lambda request, context: snapshot_pb2.ListSnapshotsResponse(
        snapshots=[snapshot_pb2.Snapshot(name="snapshots/a")], next_page_token="more"
    )
    listing = client.list_snapshots()
    assert server.received("ListSnapshots") == []
    assert next(listing).name == "snapshots/a"
    assert len(server.received("ListSnapshots")) == 1


def test_calls_on_a_session_carry_its_name_as_metadata(server: FakeServer, client: Any) -> None:
    server.answer["Generate"] = reply(finish())
    server.answer["Score"] = lambda request, context: generation.ScoreResponse()
    server.answer["GetSession"] = lambda request, context: session_named(request.name)
    server.answer["ForkSession"] = lambda request, context: session_pb2.ForkSessionResponse()
    server.answer["CreateSnapshot"] = lambda request, context: snapshot_pb2.Snapshot()
    server.answer["Tokenize"] = lambda request, context: generation.TokenizeResponse()
    client.generate_text("x", session="a")
    client.score("x", session="sessions/a")
    client.get_session("a").fork()
    client.create_snapshot("a")
    client.tokenize("x")
    for name in ("Generate", "Score", "GetSession", "ForkSession", "CreateSnapshot"):
        assert server.metadata[name]["x-goog-request-params"] == "session=sessions/a", name
    assert "x-goog-request-params" not in server.metadata["Tokenize"]


def test_metadata_of_the_client_goes_with_every_call(server: FakeServer, connect: Connect) -> None:
    server.answer["Tokenize"] = lambda request, context: generation.TokenizeResponse()
    connect(server.target, metadata=[("authorization", "Bearer x")]).tokenize("x")
    assert server.metadata["Tokenize"]["authorization"] == "Bearer x"
