"""Both clients on errors and retries."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from answers import abort_with, session_named
from conftest import Connect, FakeServer
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

import palimpsest
from palimpsest.v1 import session_pb2


def test_bad_input_names_the_field(server: FakeServer, client: Any) -> None:
    bad_request = error_details_pb2.BadRequest()
    bad_request.field_violations.add(field="sampling.temperature", description="is -1; give 0 to 100")
    server.answer["Generate"] = abort_with(
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.temperature is -1; give 0 to 100",
        error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain="palimpsest.dev", metadata={"limit": "100"}),
        bad_request,
    )
    with pytest.raises(palimpsest.InvalidArgument) as caught:
        client.generate_text("x", temperature=-1)
    error = caught.value
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(error) == "INVALID_ARGUMENT: sampling.temperature is -1; give 0 to 100"
    assert (error.reason, error.domain, error.metadata) == ("INVALID_FIELD", "palimpsest.dev", {"limit": "100"})
    assert error.field_violations == (palimpsest.FieldViolation("sampling.temperature", "is -1; give 0 to 100"),)
    assert error.retry_delay is None


def test_a_full_queue_says_when_to_come_back(server: FakeServer, connect: Connect) -> None:
    client = connect(server.target, retry=palimpsest.RetryPolicy(max_attempts=1))
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=250_000_000))
    server.answer["Score"] = abort_with(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", retry)
    with pytest.raises(palimpsest.ResourceExhausted) as caught:
        client.score("x")
    assert caught.value.retry_delay == 1.25


def test_damaged_details_do_not_hide_the_error(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")

    server.answer["Tokenize"] = answer
    with pytest.raises(palimpsest.NotFound, match="no such model") as caught:
        client.tokenize("x")
    assert caught.value.reason == ""


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_has_its_class(server: FakeServer, client: Any, code: grpc.StatusCode) -> None:
    server.answer["LoadModel"] = lambda request, context: context.abort(code, "words")
    with pytest.raises(palimpsest.PalimpsestError, match="words") as caught:
        client.load_model("m", "p")
    assert caught.value.code is code
    expected = "PalimpsestError" if code is grpc.StatusCode.UNKNOWN else code.name.title().replace("_", "")
    assert type(caught.value).__name__ == expected


def test_calls_that_do_no_harm_twice_are_tried_again_with_the_same_request_id(server: FakeServer, client: Any) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> session_pb2.Session:
        if len(server.received("CreateSession")) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return session_named("sessions/a")

    server.answer["CreateSession"] = answer
    assert client.create_session().name == "sessions/a"
    requests = server.received("CreateSession")
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1


def test_calls_that_append_are_never_tried_again(server: FakeServer, client: Any) -> None:
    for name in ("Generate", "Score", "DeleteSession"):
        server.answer[name] = abort_with(grpc.StatusCode.UNAVAILABLE, "draining")
    for call in (client.generate_text, client.score, client.delete_session):
        with pytest.raises(palimpsest.Unavailable):
            call("x")
    assert sorted(name for name, _ in server.requests) == ["DeleteSession", "Generate", "Score"]


def test_a_server_that_is_not_there_is_unavailable(connect: Connect) -> None:
    client = connect("127.0.0.1:1")
    with pytest.raises(palimpsest.Unavailable):
        client.list_models()
    with pytest.raises(palimpsest.Unavailable):
        client.generate_text("x")
