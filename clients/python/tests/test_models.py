"""Both clients read models and health."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from conftest import Connect, FakeServer
from google.protobuf import empty_pb2

import palimpsest
from palimpsest.v1 import model_pb2


def test_models_are_read(server: FakeServer, client: Any) -> None:
    model = model_pb2.Model(name="models/m", condition="CONDITION_READY", slots=4, parameter_count=7)
    server.answer["ListModels"] = lambda request, context: model_pb2.ListModelsResponse(models=[model])
    server.answer["GetModel"] = lambda request, context: model
    server.answer["LoadModel"] = lambda request, context: model
    server.answer["UnloadModel"] = lambda request, context: empty_pb2.Empty()
    (listed,) = client.list_models()
    assert listed == client.get_model("m") == client.get_model(listed) == client.load_model("m", "folder")
    assert (listed.condition, listed.slots, listed.parameter_count) == (palimpsest.ModelCondition.READY, 4, 7)
    assert client.unload_model(listed) is None
    assert server.received("UnloadModel")[0].name == "models/m"


def test_an_enum_value_newer_than_the_client_is_unspecified(server: FakeServer, client: Any) -> None:
    server.answer["GetModel"] = lambda request, context: model_pb2.Model.FromString(b"\x10\x63")
    assert client.get_model("m").condition is palimpsest.ModelCondition.UNSPECIFIED


def test_waiting_until_serving_lasts_as_long_as_warming_up(server: FakeServer, client: Any) -> None:
    from palimpsest import _wire

    statuses = iter([0, 2, 2, 1])

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        response: Any = _wire.HealthCheckResponse()
        response.status = next(statuses)
        return response

    server.answer["Check"] = answer
    client.wait_until_serving(timeout=30)
    assert len(server.received("Check")) == 4


def test_waiting_for_a_server_that_is_not_there_ends(connect: Connect) -> None:
    client = connect("127.0.0.1:1")
    with pytest.raises(palimpsest.DeadlineExceeded, match=r"did not serve within 0\.2 s"):
        client.wait_until_serving(timeout=0.2)
