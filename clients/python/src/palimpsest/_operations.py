"""What each call asks and how its answer is read: one definition, which both clients run.

An operation takes what the user gives and makes a `Call` (or a `Listing`, for pages). `Client` and `AsyncClient` take
their methods' arguments and documentation from here.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from palimpsest import _wire, types
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import model_pb2 as model_service
from palimpsest.v1 import session_pb2 as session_service
from palimpsest.v1 import snapshot_pb2 as snapshot_service

if TYPE_CHECKING:
    from typing_extensions import Unpack

Result = TypeVar("Result")
Item = TypeVar("Item")

Resource = str | types.Named
"""A resource, or its name, or its id."""

SnapshotBytes = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""The bytes of a snapshot, or the path of a file that holds them, or a file open for reading."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One call, not yet made."""

    method: _wire.Method[Any]
    request: Message | Sequence[Message]
    """A sequence if the method streams its request."""
    read: Callable[[Any], Result]
    """Makes the result of the response."""
    session: str = ""
    """The session that it is about: balancers route by it."""
    timeout: types.Seconds | None = None

    def metadata(self) -> list[tuple[str, str]]:
        return [("x-goog-request-params", f"session={quote(self.session, safe='/')}")] if self.session else []

    def timeout_seconds(self, default: float | None) -> float | None:
        return default if self.timeout is None else seconds(self.timeout)


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """A list in pages, not yet asked for."""

    method: _wire.Method[Any]
    request: Any
    read: Callable[[Any], Sequence[Item]]
    timeout: types.Seconds | None = None

    def page(self, token: str) -> Call[tuple[Sequence[Item], str]]:
        """The call for the page at `token`; its result is the page and the next page's token."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.page_token = token
        return Call(self.method, request, lambda page: (self.read(page), page.next_page_token), timeout=self.timeout)


def seconds(span: types.Seconds) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


# --- generation and scoring


def generate(
    prompt: types.Prompt | None = None,
    *,
    session: Resource | None = None,
    state: bytes | None = None,
    model: Resource = "",
    **options: Unpack[types.GenerateOptions],
) -> Call[types.Chunk]:
    """Appends a prompt to a context and gives what the model says next, as it comes.

    The prompt is text or token ids; None goes on from where the context stands. The context is a `session`, which keeps
    the prompt and the reply; or a `state` that an earlier reply or a download gave; or nothing. `model` may be empty
    when there is a session, or when the server has one model only. `options` are those of `GenerateOptions`.

        for chunk in client.generate("Once upon a time", max_tokens=50):  # AsyncClient: async for
            print(chunk.text, end="", flush=True)

    This does not wait for the server: errors come from the iterator. Closing it stops the model at once; a session then
    stands at the last token sampled. A call that needs the session stops a reply of it that its caller was reading and
    has left. Raises `InvalidArgument`, `NotFound` (model or session), `FailedPrecondition` (a quarantined session, or
    nothing to go on from), `Aborted` (another call holds the session), `ResourceExhausted` (the queue is full, or the
    prompt is too long), `DataLoss` (a damaged state), `Unavailable` (the server is draining), `DeadlineExceeded`.
    """
    _check_options("generate", options, types.GenerateOptions)
    stop = options.get("stop", ())
    request = generation.GenerateRequest(
        model=_name("models", model),
        logprobs=options.get("logprobs", False),
        top_logprobs=options.get("top_logprobs", 0),
        return_state=options.get("return_state", False),
        return_state_digest=options.get("return_state_digest", False),
        call_id=options.get("call_id", ""),
        sampling=generation.SamplingParams(
            logit_bias=options.get("logit_bias"),
            repetition_penalty=options.get("repetition_penalty"),
            presence_penalty=options.get("presence_penalty"),
            frequency_penalty=options.get("frequency_penalty"),
            temperature=options.get("temperature"),
            top_k=options.get("top_k"),
            top_p=options.get("top_p"),
            min_p=options.get("min_p"),
            seed=options.get("seed"),
        ),
        stop=generation.StopCriteria(
            max_tokens=options.get("max_tokens"),
            strings=[stop] if isinstance(stop, str) else stop,
            token_ids=options.get("stop_token_ids"),
            ignore_end_of_text=options.get("ignore_end_of_text", False),
        ),
    )
    _set_context(request, session, state)
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt is not None:
        request.tokens.ids.extend(prompt)
        request.tokens.SetInParent()
    return Call(_wire.GENERATE, request, chunk, request.session, options.get("timeout"))


def generate_text(
    prompt: types.Prompt | None = None,
    *,
    session: Resource | None = None,
    state: bytes | None = None,
    model: Resource = "",
    **options: Unpack[types.GenerateOptions],
) -> Call[types.Chunk]:
    """Generates to the end and gives the whole text. Arguments and errors are those of `generate`."""
    return generate(prompt, session=session, state=state, model=model, **options)


def score(
    text: types.Prompt,
    *,
    session: Resource | None = None,
    state: bytes | None = None,
    model: Resource = "",
    **options: Unpack[types.ScoreOptions],
) -> Call[types.ScoreResult]:
    """Gives the log-probability of a text, or of token ids, after a context.

    The context is a `session`, which keeps the text; or a `state`; or nothing. Scoring a long text in pieces through
    one session gives the probabilities of the whole. `options` are those of `ScoreOptions`.

        result = client.score("Once upon a time")
        bits_per_byte = -result.total_logprob / math.log(2) / result.scored_bytes

    With `score_last` the tokens before are context only, which costs less than scoring them.
    """
    _check_options("score", options, types.ScoreOptions)
    request = generation.ScoreRequest(
        model=_name("models", model),
        return_tokens=options.get("return_tokens", False),
        top_logprobs=options.get("top_logprobs", 0),
        return_state=options.get("return_state", False),
        return_state_digest=options.get("return_state_digest", False),
        call_id=options.get("call_id", ""),
        score_last=options.get("score_last"),
    )
    _set_context(request, session, state)
    if isinstance(text, str):
        request.text = text
    else:
        request.tokens.ids.extend(text)
        request.tokens.SetInParent()
    return Call(_wire.SCORE, request, _score_result, request.session, options.get("timeout"))


def tokenize(
    text: str, *, continues: bool = False, model: Resource = "", timeout: types.Seconds | None = None
) -> Call[types.Tokens]:
    """Turns text into the model's token ids. No beginning-of-text token is added.

    Say `continues` if the text goes on from one before: a SentencePiece model then puts no space in front of it.
    """
    return Call(
        _wire.TOKENIZE,
        generation.TokenizeRequest(model=_name("models", model), text=text, continues=continues),
        lambda response: types.Tokens(tuple(response.ids), tuple(response.tokens), response.unknown_tokens),
        timeout=timeout,
    )


def detokenize(ids: Sequence[int], *, model: Resource = "", timeout: types.Seconds | None = None) -> Call[str]:
    """Turns token ids into text. Bytes that are not valid UTF-8 become U+FFFD."""
    return Call(
        _wire.DETOKENIZE,
        generation.DetokenizeRequest(model=_name("models", model), ids=ids),
        lambda response: str(response.text),
        timeout=timeout,
    )


# --- sessions


def create_session(
    session_id: str = "",
    *,
    source: Resource | None = None,
    model: Resource = "",
    ttl: types.Seconds | None = None,
    timeout: types.Seconds | None = None,
) -> Call[types.SessionInfo]:
    """Creates a session: empty, or as a copy of `source`, a session or a snapshot.

    `session_id` is 1 to 63 characters of a-z, 0-9 and "-", starting with a letter; the server makes one if it is empty.
    `source` is a session or snapshot object, or a full name such as "snapshots/evening". `model` may be empty when
    there is a source, or when the server has one model only. `ttl` is the time to live from the last use; None takes
    the server's default, 0 is for ever.

        with client.create_session() as session:  # deleted at the end
            session.generate_text("Once upon a time")

    Raises `AlreadyExists`, `NotFound` (model or source), `Aborted` (a call holds the source) and `ResourceExhausted`.
    """
    request = session_service.CreateSessionRequest(session_id=session_id, request_id=str(uuid.uuid4()))
    request.session.model = _name("models", model)
    _set_duration(request.session, ttl)
    if source is not None:
        name = source if isinstance(source, str) else source.name
        if name.startswith("sessions/"):
            request.source_session = name
        elif name.startswith("snapshots/"):
            request.source_snapshot = name
        else:
            raise ValueError(f'source is "{name}"; give a name that begins with "sessions/" or "snapshots/"')
    return Call(_wire.CREATE_SESSION, request, _session_info, request.source_session, timeout)


def get_session(session: Resource, *, timeout: types.Seconds | None = None) -> Call[types.SessionInfo]:
    """Reads a session. Raises `NotFound` if it was never created, is deleted or has expired."""
    name = _name("sessions", session)
    return Call(_wire.GET_SESSION, session_service.GetSessionRequest(name=name), _session_info, name, timeout)


def list_sessions(
    *, page_size: int = 0, owner: str = "", timeout: types.Seconds | None = None
) -> Listing[types.SessionInfo]:
    """Iterates over all sessions by name, asking for pages as it goes. `page_size` 0 takes the server's default.

    `owner` "-" gives those of all owners. Raises `PermissionDenied` for that unless the caller is an admin.
    """
    return Listing(
        _wire.LIST_SESSIONS,
        session_service.ListSessionsRequest(page_size=page_size, owner=owner),
        lambda page: [_session_info(session) for session in page.sessions],
        timeout,
    )


def update_session(
    session: Resource, *, ttl: types.Seconds, etag: str = "", timeout: types.Seconds | None = None
) -> Call[types.SessionInfo]:
    """Changes how long a session lives from its last use; 0 is for ever.

    Raises `NotFound`, and `Aborted` if `etag` is given and stale.
    """
    name = _name("sessions", session)
    request = session_service.UpdateSessionRequest()
    request.session.name = name
    request.session.etag = etag
    _set_duration(request.session, ttl)
    request.update_mask.paths.append("ttl")
    return Call(_wire.UPDATE_SESSION, request, _session_info, name, timeout)


def fork_session(
    session: Resource,
    count: int = 0,
    *,
    session_ids: Sequence[str] = (),
    ttl: types.Seconds | None = None,
    timeout: types.Seconds | None = None,
) -> Call[list[types.SessionInfo]]:
    """Makes copies of a session, all or none: `count` of them, or one for each of `session_ids`, or one.

    A copy goes on from where the session stands, independent of it, and costs one state whatever the length of what was
    read. Copies live as long as their parent unless `ttl` says otherwise.
    """
    name = _name("sessions", session)
    request = session_service.ForkSessionRequest(
        name=name, count=count, session_ids=session_ids, request_id=str(uuid.uuid4())
    )
    _set_duration(request, ttl)
    return Call(
        _wire.FORK_SESSION,
        request,
        lambda response: [_session_info(child) for child in response.sessions],
        name,
        timeout,
    )


def interrupt_session(session: Resource, *, timeout: types.Seconds | None = None) -> Call[types.SessionInfo]:
    """Ends the call that holds a session, if there is one, as if its caller had cancelled it.

    It is for a reply that nobody reads any more, and that cannot be closed where it was begun. Whoever still reads it
    gets `Cancelled`. The session is free then, at the last token sampled. Raises `NotFound`, and `Aborted` if the call
    has not ended yet.
    """
    name = _name("sessions", session)
    request = session_service.InterruptSessionRequest(name=name)
    return Call(_wire.INTERRUPT_SESSION, request, _session_info, name, timeout)


def delete_session(
    session: Resource, *, etag: str = "", force: bool = False, timeout: types.Seconds | None = None
) -> Call[None]:
    """Deletes a session. With `force` also one that a call holds, which ends as by `interrupt_session`.

    Raises `NotFound`, and `Aborted` if a call holds it without `force`, or if `etag` is given and stale.
    """
    name = _name("sessions", session)
    request = session_service.DeleteSessionRequest(name=name, etag=etag, force=force)
    return Call(_wire.DELETE_SESSION, request, _nothing, name, timeout)


# --- snapshots


def create_snapshot(
    session: Resource,
    snapshot_id: str = "",
    *,
    ttl: types.Seconds | None = None,
    timeout: types.Seconds | None = None,
) -> Call[types.Snapshot]:
    """Keeps the state of a session as it is now.

    `snapshot_id` is made as in `create_session`; `ttl` None or 0 is for ever. Raises `NotFound`, `Aborted` (a call
    holds the session), `FailedPrecondition` (it is quarantined), `AlreadyExists`, `ResourceExhausted`.
    """
    name = _name("sessions", session)
    request = snapshot_service.CreateSnapshotRequest(
        session=name, snapshot_id=snapshot_id, request_id=str(uuid.uuid4())
    )
    _set_duration(request.snapshot, ttl)
    return Call(_wire.CREATE_SNAPSHOT, request, _snapshot, name, timeout)


def get_snapshot(snapshot: Resource, *, timeout: types.Seconds | None = None) -> Call[types.Snapshot]:
    """Reads what a snapshot is, without its bytes."""
    request = snapshot_service.GetSnapshotRequest(name=_name("snapshots", snapshot))
    return Call(_wire.GET_SNAPSHOT, request, _snapshot, timeout=timeout)


def list_snapshots(
    *, page_size: int = 0, owner: str = "", timeout: types.Seconds | None = None
) -> Listing[types.Snapshot]:
    """Iterates over all snapshots by name, asking for pages as it goes. `page_size` 0 takes the server's default.

    `owner` "-" gives those of all owners. Raises `PermissionDenied` for that unless the caller is an admin.
    """
    return Listing(
        _wire.LIST_SNAPSHOTS,
        snapshot_service.ListSnapshotsRequest(page_size=page_size, owner=owner),
        lambda page: [_snapshot(snapshot) for snapshot in page.snapshots],
        timeout,
    )


def delete_snapshot(snapshot: Resource, *, timeout: types.Seconds | None = None) -> Call[None]:
    """Deletes a snapshot. Sessions made from it are not affected."""
    request = snapshot_service.DeleteSnapshotRequest(name=_name("snapshots", snapshot))
    return Call(_wire.DELETE_SNAPSHOT, request, _nothing, timeout=timeout)


def download_snapshot(snapshot: Resource, *, timeout: types.Seconds | None = None) -> Call[bytes]:
    """Gives the bytes of a snapshot: keep them, or upload them to another server with the same model."""
    request = snapshot_service.DownloadSnapshotRequest(name=_name("snapshots", snapshot))
    return Call(_wire.DOWNLOAD_SNAPSHOT, request, lambda response: bytes(response.data), timeout=timeout)


def upload_snapshot(
    data: SnapshotBytes,
    snapshot_id: str = "",
    *,
    model: Resource = "",
    ttl: types.Seconds | None = None,
    timeout: types.Seconds | None = None,
) -> Call[types.Snapshot]:
    """Gives a snapshot's bytes to the server: `data` holds them, or is a path, or a file open for reading.

    Raises `InvalidArgument` (not a snapshot), `DataLoss` (damaged), `FailedPrecondition` (of another model).
    """
    first = snapshot_service.UploadSnapshotRequest(snapshot_id=snapshot_id, model=_name("models", model))
    _set_duration(first.snapshot, ttl)
    return Call(_wire.UPLOAD_SNAPSHOT, [first, *_pieces(_read(data))], _snapshot, timeout=timeout)


# --- models and health


def list_models(*, timeout: types.Seconds | None = None) -> Call[list[types.Model]]:
    """Lists the models by name."""
    return Call(
        _wire.LIST_MODELS,
        model_service.ListModelsRequest(),
        lambda response: [_model(model) for model in response.models],
        timeout=timeout,
    )


def get_model(model: Resource, *, timeout: types.Seconds | None = None) -> Call[types.Model]:
    """Reads what a model is."""
    return Call(_wire.GET_MODEL, model_service.GetModelRequest(name=_name("models", model)), _model, timeout=timeout)


def load_model(model_id: str, path: str, *, timeout: types.Seconds | None = None) -> Call[types.Model]:
    """Loads the checkpoint at `path`, below the server's --model_root, and returns once it is ready.

    Raises `PermissionDenied`, `AlreadyExists`, `InvalidArgument` (its configuration), `DataLoss` (its weights).
    """
    request = model_service.LoadModelRequest(model_id=model_id, path=path)
    return Call(_wire.LOAD_MODEL, request, _model, timeout=timeout)


def unload_model(model: Resource, *, timeout: types.Seconds | None = None) -> Call[None]:
    """Unloads a model once the calls that use it have ended. Its sessions and snapshots are deleted."""
    request = model_service.UnloadModelRequest(name=_name("models", model))
    return Call(_wire.UNLOAD_MODEL, request, _nothing, timeout=timeout)


def health(service: str = "", *, timeout: types.Seconds | None = None) -> Call[types.Health]:
    """Asks the standard health service: of the whole server, or of one service such as
    "palimpsest.v1.GenerationService". Raises `NotFound` for a service that the server does not have."""
    request: Any = _wire.HealthCheckRequest()
    request.service = service
    order = (types.Health.UNKNOWN, types.Health.SERVING, types.Health.NOT_SERVING, types.Health.SERVICE_UNKNOWN)
    return Call(
        _wire.HEALTH_CHECK,
        request,
        lambda response: order[response.status] if response.status in range(len(order)) else types.Health.UNKNOWN,
        timeout=timeout,
    )


# --- from what the user gives


def _name(collection: str, resource: Resource) -> str:
    """The full name. An id gets its collection before it; an empty one stays empty."""
    name = resource if isinstance(resource, str) else resource.name
    return f"{collection}/{name}" if name and "/" not in name else name


def _set_context(request: Any, session: Resource | None, state: bytes | None) -> None:
    if session is not None and state is not None:
        raise ValueError("give a session or a state, not both")
    if session is not None:
        request.session = _name("sessions", session)
    if state is not None:
        request.state = bytes(state)


def _set_duration(message: Any, ttl: types.Seconds | None) -> None:
    if ttl is not None:
        nanos = round(seconds(ttl) * 1e9)
        whole = int(math.copysign(abs(nanos) // 10**9, nanos))
        message.ttl.CopyFrom(Duration(seconds=whole, nanos=nanos - whole * 10**9))


def _check_options(function: str, options: Mapping[str, object], known: type) -> None:
    for option in options:
        if option not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {option!r}")


def _read(data: SnapshotBytes) -> memoryview:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return memoryview(data).cast("B")
    if isinstance(data, (str, os.PathLike)):
        with open(data, "rb") as file:
            return memoryview(file.read())
    return memoryview(data.read())


def _pieces(data: memoryview) -> Iterator[snapshot_service.UploadSnapshotRequest]:
    for begin in range(0, len(data), _wire.PIECE_BYTES):
        yield snapshot_service.UploadSnapshotRequest(data=bytes(data[begin : begin + _wire.PIECE_BYTES]))


# --- from what the server gives


def _nothing(_response: Message) -> None:
    return None


def _time(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=timezone.utc)


def _enum(kind: type[Item], prefix: str, descriptor: Any, value: int) -> Item:
    """The member of `kind` that the proto's enum value stands for; UNSPECIFIED for a value newer than this client."""
    known = descriptor.values_by_number.get(value)
    name = known.name.removeprefix(prefix) if known is not None else "UNSPECIFIED"
    return getattr(kind, name, None) or kind["UNSPECIFIED"]  # type: ignore[index,no-any-return]


