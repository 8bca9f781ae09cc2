"""What can go wrong: one exception class for each canonical code, all of them `PalimpsestError`.

try:
    client.generate_text("Once", temperature=-1)
except palimpsest.InvalidArgument as error:
    print(error.field_violations[0].field)  # "sampling.temperature"
except palimpsest.ResourceExhausted as error:
    if error.retry_delay is None:
        raise  # this request will never fit
    time.sleep(error.retry_delay)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that the server did not accept."""

    field: str
    """Path of the field in the request, for example "sampling.top_p"."""
    description: str
    """What is wrong with it, and the cure."""


class PalimpsestError(Exception):
    """A call failed. The subclasses name the code."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    """The canonical code."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        domain: str = "",
        metadata: dict[str, str] | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_delay: float | None = None,
        call_id: str = "",
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.message = message
        """The server's words."""
        self.reason = reason
        """The server's name of the cause, from google.rpc.ErrorInfo; stable, in UPPER_SNAKE_CASE. Empty: unknown."""
        self.domain = domain
        """Who gave the reason: "palimpsest.dev", or empty where the error comes from the connection."""
        self.metadata = metadata or {}
        """More on the reason, from google.rpc.ErrorInfo."""
        self.field_violations = field_violations
        """The fields that were not accepted, from google.rpc.BadRequest."""
        self.retry_delay = retry_delay
        """Seconds to wait before trying again, from google.rpc.RetryInfo. None: the server did not ask for a retry. The
        client has already tried again within its `RetryPolicy`."""
        self.call_id = call_id
        """The id in the server's log, where it is known."""

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    def add_cure(self, cure: str) -> None:
        """Adds a line to the message."""
        self.message = f"{self.message}\n  {cure}"
        self.args = (self.message,)


class Cancelled(PalimpsestError):
    """The call was cancelled. A session stands at the last token sampled."""

    code = grpc.StatusCode.CANCELLED


class InvalidArgument(PalimpsestError):
    """A field of the request is out of range: `field_violations` says which and why."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceeded(PalimpsestError):
    """The timeout passed. A session stands at the last token sampled."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFound(PalimpsestError):
    """No such model, session or snapshot; or it has expired."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(PalimpsestError):
    """The id is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(PalimpsestError):
    """The server does not allow this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(PalimpsestError):
    """The queue or a limit is full, and still was after the client's retries. `retry_delay` is None if the request
    itself is too large, so that no retry can help."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(PalimpsestError):
    """The session is quarantined, the snapshot is of another model, or there is nothing to continue from."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(PalimpsestError):
    """Another call holds the session, and still did after the client's retries; or the etag is stale: read again."""

    code = grpc.StatusCode.ABORTED


class OutOfRange(PalimpsestError):
    """Past the end of what can be had."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Unimplemented(PalimpsestError):
    """The server does not know this call: it is older than the client, or another service."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(PalimpsestError):
    """A fault of the server, or of the connection."""

    code = grpc.StatusCode.INTERNAL


class Unavailable(PalimpsestError):
    """The server cannot be reached, or it is draining: retry, best on another replica."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLoss(PalimpsestError):
    """A snapshot or a state is truncated or damaged."""

    code = grpc.StatusCode.DATA_LOSS


class Unauthenticated(PalimpsestError):
    """The server wants a token, or does not accept the one that was sent."""

    code = grpc.StatusCode.UNAUTHENTICATED


_CLASS_OF_CODE: dict[grpc.StatusCode, type[PalimpsestError]] = {
    error_class.code: error_class for error_class in PalimpsestError.__subclasses__()
}

_Metadata = Iterable[tuple[str, str | bytes]] | None


def find_metadata(metadata: _Metadata, key: str) -> str | bytes | None:
    """The value of `key`, or None."""
    for name, value in metadata or ():
        if name == key:
            return value
    return None


def from_rpc_error(error: Any, initial_metadata: _Metadata = None) -> PalimpsestError:
    """The exception for a failed call: a `grpc.RpcError` that is also a `grpc.Call`, or a `grpc.aio.AioRpcError`."""
    code: grpc.StatusCode = error.code() or grpc.StatusCode.UNKNOWN
    call_id = find_metadata(initial_metadata, "x-call-id")
    details = _parse_details(find_metadata(error.trailing_metadata(), "grpc-status-details-bin"))
    return _CLASS_OF_CODE.get(code, PalimpsestError)(
        error.details() or code.name,
        code=code,
        call_id=call_id if isinstance(call_id, str) else "",
        **details,
    )


def _parse_details(serialized: str | bytes | None) -> dict[str, Any]:
    """Constructor arguments from a serialised google.rpc.Status. Unknown or damaged details are left out: the code and
    the message still stand, and a broken proxy must not hide them."""
    found: dict[str, Any] = {}
    if not isinstance(serialized, bytes):
        return found
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(serialized).details:
            if detail.Unpack(info):
                found.update(reason=info.reason, domain=info.domain, metadata=dict(info.metadata))
            elif detail.Unpack(request):
                found["field_violations"] = tuple(
                    FieldViolation(violation.field, violation.description) for violation in request.field_violations
                )
            elif detail.Unpack(retry):
                found["retry_delay"] = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
    except DecodeError:
        pass
    return found
