"""The client that blocks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message

from palimpsest import _operations, _shared, _trace, _wire, errors, types
from palimpsest._connection import Connection
from palimpsest._retry import DEFAULT_POLICY, Attempts, RetryPolicy
from palimpsest._shared import method

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

Result = TypeVar("Result")
Item = TypeVar("Item")


class Generation(_shared.GenerationReader):
    """A reply as it comes: an iterator of `Chunk`.

        with client.generate("Once upon a time") as generation:
            for chunk in generation:
                print(chunk.text, end="")
                if len(generation.text) > 1000:
                    break  # leaving the block stops the model
        generation.text  # what has come so far

    An exception inside `next`, KeyboardInterrupt too, stops the model, and so does dropping the iterator, as leaving a
    loop does whose iterator has no name. One that has a name and was left without a block goes on until the thread that
    was reading it makes another call that needs the session. Read by one thread; `close` may be called from any.
    """

    def __init__(self, client: Client, call: _operations.Call[types.Chunk]) -> None:
        super().__init__(call.session, client._replies)
        self._client = client
        self._what = call
        self._attempts = client._attempts(call)
        self._reader = threading.current_thread()
        self._closing = threading.Event()
        self._replies.make_way(call)
        self._call = client._start(call, self._attempts)
        if self.session:
            self._replies.add(self)

    def __iter__(self) -> Iterator[types.Chunk]:
        return self

    def __next__(self) -> types.Chunk:
        self._reader = threading.current_thread()
        try:
            return self._next()
        except BaseException:  # whatever it is, nobody reads on
            self._call.cancel()
            self._replies.remove(self)
            raise

    def _next(self) -> types.Chunk:
        while True:
            try:
                response = next(self._call)
            except StopIteration:
                self._check_ended()
                raise
            except grpc.RpcError as error:
                self._try_again(error)
                continue
            if not self.call_id:
                self._take_metadata(self._call.initial_metadata())
            chunk = self._take(response)
            if chunk is not None:
                return chunk

    def _try_again(self, error: grpc.RpcError) -> None:
        """Makes the call again, if it was refused for the moment; raises what the caller is to see otherwise."""
        if self._closed:
            raise StopIteration from None
        if self._stopped_by:
            raise self._stopped() from None
        self._client._wait_to_retry(self._attempts, error, self._begun, self._closing.wait)
        if not self._closed:
            self._call = self._client._start(self._what, self._attempts)
        if self._closed:  # by another thread, perhaps between the two lines above
            self._call.cancel()
            raise StopIteration from None

    def _is_left(self) -> bool:
        return self._reader is threading.current_thread() or not self._reader.is_alive()

    def result(self) -> types.GenerateResult:
        """Reads what is left and gives the whole. Raises `Cancelled` if it was closed before its end."""
        for _ in self:
            pass
        return self._result()

    def close(self) -> None:
        """Stops the model, if it has not ended. The iterator is then at its end."""
        self._closed = True
        self._closing.set()
        self._call.cancel()
        self._replies.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """A session on the server. As a context manager it deletes the session at the end of the block.

    with client.create_session() as session:
        session.generate_text("The cat sat on", max_tokens=20)
        left, right = session.fork(2)
    """

    def __init__(self, client: Client, info: types.SessionInfo) -> None:
        self._client = client
        self.info = info
        """The session as the server last reported it; `refresh` asks again."""

    @property
    def name(self) -> str:
        """`sessions/{session}`."""
        return self.info.name

    def refresh(self) -> types.SessionInfo:
        """Asks the server how the session is now."""
        self.info = self._client._run(_operations.get_session(self))
        return self.info

    def generate(self, prompt: types.Prompt | None = None, **options: Unpack[types.GenerateOptions]) -> Generation:
        """As `Client.generate`, on this session: it keeps the prompt and the reply."""
        return self._client.generate(prompt, session=self, **options)

    def generate_text(self, prompt: types.Prompt | None = None, **options: Unpack[types.GenerateOptions]) -> str:
        """As `Client.generate_text`, on this session: it keeps the prompt and the reply."""
        return self._client.generate_text(prompt, session=self, **options)

    def score(self, text: types.Prompt, **options: Unpack[types.ScoreOptions]) -> types.ScoreResult:
        """As `Client.score`, on this session: it keeps the text."""
        return self._client.score(text, session=self, **options)

    def fork(
        self, count: int = 0, *, session_ids: Sequence[str] = (), ttl: types.Seconds | None = None
    ) -> list[Session]:
        """As `Client.fork_session`."""
        return self._client.fork_session(self, count, session_ids=session_ids, ttl=ttl)

    def snapshot(self, snapshot_id: str = "", *, ttl: types.Seconds | None = None) -> types.Snapshot:
        """As `Client.create_snapshot`."""
        return self._client.create_snapshot(self, snapshot_id, ttl=ttl)

    def update(self, *, ttl: types.Seconds) -> types.SessionInfo:
        """As `Client.update_session`."""
        self.info = self._client._run(_operations.update_session(self, ttl=ttl))
        return self.info

    def interrupt(self) -> types.SessionInfo:
        """As `Client.interrupt_session`."""
        self.info = self._client._run(_operations.interrupt_session(self))
        return self.info

    def delete(self, *, force: bool = False) -> None:
        """As `Client.delete_session`."""
        self._client.delete_session(self, force=force)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.delete()
        except errors.NotFound:
            pass
        except errors.PalimpsestError:
            if error is None:
                raise
            # The block's own error matters more, and sessions expire.

    def __repr__(self) -> str:
        return f"<Session {self.name} at position {self.info.position}>"


class Client:
    """A connection to a Palimpsest server, for code that blocks. Thread-safe.

        with palimpsest.Client("localhost:50051") as client:
            print(client.generate_text("Once upon a time", max_tokens=50))

    `target` is "host:port", "unix:/path", or any name that gRPC resolves. `credentials` are those of
    `grpc.ssl_channel_credentials` and its like; None means no TLS. `token` says who calls; None takes that of the
    environment variable PALIMPSEST_TOKEN, if there is one. It is sent to another machine only where the connection has
    `credentials`, or with `allow_insecure_token`; otherwise `ValueError` is raised. `metadata` goes with every call,
    for example a proxy's authorisation. `timeout` is the deadline of calls that give none of their own. `options` are
    gRPC channel options and win over ours.

    A call that the server refused for the moment is made again within `retry`. Calls that can be made twice without
    harm are also tried again where the server was not reached; Generate, Score, Update, Delete, uploads and loads are
    not. All methods raise the exceptions of `palimpsest.errors`. Where a method wants a session, snapshot or model,
    give the object, its full name or its id.

    This machine (loopback addresses, localhost, unix sockets) is reached without the environment's proxies.
    """

    def __init__(
        self,
        target: str = _wire.DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        allow_insecure_token: bool = False,
        metadata: Sequence[tuple[str, str]] = (),
        timeout: types.Seconds | None = None,
        retry: RetryPolicy = DEFAULT_POLICY,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._connection = Connection(
            target,
            encrypted=credentials is not None,
            metadata=metadata,
            token=token,
            allow_insecure_token=allow_insecure_token,
            options=options,
        )
        arguments = self._connection.options
        self._channel = (
            grpc.insecure_channel(target, arguments)
            if credentials is None
            else grpc.secure_channel(target, credentials, arguments)
        )
        self._callables = _wire.callables(self._channel)
        self._timeout = None if timeout is None else _operations.seconds(timeout)
        self._retry = retry
        self._replies = _shared.Replies()

    def close(self) -> None:
        """Ends the connection; calls that still run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # How the operations are run.

    def _attempts(self, call: _operations.Call[Any]) -> Attempts:
        return Attempts(self._retry, call.timeout_seconds(self._timeout))

    def _start(self, call: _operations.Call[Any], attempts: Attempts) -> Any:
        """Makes the call: the response, or the stream of them."""
        request = call.request if isinstance(call.request, Message) else iter(call.request)
        return self._callables[call.method.path](
            request,
            timeout=attempts.timeout(),
            metadata=[*_trace.with_trace(self._connection.metadata), *call.metadata()],
        )

    def _wait_to_retry(
        self,
        attempts: Attempts,
        error: Any,
        begun: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Waits for the next attempt, if there is to be one; raises the exception for `error` otherwise."""
        failure = self._connection.failure(error, error.initial_metadata())
        wait = None if begun else attempts.wait_after(failure)
        if wait is None:
            raise failure from error
        sleep(wait)

    def _run(self, call: _operations.Call[Result]) -> Result:
        self._replies.make_way(call)
        attempts = self._attempts(call)
        while True:
            try:
                return call.read(self._start(call, attempts))
            except grpc.RpcError as error:
                self._wait_to_retry(attempts, error)

    def _run_session(self, call: _operations.Call[types.SessionInfo]) -> Session:
        return Session(self, self._run(call))

    def _run_sessions(self, call: _operations.Call[list[types.SessionInfo]]) -> list[Session]:
        return [Session(self, info) for info in self._run(call)]

    def _run_listing(self, listing: _operations.Listing[Item]) -> Iterator[Item]:
        token = ""
        while True:
            items, token = self._run(listing.page(token))
            yield from items
            if not token:
                return

    def _run_session_listing(self, listing: _operations.Listing[types.SessionInfo]) -> Iterator[Session]:
        return (Session(self, info) for info in self._run_listing(listing))

    def _run_generation(self, call: _operations.Call[types.Chunk]) -> Generation:
        return Generation(self, call)

    def _run_text(self, call: _operations.Call[types.Chunk]) -> str:
        return Generation(self, call).result().text

    def _run_download(self, call: _operations.Call[bytes]) -> bytes:
        attempts = self._attempts(call)
        while True:
            reader = _shared.DownloadReader()
            responses = self._start(call, attempts)
            try:
                for response in responses:
                    reader.take(response)
                return reader.data()
            except grpc.RpcError as error:
                self._wait_to_retry(attempts, error, reader.begun)
            finally:
                responses.cancel()  # an interrupt must not leave it running

    generate = method(_operations.generate, _run_generation)
    generate_text = method(_operations.generate_text, _run_text)
    score = method(_operations.score, _run)
    tokenize = method(_operations.tokenize, _run)
    detokenize = method(_operations.detokenize, _run)

    create_session = method(_operations.create_session, _run_session)
    get_session = method(_operations.get_session, _run_session)
    list_sessions = method(_operations.list_sessions, _run_session_listing)
    update_session = method(_operations.update_session, _run_session)
    fork_session = method(_operations.fork_session, _run_sessions)
    interrupt_session = method(_operations.interrupt_session, _run_session)
    delete_session = method(_operations.delete_session, _run)

    create_snapshot = method(_operations.create_snapshot, _run)
    get_snapshot = method(_operations.get_snapshot, _run)
    list_snapshots = method(_operations.list_snapshots, _run_listing)
    delete_snapshot = method(_operations.delete_snapshot, _run)
    download_snapshot = method(_operations.download_snapshot, _run_download)
    upload_snapshot = method(_operations.upload_snapshot, _run)

    list_models = method(_operations.list_models, _run)
    get_model = method(_operations.get_model, _run)
    load_model = method(_operations.load_model, _run)
    unload_model = method(_operations.unload_model, _run)

    health = method(_operations.health, _run)

    def save_snapshot(
        self, snapshot: _operations.Resource, path: str | os.PathLike[str], *, timeout: types.Seconds | None = None
    ) -> None:
        """Downloads a snapshot to a file, which appears whole or not at all and which only its owner may read."""
        _shared.write_whole_file(path, self.download_snapshot(snapshot, timeout=timeout))

    def wait_until_serving(self, timeout: types.Seconds = 60.0) -> None:
        """Waits until the server is up and its model warm. Raises `DeadlineExceeded` if it is not within `timeout`."""
        give_up = time.monotonic() + _operations.seconds(timeout)
        while not self._is_serving():
            if time.monotonic() > give_up:
                raise errors.DeadlineExceeded(f"the server did not serve within {_operations.seconds(timeout):g} s")
            time.sleep(0.05)

    def _is_serving(self) -> bool:
        try:
            return self.health(timeout=1.0) is types.Health.SERVING
        except (errors.Unavailable, errors.DeadlineExceeded):
            return False
