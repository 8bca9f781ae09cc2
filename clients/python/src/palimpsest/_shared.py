"""What the sync and the async form of a generation, a session and a client share."""

from __future__ import annotations

import inspect
import os
import pathlib
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

from palimpsest import _operations, errors, types
from palimpsest.v1 import generation_pb2 as generation

P = ParamSpec("P")
Made = TypeVar("Made")
Owner = TypeVar("Owner")
Out = TypeVar("Out")


class Replies:
    """The replies of one client that may still hold their session: of each session the last. Thread-safe.

    An exception in the body of a loop leaves an iterator that has a name alive for as long as anybody keeps the frame
    or its traceback, and the call with it: in a notebook that may be for ever. So the next call on the session stops
    such a reply first, see `make_way`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Weak: a reply that nobody refers to any more must go, which cancels it.
        self._of_session: weakref.WeakValueDictionary[str, GenerationReader] = weakref.WeakValueDictionary()

    def add(self, reply: GenerationReader) -> None:
        """A call was made. Where one stands already it stays: only one of the two can have the session, see `holds`."""
        with self._lock:
            self._of_session.setdefault(reply.session, reply)

    def holds(self, reply: GenerationReader) -> None:
        """The server has begun to answer: this reply has the session."""
        with self._lock:
            self._of_session[reply.session] = reply

    def remove(self, reply: GenerationReader) -> None:
        with self._lock:
            if self._of_session.get(reply.session) is reply:
                del self._of_session[reply.session]

    def make_way(self, call: _operations.Call[Any]) -> None:
        """Stops the reply that holds the session which `call` needs, if it is for the caller to stop."""
        if not call.session or not call.method.holds_session:
            return
        with self._lock:
            reply = self._of_session.get(call.session)
        if reply is not None and reply._is_left():
            reply._stop(call.method.name)
            self.remove(reply)


class GenerationReader:
    """Gathers the messages of a Generate call."""

    def __init__(self, session: str, replies: Replies) -> None:
        self.call_id = ""
        """The call's id in the server's log; known from the first chunk on."""
        self.session = session
        """`sessions/{session}`; empty: none."""
        self._replies = replies
        self._call: Any = None
        self._begun = False  # something has come
        self._closed = False
        self._stopped_by = ""  # the method of the call that this one made way for
        self._texts: list[str] = []
        self._tokens: list[types.GeneratedToken] = []
        self._position = 0
        self._finish: generation.GenerateFinish | None = None

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._texts)

    def _is_left(self) -> bool:
        """Whether nobody can be reading this while the caller does something else: its reader is the caller, or is no
        more."""
        raise NotImplementedError

    def _stop(self, method: str) -> None:
        self._stopped_by = method
        self._call.cancel()

    def _stopped(self) -> errors.PalimpsestError:
        return errors.Cancelled(f"this reply was stopped by {self._stopped_by} on {self.session}, from the same reader")

    def _take(self, response: generation.GenerateResponse) -> types.Chunk | None:
        """Keeps a message; gives the chunk to show, if it holds one."""
        if not self._begun:
            self._begun = True
            if self.session:
                self._replies.holds(self)
        chunk = _operations.chunk(response)
        self._texts.append(chunk.text)
        self._tokens.extend(chunk.tokens)
        self._position = max(self._position, chunk.position)
        if response.HasField("finish"):
            self._finish = response.finish
        return chunk if chunk.text or chunk.tokens else None

    def _take_metadata(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        found = errors.find_metadata(metadata, "x-call-id")
        self.call_id = found if isinstance(found, str) else ""

    def _check_ended(self) -> None:
        """Called when the stream has ended well: it must have told how."""
        if self._finish is None and not self._closed:
            raise errors.Internal("the stream ended without saying how the generation finished")

    def _result(self) -> types.GenerateResult:
        if self._finish is None:
            raise errors.Cancelled("the generation was closed before it finished")
        return _operations.generate_result(self.text, self._tokens, self._position, self._finish)


class DownloadReader:
    """Gathers the messages of a DownloadSnapshot call."""

    def __init__(self) -> None:
        self.snapshot_size: int | None = None
        self._pieces: list[bytes] = []

    @property
    def begun(self) -> bool:
        """Whether anything has come."""
        return bool(self._pieces)

    def take(self, response: Any) -> None:
        if response.HasField("snapshot"):
            self.snapshot_size = response.snapshot.size_bytes
        self._pieces.append(response.data)

    def data(self) -> bytes:
        data = b"".join(self._pieces)
        if self.snapshot_size is not None and self.snapshot_size != len(data):
            raise errors.DataLoss(f"the download has {len(data)} bytes; the snapshot has {self.snapshot_size}")
        return data


def write_whole_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` so that nobody ever sees a part of it there; through a symbolic link, where it leads to.
    What is no file, such as a pipe, is written to as it is."""
    target = pathlib.Path(path).resolve()
    if target.exists() and not target.is_file() and not target.is_dir():
        target.write_bytes(data)
        return
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def method(operation: Callable[P, Made], run: Callable[[Owner, Made], Out]) -> Callable[Concatenate[Owner, P], Out]:
    """A client's method that makes `operation` and runs it; it has the name, arguments and documentation of that."""

    def run_operation(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> Out:
        return run(self, operation(*args, **kwargs))

    run_operation.__name__ = operation.__name__
    run_operation.__qualname__ = operation.__name__
    run_operation.__doc__ = operation.__doc__
    signature = inspect.signature(operation)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    # What the operation returns is not what the method does.
    shown = signature.replace(
        parameters=[this, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    setattr(run_operation, "__signature__", shown)
    return run_operation