def _top(alternatives: Sequence[generation.TokenLogprob]) -> tuple[types.TokenLogprob, ...]:
    return tuple(types.TokenLogprob(top.id, top.token, top.logprob) for top in alternatives)


def _optional_logprob(token: generation.GeneratedToken | generation.ScoredToken) -> float | None:
    return token.logprob if token.HasField("logprob") else None


def _usage(usage: generation.Usage) -> types.Usage:
    return types.Usage(
        usage.prompt_tokens,
        usage.generated_tokens,
        usage.cached_tokens,
        usage.queue_seconds,
        usage.time_to_first_token_seconds,
        usage.total_seconds,
    )


def chunk(response: generation.GenerateResponse) -> types.Chunk:
    tokens = tuple(
        types.GeneratedToken(token.id, _optional_logprob(token), _top(token.top)) for token in response.tokens
    )
    return types.Chunk(response.text, tokens, response.position)


def generate_result(
    text: str, tokens: Sequence[types.GeneratedToken], position: int, finish: generation.GenerateFinish
) -> types.GenerateResult:
    return types.GenerateResult(
        text=text,
        tokens=tuple(tokens),
        position=position,
        finish_reason=_enum(types.FinishReason, "FINISH_REASON_", generation.FinishReason.DESCRIPTOR, finish.reason),
        stop_string=finish.stop_string,
        usage=_usage(finish.usage),
        seed=finish.seed,
        state=finish.state or None,
        state_digest=finish.state_digest or None,
    )


