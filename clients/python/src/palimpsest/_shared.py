"""What the sync and the async form of a generation, a session and a client share."""

from __future__ import annotations

import inspect
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

from palimpsest import _operations, errors, types
from palimpsest.v1 import generation_pb2 as generation

P = ParamSpec("P")
Made = TypeVar("Made")
Owner = TypeVar("Owner")
Out = TypeVar("Out")

RELEASE_SECONDS = 5.0
"""How long the end of a session's block waits for a reply that was just cancelled to let the session go."""


class GenerationReader:
    """Gathers the messages of a Generate call."""

    def __init__(self) -> None:
        self.request_id = ""
        """The call's id in the server's log; known from the first chunk on."""
        self._closed = False
        self._texts: list[str] = []
        self._tokens: list[types.GeneratedToken] = []
        self._position = 0
        self._finish: generation.GenerateFinish | None = None

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._texts)

    def _take(self, response: generation.GenerateResponse) -> types.Chunk | None:
        """Keeps a message; gives the chunk to show, if it holds one."""
        chunk = _operations.chunk(response)
        self._texts.append(chunk.text)
        self._tokens.extend(chunk.tokens)
        self._position = max(self._position, chunk.position)
        if response.HasField("finish"):
            self._finish = response.finish
        return chunk if chunk.text or chunk.tokens else None

    def _take_metadata(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        found = errors.find_metadata(metadata, "x-request-id")
        self.request_id = found if isinstance(found, str) else ""

    def _check_ended(self) -> None:
        """Called when the stream has ended well: it must have told how."""
        if self._finish is None and not self._closed:
            raise errors.Internal("the stream ended before it told how the generation finished")

    def _result(self) -> types.GenerateResult:
        if self._finish is None:
            raise errors.Cancelled("the generation was closed before it finished")
        return _operations.generate_result(self.text, self._tokens, self._position, self._finish)


class DownloadReader:
    """Gathers the messages of a DownloadSnapshot call."""

    def __init__(self) -> None:
        self.snapshot_size: int | None = None
        self._pieces: list[bytes] = []

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
    """Writes `data` to `path` so that nobody ever sees a part of it there."""
    target = pathlib.Path(path)
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
