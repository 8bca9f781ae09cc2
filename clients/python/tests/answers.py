"""Answers for the server that behaves as each test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import session_pb2


def abort_with(code: grpc.StatusCode, message: str, *details: Any) -> Callable[[Any, grpc.ServicerContext], Any]:
    """An answer that fails with google.rpc details."""

    def answer(_request: Any, context: grpc.ServicerContext) -> Any:
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, message)

    return answer


def retry_in(seconds: float) -> error_details_pb2.RetryInfo:
    """The detail of an error that asks the caller to come back."""
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=round(seconds * 1e9)))


def refuse_then(
    refusals: int,
    refusal: Callable[[Any, grpc.ServicerContext], Any],
    answer: Callable[[Any, grpc.ServicerContext], Any],
) -> Callable[[Any, grpc.ServicerContext], Any]:
    """An answer that comes after so many refusals."""
    left = [refusals]

    def refuse_or_answer(request: Any, context: grpc.ServicerContext) -> Any:
        left[0] -= 1
        return (refusal if left[0] >= 0 else answer)(request, context)

    return refuse_or_answer


def reply(*responses: generation.GenerateResponse) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(_request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.send_initial_metadata((("x-call-id", "r-17"),))
        yield from responses

    return answer


def piece(text: str, *ids: int, position: int = 0) -> generation.GenerateResponse:
    return generation.GenerateResponse(
        text=text, tokens=[generation.GeneratedToken(id=id_) for id_ in ids], position=position
    )


def finish(**fields: Any) -> generation.GenerateResponse:
    return generation.GenerateResponse(finish=generation.GenerateFinish(**fields))


def endless(stopped: threading.Event) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Sends a piece every 10 ms until the client goes away; then sets `stopped`."""

    def answer(_request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.add_callback(stopped.set)
        while context.is_active():
            yield piece("x", 1)
            time.sleep(0.01)

    return answer


def session_named(name: str, position: int = 0) -> session_pb2.Session:
    return session_pb2.Session(name=name, model="models/m", position=position, condition="CONDITION_IDLE", etag="e1")
