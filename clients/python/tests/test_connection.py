"""Both clients on the way to a server: proxies, unix sockets, tokens."""

from __future__ import annotations

import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from answers import abort_with
from conftest import Connect, FakeServer
from google.rpc import error_details_pb2

import palimpsest
from palimpsest import _connection, _wire
from palimpsest.v1 import model_pb2, session_pb2, snapshot_pb2

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy", "PALIMPSEST_TOKEN")
TOKEN = "s3cret-Token_1.~+/=="


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def models(server: FakeServer) -> FakeServer:
    server.answer["ListModels"] = lambda request, context: model_pb2.ListModelsResponse()
    return server


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "localhost:{}", "dns:///localhost:{}", "ipv4:127.0.0.1:{}"])
def test_this_machine_is_reached_without_the_proxy(
    models: FakeServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, variable: str, form: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    client = connect(form.format(models.target.rpartition(":")[2]))
    assert client.list_models(timeout=20) == []


def test_a_unix_socket_is_a_target_and_takes_no_proxy(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    handler: Any = grpc.unary_unary_rpc_method_handler(
        lambda request, context: model_pb2.ListModelsResponse(models=[model_pb2.Model(name="models/m")]),
        response_serializer=model_pb2.ListModelsResponse.SerializeToString,
    )
    method = _wire.LIST_MODELS
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(method.service, {method.name: handler}),))
    target = f"unix:{tmp_path / 'socket'}"
    server.add_insecure_port(target)
    server.start()
    try:
        (model,) = connect(target, token=TOKEN).list_models(timeout=20)
        assert model.name == "models/m"
    finally:
        server.stop(None).wait()


def test_an_unreachable_server_behind_a_proxy_names_the_proxy_and_not_its_password(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:password@127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:2")
    with pytest.raises(palimpsest.Unavailable) as caught:
        connect("elsewhere.invalid:50051").generate_text("x")
    assert "the proxy 127.0.0.1:1 of https_proxy" in str(caught.value)
    assert "add elsewhere.invalid to no_proxy" in str(caught.value)
    assert "password" not in str(caught.value)


def test_a_server_that_answers_unavailable_is_not_blamed_on_the_proxy(
    models: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    connection = _connection.Connection(
        "elsewhere.invalid:50051", encrypted=False, metadata=(), token="", allow_insecure_token=False, options=()
    )
    draining = abort_with(grpc.StatusCode.UNAVAILABLE, "draining", error_details_pb2.ErrorInfo(reason="DRAINING"))
    models.answer["Score"] = draining
    with palimpsest.Client(models.target) as client, pytest.raises(palimpsest.Unavailable) as caught:
        client.score("x")
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert "proxy" not in str(connection.failure(caught.value.__cause__))


@pytest.mark.parametrize(
    ("no_proxy", "through"),
    [("", True), ("other.example", True), ("x.y, corp.example", False), ("server.corp.example", False)],
)
def test_no_proxy_is_heeded(monkeypatch: pytest.MonkeyPatch, no_proxy: str, through: bool) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert bool(_connection.proxy_of("server.corp.example:50051")) is through


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("localhost:50051", True),
        ("localhost", True),
        ("LOCALHOST.:1", True),
        ("127.3.2.1:50051", True),
        ("[::1]:50051", True),
        ("::1", True),
        ("ipv6:[::1]:50051", True),
        ("ipv6:%5B::1%5D:50051", True),
        ("dns:localhost:50051", True),
        ("dns://8.8.8.8/localhost:50051", True),
        ("unix:/run/palimpsest.sock", True),
        ("unix:///run/palimpsest.sock", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("example.com:50051", False),
        ("localhost.example.com:50051", False),
        ("127.0.0.1.example.com:1", False),
        ("10.0.0.1:50051", False),
        ("[fe80::1]:50051", False),
        ("dns:///example.com:50051", False),
        ("dns://127.0.0.1/example.com:50051", False),
        ("xds:///localhost", False),
        ("", False),
    ],
)
def test_what_is_this_machine(target: str, local: bool) -> None:
    assert _connection.is_local(target) is local


def test_the_token_goes_with_every_call(models: FakeServer, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_TOKEN", "from-the-environment\n")
    connect(models.target, token=f"  {TOKEN}\n").list_models()
    assert models.metadata["ListModels"]["authorization"] == f"Bearer {TOKEN}"
    connect(models.target).list_models()
    assert models.metadata["ListModels"]["authorization"] == "Bearer from-the-environment"
    connect(models.target, token="").list_models()
    assert "authorization" not in models.metadata["ListModels"]
    connect(models.target, metadata=[("authorization", "Basic mine")]).list_models()
    assert models.metadata["ListModels"]["authorization"] == "Basic mine"


def test_a_token_does_not_cross_a_network_in_plain_text(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"not encrypted.*allow_insecure_token") as caught:
        connect("example.invalid:50051", token=TOKEN)
    assert TOKEN not in str(caught.value)
    monkeypatch.setenv("PALIMPSEST_TOKEN", TOKEN)
    with pytest.raises(ValueError, match="not encrypted"):
        connect("example.invalid:50051")
    connect("example.invalid:50051", allow_insecure_token=True)
    connect("example.invalid:50051", credentials=grpc.ssl_channel_credentials())
    connect("example.invalid:50051", token="")


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "caf\xe9", "=x", "a=b", 'quo"te'])
def test_a_malformed_token_is_refused_and_not_shown(connect: Connect, token: str) -> None:
    with pytest.raises(ValueError, match="characters that a token cannot have") as caught:
        connect("127.0.0.1:1", token=token)
    assert token not in str(caught.value)


def test_a_token_and_an_authorization_are_one_too_many(connect: Connect) -> None:
    with pytest.raises(ValueError, match="not both"):
        connect("127.0.0.1:1", token=TOKEN, metadata=[("Authorization", "Basic mine")])


def test_who_is_not_known_hears_how_to_be(models: FakeServer, connect: Connect) -> None:
    models.answer["Score"] = abort_with(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
    with pytest.raises(palimpsest.Unauthenticated, match=r"no token was sent: give token=.*PALIMPSEST_TOKEN"):
        connect(models.target).score("x")
    with pytest.raises(palimpsest.Unauthenticated, match="the token that was sent is not accepted") as caught:
        connect(models.target, token=TOKEN).score("x")
    assert TOKEN not in repr(caught.value) + str(caught.value)


def test_the_token_is_in_no_representation(models: FakeServer) -> None:
    with palimpsest.Client(models.target, token=TOKEN) as client:
        assert TOKEN not in repr(client) + repr(client._connection)


def test_a_list_may_be_of_all_owners(server: FakeServer, client: Any) -> None:
    def sessions(request: Any, _context: Any) -> session_pb2.ListSessionsResponse:
        owners = ["a", "b"] if request.owner == "-" else ["a"]
        return session_pb2.ListSessionsResponse(
            sessions=[session_pb2.Session(name="sessions/same", owner=owner) for owner in owners]
        )

    server.answer["ListSessions"] = sessions
    assert [session.info.owner for session in client.list_sessions(owner="-")] == ["a", "b"]
    assert [session.info.owner for session in client.list_sessions()] == ["a"]
    server.answer["ListSnapshots"] = lambda request, context: snapshot_pb2.ListSnapshotsResponse(
        snapshots=[snapshot_pb2.Snapshot(name="snapshots/same", owner=request.owner)]
    )
    assert [snapshot.owner for snapshot in client.list_snapshots(owner="-")] == ["-"]
