"""Just enough of HTTP/2 to break its customs: frames written by hand over one socket, which nothing reads unless asked.

No library would send what the campaigns send. Headers are literals without indexing and without Huffman coding, so what
goes out is what was written; of what comes back, only frame headers and a few numbers are understood.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
INITIAL_WINDOW_SIZE = 4
DEFAULT_WINDOW = 65535
MAX_FRAME = 16384

Header = tuple[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _string(text: bytes) -> bytes:
    """HPACK's string: a length with a prefix of seven bits, and the bytes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, length = len(text) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 | 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + text


def header_block(headers: Iterable[Header]) -> bytes:
    """Headers in HPACK's simplest form: literals that enter no table."""
    return b"".join(b"\x00" + _string(name.encode()) + _string(value.encode()) for name, value in headers)


def grpc_headers(path: str, authority: str, extra: Iterable[Header] = ()) -> list[Header]:
    """The headers of a gRPC call."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *extra,
    ]


def grpc_message(payload: bytes) -> bytes:
    """A gRPC message that is not compressed."""
    return struct.pack(">BI", 0, len(payload)) + payload


class Connection:
    """A connection whose owner decides what is sent and whether anything is read.

    `window` is the INITIAL_WINDOW_SIZE told to the peer: with 0, it may send headers and nothing else.
    """

    def __init__(
        self, address: tuple[str, int], *, window: int | None = None, timeout: float = 10.0, source: str = "127.0.0.1"
    ) -> None:
        self.authority = f"{address[0]}:{address[1]}"
        self.socket = socket.create_connection(address, timeout, (source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._next_stream = 1
        self._unread = b""
        self._send_window = DEFAULT_WINDOW  # of the connection
        self._stream_windows: dict[int, int] = {}
        self._peer_initial_window = DEFAULT_WINDOW
        self.closed_streams: set[int] = set()
        settings = b"" if window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, *, abruptly: bool = False) -> None:
        """Closes; abruptly: with a TCP reset."""
        if abruptly:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it; OSError when the peer has closed, or takes nothing for the timeout."""
        self.socket.sendall(data)

    def open_stream(self, path: str, extra: Iterable[Header] = (), *, end: bool = False) -> int:
        """Begins a call; returns its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        block = header_block(grpc_headers(path, self.authority, extra))
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block))
        return stream

    def call(self, path: str, message: bytes, extra: Iterable[Header] = (), *, end: bool = True) -> int:
        """Begins a call and sends one message, within the peer's windows; reads no more than it must for that."""
        stream = self.open_stream(path, extra)
        self.send_data(stream, grpc_message(message), end=end)
        return stream

    def send_data(self, stream: int, data: bytes, *, end: bool, timeout: float = 5.0) -> None:
        """Sends as the windows allow. TimeoutError if they stay shut; the stream may have been closed meanwhile."""
        give_up = time.monotonic() + timeout
        self._stream_windows.setdefault(stream, self._peer_initial_window)
        rest = memoryview(data)
        while len(rest) > 0 and stream not in self.closed_streams:
            room = min(len(rest), MAX_FRAME, self._send_window, self._stream_windows[stream])
            if room <= 0:
                if time.monotonic() > give_up:
                    raise TimeoutError("the peer opens no window")
                self.read_some(0.2)
                continue
            last = end and room == len(rest)
            self.send(frame(DATA, END_STREAM if last else 0, stream, bytes(rest[:room])))
            self._send_window -= room
            self._stream_windows[stream] -= room
            rest = rest[room:]

    def read_some(self, timeout: float) -> list[tuple[int, int, int, bytes]]:
        """Reads what there is within the time and heeds it; the frames, as (kind, flags, stream, payload)."""
        ready, _, _ = select.select([self.socket], [], [], timeout)
        if not ready:
            return []
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the peer has closed")
        self._unread += data
        frames = list(self._take_frames())
        for kind, flags, stream, payload in frames:
            self._heed(kind, flags, stream, payload)
        return frames

    def _take_frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._unread) >= 9:
            length = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._unread[3:9])
            payload, self._unread = self._unread[9 : 9 + length], self._unread[9 + length :]
            yield kind, flags, stream & 0x7FFFFFFF, payload

    def _heed(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload) - 5, 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == INITIAL_WINDOW_SIZE:
                    for known in self._stream_windows:
                        self._stream_windows[known] += value - self._peer_initial_window
                    self._peer_initial_window = value
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._send_window += more
            elif stream in self._stream_windows:
                self._stream_windows[stream] += more
        elif kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.closed_streams.add(stream)

    def is_open(self) -> bool:
        """Whether the peer has not closed yet; heeds what has come."""
        try:
            while self.read_some(0):
                pass
        except OSError:
            return False
        return True