def _score_result(response: generation.ScoreResponse) -> types.ScoreResult:
    return types.ScoreResult(
        total_logprob=response.total_logprob,
        scored_tokens=response.scored_tokens,
        scored_bytes=response.scored_bytes,
        scored_characters=response.scored_characters,
        unknown_tokens=response.unknown_tokens,
        tokens=tuple(
            types.ScoredToken(token.id, token.token, _optional_logprob(token), _top(token.top))
            for token in response.tokens
        ),
        position=response.position,
        usage=_usage(response.usage),
        state=response.state or None,
        state_digest=response.state_digest or None,
    )


def _session_info(session: session_service.Session) -> types.SessionInfo:
    return types.SessionInfo(
        name=session.name,
        model=session.model,
        condition=_enum(
            types.SessionCondition, "CONDITION_", session_service.Session.Condition.DESCRIPTOR, session.condition
        ),
        position=session.position,
        state_bytes=session.state_bytes,
        create_time=_time(session.create_time),
        update_time=_time(session.update_time),
        expire_time=_time(session.expire_time) if session.HasField("expire_time") else None,
        ttl=session.ttl.seconds + session.ttl.nanos * 1e-9,
        etag=session.etag,
        owner=session.owner,
    )


def _snapshot(snapshot: snapshot_service.Snapshot) -> types.Snapshot:
    return types.Snapshot(
        name=snapshot.name,
        model=snapshot.model,
        position=snapshot.position,
        size_bytes=snapshot.size_bytes,
        state_digest=snapshot.state_digest,
        create_time=_time(snapshot.create_time),
        expire_time=_time(snapshot.expire_time) if snapshot.HasField("expire_time") else None,
        owner=snapshot.owner,
    )


def _model(model: model_service.Model) -> types.Model:
    return types.Model(
        name=model.name,
        condition=_enum(types.ModelCondition, "CONDITION_", model_service.Model.Condition.DESCRIPTOR, model.condition),
        architecture=model.architecture,
        parameter_count=model.parameter_count,
        weight_dtype=model.weight_dtype,
        weight_bytes=model.weight_bytes,
        vocabulary_size=model.vocabulary_size,
        state_bytes=model.state_bytes,
        max_context_tokens=model.max_context_tokens,
        slots=model.slots,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        backend=model.backend,
        version=model.version,
    )
