"""Attacks on memory and on what is given out in places: replies that nobody reads, messages that become large."""

from __future__ import annotations

import contextlib
import time

import grpc
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import session_pb2 as session
from palimpsest.v1 import snapshot_pb2 as snapshot

from . import rpc
from .arena import Arena
from .checks import PROMPT, describe
from .http2 import Connection
from .server import Limits, StartFailure

BOMB_SECONDS = 20.0


def never_reading_tokenize(arena: Arena) -> None:
    """The window is shut, so that every reply stays in the server."""
    request = generation.TokenizeRequest(text="the sea and " * (2_000_000 // 12)).SerializeToString()
    connection = arena.connect(window=0)
    with contextlib.suppress(OSError):
        for _ in range(55):
            connection.call(rpc.TOKENIZE, request)


def never_reading_list(arena: Arena) -> None:
    """A thousand sessions, listed two thousand times to nobody."""
    caller = arena.caller()
    parent = caller.create_session()  # without a state, so that what is measured is replies
    children = [parent, *caller.fork(parent, 900)]
    request = session.ListSessionsRequest(page_size=1000).SerializeToString()

    def ask(_: int) -> None:
        connection = arena.connect(window=0)
        for _ in range(100):
            connection.call(rpc.LIST_SESSIONS, request)
        for _ in range(10):
            connection.read_some(0.1)

    arena.crowd(20, ask)
    for child in children:
        with contextlib.suppress(grpc.RpcError):
            caller.delete_session(child)


def never_reading_generate(arena: Arena) -> None:
    """As many streams as there are slots, and as many again in the queue, none of which is read."""
    request = rpc.generate_request(PROMPT, 2000).SerializeToString()
    connections: list[Connection] = []
    for _ in range(2):
        with contextlib.suppress(OSError):
            connection = arena.connect(window=0)
            for _ in range(64):
                connection.call(rpc.GENERATE, request)
            connections.append(connection)
    time.sleep(1.0)
    for connection in connections:
        connection.is_open()


def _bomb(arena: Arena, path: str, message: bytes) -> None:
    """One message that is far larger once it is parsed; it must be refused, and soon."""
    with rpc.Caller(arena.target) as caller:
        begin = time.monotonic()
        try:
            if path == rpc.GENERATE:
                call = caller.channel.unary_stream(path)(message, timeout=BOMB_SECONDS)
                for _ in call:
                    pass
            else:
                caller.raw(path, message, BOMB_SECONDS)
            arena.require(False, "the bomb is accepted")
        except grpc.RpcError as error:
            expected = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
            arena.require(error.code() in expected, f"the bomb is answered with {describe(error)}")
            arena.require(bool(error.details()), "the refusal has no text")
        arena.numbers["bomb_seconds"] = round(time.monotonic() - begin, 3)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number % 128 | 128)
        number //= 128
    return bytes([*out, number])


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def bomb_mask(arena: Arena) -> None:
    """UpdateSession with a mask of 31 million empty paths."""
    named = session.UpdateSessionRequest(session=session.Session(name=arena.canary.session)).SerializeToString()
    _bomb(arena, rpc.UPDATE_SESSION, named + _field(2, b"\x0a\x00" * 31_000_000))


def bomb_fork(arena: Arena) -> None:
    """ForkSession with 30 million empty ids."""
    named = session.ForkSessionRequest(name=arena.canary.session).SerializeToString()
    _bomb(arena, rpc.FORK_SESSION, named + b"\x1a\x00" * 30_000_000)


def bomb_stop(arena: Arena) -> None:
    """Generate with 30 million empty stop strings."""
    request = rpc.generate_request(PROMPT, 1).SerializeToString()
    _bomb(arena, rpc.GENERATE, request + _field(8, b"") + _field(7, b"\x12\x00" * 30_000_000))


def bomb_unknown(arena: Arena) -> None:
    """ListSessions with 30 million unknown fields, which a parser would keep."""
    _bomb(arena, rpc.LIST_SESSIONS, b"\x7a\x00" * 30_000_000)


def idle_uploads(arena: Arena) -> None:
    """Uploads that send a first byte, or nothing, and then wait."""
    begin = snapshot.UploadSnapshotRequest(snapshot_id="idle", data=b"P").SerializeToString()
    connection = arena.connect()
    with contextlib.suppress(OSError):
        for index in range(80):
            if index % 2 == 0:
                connection.call(rpc.UPLOAD_SNAPSHOT, begin, end=False)
            else:
                connection.open_stream(rpc.UPLOAD_SNAPSHOT)
    time.sleep(0.5)


def parked_sessions(arena: Arena) -> None:
    """Sessions with a state, until they are refused: by a limit or for a lack of memory, and never by an end."""
    caller = arena.caller()
    made: list[str] = []
    refused = ""
    try:
        for _ in range(700):
            try:
                name = caller.create_session()
                made.append(name)
                caller.generate(rpc.generate_request("a", 1, session=name))
            except grpc.RpcError as error:
                refused = describe(error)
                arena.require(
                    error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, f"session {len(made)} ends in {refused}"
                )
                arena.require(rpc.carries_retry_info(error), "the refusal does not say when to come again")
                break
        arena.numbers["sessions"] = len(made)
        for name in made:
            caller.delete_session(name)
    except grpc.RpcError as error:
        arena.require(False, f"sessions cannot be deleted: {describe(error)}")


def start_without_memory(arena: Arena) -> None:
    """A start with too little memory ends with exit code 1 or 2 and a reason, or succeeds."""
    for mebibytes in (500, 600, 900):
        try:
            other = arena.start_another((), Limits(address_space=mebibytes << 20))
        except StartFailure as failure:
            arena.require(
                failure.code in (1, 2) and "palimpsest-server: " in failure.log,
                f"with {mebibytes} MiB the start ends with {failure.code}",
            )
        else:
            code = other.stop(30.0)
            arena.require(code == 0, f"with {mebibytes} MiB the server ends with {code}")
            other.kill()
