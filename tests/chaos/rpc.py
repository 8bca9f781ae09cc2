"""Calls to the server as the campaigns make them: raw bytes or messages, always with a deadline, never retried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import session_pb2 as session
from palimpsest.v1 import snapshot_pb2 as snapshot

GENERATE = "/palimpsest.v1.GenerationService/Generate"
SCORE = "/palimpsest.v1.GenerationService/Score"
TOKENIZE = "/palimpsest.v1.GenerationService/Tokenize"
CREATE_SESSION = "/palimpsest.v1.SessionService/CreateSession"
LIST_SESSIONS = "/palimpsest.v1.SessionService/ListSessions"
UPDATE_SESSION = "/palimpsest.v1.SessionService/UpdateSession"
FORK_SESSION = "/palimpsest.v1.SessionService/ForkSession"
DELETE_SESSION = "/palimpsest.v1.SessionService/DeleteSession"
CREATE_SNAPSHOT = "/palimpsest.v1.SnapshotService/CreateSnapshot"
DELETE_SNAPSHOT = "/palimpsest.v1.SnapshotService/DeleteSnapshot"
DOWNLOAD_SNAPSHOT = "/palimpsest.v1.SnapshotService/DownloadSnapshot"
UPLOAD_SNAPSHOT = "/palimpsest.v1.SnapshotService/UploadSnapshot"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"

SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
PIECE_BYTES = 1 << 20

Response = TypeVar("Response", bound=Message)
Metadata = Sequence[tuple[str, str]]


def generate_request(text: str, tokens: int, **fields: Any) -> generation.GenerateRequest:
    """A greedy Generate of so many tokens."""
    request = generation.GenerateRequest(text=text, **fields)
    request.sampling.temperature = 0
    request.stop.max_tokens = tokens
    request.stop.ignore_end_of_text = True
    return request


def carries_retry_info(error: grpc.RpcError) -> bool:
    """Whether the error says when to come again."""
    trailers: Any = error.trailing_metadata() or ()
    return b"google.rpc.RetryInfo" in dict(trailers).get("grpc-status-details-bin", b"")


@dataclass
class Reply:
    """What a Generate gave."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    digest: str = ""
    position: int = 0


class Caller:
    """A connection of its own to the server, by gRPC's library. Thread-safe."""

    def __init__(self, target: str, *, metadata: Metadata = (), credentials: grpc.ChannelCredentials | None = None):
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self.channel: Any = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._metadata = list(metadata)

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and what runs on it."""
        self.channel.close()

    def raw(self, path: str, request: bytes, timeout: float) -> bytes:
        """A unary call of bytes."""
        answer: bytes = self.channel.unary_unary(path)(request, timeout=timeout, metadata=self._metadata)
        return answer

    def unary(self, path: str, request: Message, response: type[Response], timeout: float = 20.0) -> Response:
        """A unary call of messages."""
        return response.FromString(self.raw(path, request.SerializeToString(), timeout))

    def stream(self, path: str, request: Message, timeout: float = 60.0) -> Any:
        """A call that streams its answers, of bytes: an iterator that can be cancelled."""
        return self.channel.unary_stream(path)(request.SerializeToString(), timeout=timeout, metadata=self._metadata)

    def upload(self, pieces: Iterable[bytes], timeout: float) -> Any:
        """UploadSnapshot of pieces of requests: a future of the answer's bytes."""
        return self.channel.stream_unary(UPLOAD_SNAPSHOT).future(iter(pieces), timeout=timeout, metadata=self._metadata)

    def is_serving(self, timeout: float = 10.0) -> bool:
        """Whether the health service says so."""
        try:
            return self.raw(HEALTH_CHECK, b"", timeout) == SERVING
        except grpc.RpcError:
            return False

    def generate(self, request: generation.GenerateRequest, timeout: float = 20.0) -> Reply:
        """The whole reply."""
        reply = Reply()
        for data in self.stream(GENERATE, request, timeout):
            message = generation.GenerateResponse.FromString(data)
            reply.text += message.text
            reply.ids += [token.id for token in message.tokens]
            reply.position = max(reply.position, message.position)
            if message.HasField("finish"):
                reply.digest = message.finish.state_digest
        return reply

    def create_session(self, **fields: Any) -> str:
        """A new session's name."""
        return self.unary(CREATE_SESSION, session.CreateSessionRequest(**fields), session.Session).name

    def fork(self, name: str, count: int = 1) -> list[str]:
        """The names of the copies."""
        request = session.ForkSessionRequest(name=name, count=count)
        return [child.name for child in self.unary(FORK_SESSION, request, session.ForkSessionResponse).sessions]

    def sessions(self, timeout: float = 20.0) -> list[str]:
        """The names of all sessions."""
        names, token = [], ""
        while True:
            request = session.ListSessionsRequest(page_size=1000, page_token=token)
            page = self.unary(LIST_SESSIONS, request, session.ListSessionsResponse, timeout)
            names += [found.name for found in page.sessions]
            token = page.next_page_token
            if not token:
                return names

    def delete_session(self, name: str) -> None:
        """Deletes a session."""
        self.unary(DELETE_SESSION, session.DeleteSessionRequest(name=name), Empty)

    def create_snapshot(self, name: str) -> str:
        """The name of a new snapshot of a session."""
        return self.unary(CREATE_SNAPSHOT, snapshot.CreateSnapshotRequest(session=name), snapshot.Snapshot).name

    def delete_snapshot(self, name: str) -> None:
        """Deletes a snapshot."""
        self.unary(DELETE_SNAPSHOT, snapshot.DeleteSnapshotRequest(name=name), Empty)

    def download(self, name: str, timeout: float = 20.0) -> bytes:
        """A snapshot's bytes."""
        request = snapshot.DownloadSnapshotRequest(name=name)
        pieces = self.stream(DOWNLOAD_SNAPSHOT, request, timeout)
        return b"".join(snapshot.DownloadSnapshotResponse.FromString(piece).data for piece in pieces)

    def upload_bytes(self, data: bytes, timeout: float = 20.0) -> str:
        """The name of a new snapshot with these bytes."""
        answer = self.upload(upload_pieces(data), timeout).result()
        return snapshot.Snapshot.FromString(answer).name


def upload_pieces(data: bytes) -> Iterator[bytes]:
    """The requests of an upload."""
    for at in range(0, len(data), PIECE_BYTES):
        yield snapshot.UploadSnapshotRequest(data=data[at : at + PIECE_BYTES]).SerializeToString()
