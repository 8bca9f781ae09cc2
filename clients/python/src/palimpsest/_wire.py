"""The calls of the wire contract as data, and how a channel is set up. Shared by the sync and the async client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import model_pb2 as model
from palimpsest.v1 import session_pb2 as session
from palimpsest.v1 import snapshot_pb2 as snapshot

Response = TypeVar("Response", bound=Message)

DEFAULT_TARGET = "localhost:50051"
"""Where the server listens unless it is configured otherwise."""

MAX_MESSAGE_BYTES = 64 << 20
"""Longest message either way. A state may be tens of MB; gRPC's default is 4 MiB."""

PIECE_BYTES = 1 << 20
"""Longest piece of an uploaded snapshot."""


@dataclass(frozen=True)
class Method(Generic[Response]):
    """One RPC. `idempotent`: done twice it leaves what done once leaves, so a lost answer may be asked for again.
    `holds_session`: no other call may append to its session meanwhile."""

    service: str
    name: str
    request: type[Message]
    response: type[Response]
    idempotent: bool
    streams_request: bool = False
    streams_response: bool = False
    holds_session: bool = False

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    def kind(self) -> str:
        """Name of the channel's method that makes such a call, for example "unary_stream"."""
        return f"{'stream' if self.streams_request else 'unary'}_{'stream' if self.streams_response else 'unary'}"


def _health_messages() -> tuple[type[Message], type[Message]]:
    """The two messages of the standard health service, in a pool of their own so that grpcio-health-checking, if it is
    installed, can register its copy."""
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    label = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=label)
    response = file.message_type.add(name="HealthCheckResponse")
    # An enum on the wire is an int32; so read, a value that is new to us is still a number.
    response.field.add(name="status", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_INT32, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    request_class, response_class = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"grpc.health.v1.{name}"))
        for name in ("HealthCheckRequest", "HealthCheckResponse")
    )
    return request_class, response_class


HealthCheckRequest, HealthCheckResponse = _health_messages()

_GENERATION = "palimpsest.v1.GenerationService"
_SESSION = "palimpsest.v1.SessionService"
_SNAPSHOT = "palimpsest.v1.SnapshotService"
_MODEL = "palimpsest.v1.ModelService"

# Generate and Score append to a session, so they are never sent twice. Calls that create something carry a request id,
# which makes a second one harmless. Delete and Update are not: after a lost answer they would report NOT_FOUND or a
# stale etag.
GENERATE = Method(
    _GENERATION,
    "Generate",
    generation.GenerateRequest,
    generation.GenerateResponse,
    False,
    streams_response=True,
    holds_session=True,
)
SCORE = Method(_GENERATION, "Score", generation.ScoreRequest, generation.ScoreResponse, False, holds_session=True)
TOKENIZE = Method(_GENERATION, "Tokenize", generation.TokenizeRequest, generation.TokenizeResponse, True)
DETOKENIZE = Method(_GENERATION, "Detokenize", generation.DetokenizeRequest, generation.DetokenizeResponse, True)
# Of its source, if that is a session.
CREATE_SESSION = Method(
    _SESSION, "CreateSession", session.CreateSessionRequest, session.Session, True, holds_session=True
)
GET_SESSION = Method(_SESSION, "GetSession", session.GetSessionRequest, session.Session, True)
LIST_SESSIONS = Method(_SESSION, "ListSessions", session.ListSessionsRequest, session.ListSessionsResponse, True)
UPDATE_SESSION = Method(_SESSION, "UpdateSession", session.UpdateSessionRequest, session.Session, False)
FORK_SESSION = Method(
    _SESSION, "ForkSession", session.ForkSessionRequest, session.ForkSessionResponse, True, holds_session=True
)
INTERRUPT_SESSION = Method(_SESSION, "InterruptSession", session.InterruptSessionRequest, session.Session, True)
DELETE_SESSION = Method(_SESSION, "DeleteSession", session.DeleteSessionRequest, Empty, False, holds_session=True)
CREATE_SNAPSHOT = Method(
    _SNAPSHOT, "CreateSnapshot", snapshot.CreateSnapshotRequest, snapshot.Snapshot, True, holds_session=True
)
GET_SNAPSHOT = Method(_SNAPSHOT, "GetSnapshot", snapshot.GetSnapshotRequest, snapshot.Snapshot, True)
LIST_SNAPSHOTS = Method(_SNAPSHOT, "ListSnapshots", snapshot.ListSnapshotsRequest, snapshot.ListSnapshotsResponse, True)
DELETE_SNAPSHOT = Method(_SNAPSHOT, "DeleteSnapshot", snapshot.DeleteSnapshotRequest, Empty, False)
DOWNLOAD_SNAPSHOT = Method(
    _SNAPSHOT,
    "DownloadSnapshot",
    snapshot.DownloadSnapshotRequest,
    snapshot.DownloadSnapshotResponse,
    True,
    streams_response=True,
)
UPLOAD_SNAPSHOT = Method(
    _SNAPSHOT, "UploadSnapshot", snapshot.UploadSnapshotRequest, snapshot.Snapshot, False, streams_request=True
)
LIST_MODELS = Method(_MODEL, "ListModels", model.ListModelsRequest, model.ListModelsResponse, True)
GET_MODEL = Method(_MODEL, "GetModel", model.GetModelRequest, model.Model, True)
LOAD_MODEL = Method(_MODEL, "LoadModel", model.LoadModelRequest, model.Model, False)
UNLOAD_MODEL = Method(_MODEL, "UnloadModel", model.UnloadModelRequest, Empty, False)
HEALTH_CHECK = Method("grpc.health.v1.Health", "Check", HealthCheckRequest, HealthCheckResponse, True)

METHODS: tuple[Method[Any], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Method))


def service_config() -> str:
    """gRPC's service config: idempotent calls are tried again, up to four times in all, where the server was not
    reached or is draining."""
    return json.dumps(
        {
            "methodConfig": [
                {
                    "name": [
                        {"service": method.service, "method": method.name} for method in METHODS if method.idempotent
                    ],
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.1s",
                        "maxBackoff": "2s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ]
        }
    )


def channel_options(extra: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Options of every channel; `extra` comes last and wins."""
    options: dict[str, Any] = {
        "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
        "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
        # A stream that waits for a slot is silent; balancers drop what is silent. Pings only while calls run.
        "grpc.keepalive_time_ms": 20_000,
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 0,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.enable_retries": 1,
        "grpc.service_config": service_config(),
        "grpc.primary_user_agent": "palimpsest-python",
    }
    options.update(extra)
    return list(options.items())


def callables(channel: Any) -> dict[str, Any]:
    """What to call on `channel`, a `grpc.Channel` or a `grpc.aio.Channel`, for each method's path."""
    return {
        method.path: getattr(channel, method.kind())(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        for method in METHODS
    }
