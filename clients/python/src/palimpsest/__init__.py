"""Client for Palimpsest, the inference server for fast-weight language models.

    import palimpsest

    with palimpsest.Client("localhost:50051") as client:
        for chunk in client.generate("Once upon a time", max_tokens=50):
            print(chunk.text, end="", flush=True)

`Client` blocks, `AsyncClient` is for asyncio; they have the same methods. What the server reports is in `types`, what
can go wrong in `errors`; all of it can be had from here.
"""

from importlib.metadata import version as _version

from palimpsest._retry import RetryPolicy
from palimpsest._trace import trace_context
from palimpsest.aio import AsyncClient, AsyncGeneration, AsyncSession
from palimpsest.client import Client, Generation, Session
from palimpsest.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PalimpsestError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from palimpsest.types import (
    Chunk,
    FinishReason,
    GeneratedToken,
    GenerateOptions,
    GenerateResult,
    Health,
    Model,
    ModelCondition,
    ScoredToken,
    ScoreOptions,
    ScoreResult,
    SessionCondition,
    SessionInfo,
    Snapshot,
    TokenLogprob,
    Tokens,
    Usage,
)

__version__ = _version("palimpsest")

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncGeneration",
    "AsyncSession",
    "Cancelled",
    "Chunk",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "FinishReason",
    "GenerateOptions",
    "GenerateResult",
    "GeneratedToken",
    "Generation",
    "Health",
    "Internal",
    "InvalidArgument",
    "Model",
    "ModelCondition",
    "NotFound",
    "OutOfRange",
    "PalimpsestError",
    "PermissionDenied",
    "ResourceExhausted",
    "RetryPolicy",
    "ScoreOptions",
    "ScoreResult",
    "ScoredToken",
    "Session",
    "SessionCondition",
    "SessionInfo",
    "Snapshot",
    "TokenLogprob",
    "Tokens",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "trace_context",
]
