"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
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


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _current_task() -> asyncio.Task[Any] | None:
    return None if _running_loop() is None else asyncio.current_task()


class AsyncGeneration(_shared.GenerationReader):
    """A reply as it comes: an asynchronous iterator of `Chunk`.

        async with client.generate("Once upon a time") as generation:
            async for chunk in generation:
                print(chunk.text, end="")
                if len(generation.text) > 1000:
                    break  # leaving the block stops the model
        generation.text  # what has come so far

    Cancelling the task that reads stops the model too, and so does dropping the iterator, as leaving a loop does whose
    iterator has no name. One that has a name and was left without a block goes on until another call needs the session
    and is made by the task that was reading, or after that task has ended.
    """

    def __init__(self, client: AsyncClient, call: _operations.Call[types.Chunk]) -> None:
        super().__init__(call.session, client._replies)
        self._client = client
        self._what = call
        self._attempts = client._attempts(call)
        self._reader = _current_task()
        self._loop = _running_loop()
        self._replies.make_way(call)
        self._start()
        if self.session:
            self._replies.add(self)

    def _start(self) -> None:
        self._call = self._client._start(self._what, self._attempts)
        self._responses: AsyncIterator[Any] = aiter(self._call)

    def __aiter__(self) -> AsyncIterator[types.Chunk]:
        return self

    async def __anext__(self) -> types.Chunk:
        self._reader = _current_task()
        try:
            return await self._next()
        except BaseException:  # whatever it is, nobody reads on
            self._call.cancel()
            self._replies.remove(self)
            raise

    async def _next(self) -> types.Chunk:
        while True:
            try:
                response = await anext(self._responses)
            except StopAsyncIteration:
                self._check_ended()
                raise
            except grpc.aio.AioRpcError as error:
                await self._client._wait_to_retry(self._attempts, error, self._begun)
                if self._closed:
                    raise StopAsyncIteration from None
                if self._stopped_by:
                    raise self._stopped() from None
                self._start()
                continue
            except asyncio.CancelledError:
                if self._closed:
                    raise StopAsyncIteration from None
                if self._stopped_by:
                    raise self._stopped() from None
                raise
            if not self.call_id:
                self._take_metadata(await self._call.initial_metadata())
            chunk = self._take(response)
            if chunk is not None:
                return chunk

    def _is_left(self) -> bool:
        return self._reader is None or self._reader is _current_task() or self._reader.done()

    def __del__(self) -> None:
        # gRPC's own iterator is part of a cycle, which would keep the call running until the garbage is collected.
        if self._call is not None and not self._call.done() and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._call.cancel)

    async def result(self) -> types.GenerateResult:
        """Reads what is left and gives the whole. Raises `Cancelled` if it was closed before its end."""
        async for _ in self:
            pass
        return self._result()

    async def aclose(self) -> None:
        """Stops the model, if it has not ended. The iterator is then at its end."""
        self._closed = True
        self._call.cancel()
        self._replies.remove(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncSession:
    """A session on the server. As a context manager it deletes the session at the end of the block.

    async with await client.create_session() as session:
        await session.generate_text("The cat sat on", max_tokens=20)
        left, right = await session.fork(2)
    """

    def __init__(self, client: AsyncClient, info: types.SessionInfo) -> None:
        self._client = client
        self.info = info
        """The session as the server last reported it; `refresh` asks again."""

    @property
    def name(self) -> str:
        """`sessions/{session}`."""
        return self.info.name

    async def refresh(self) -> types.SessionInfo:
        """Asks the server how the session is now."""
        self.info = await self._client._run(_operations.get_session(self))
        return self.info

    def generate(self, prompt: types.Prompt | None = None, **options: Unpack[types.GenerateOptions]) -> AsyncGeneration:
        """As `AsyncClient.generate`, on this session: it keeps the prompt and the reply."""
        return self._client.generate(prompt, session=self, **options)

    async def generate_text(self, prompt: types.Prompt | None = None, **options: Unpack[types.GenerateOptions]) -> str:
        """As `AsyncClient.generate_text`, on this session: it keeps the prompt and the reply."""
        return await self._client.generate_text(prompt, session=self, **options)

    async def score(self, text: types.Prompt, **options: Unpack[types.ScoreOptions]) -> types.ScoreResult:
        """As `AsyncClient.score`, on this session: it keeps the text."""
        return await self._client.score(text, session=self, **options)

    async def fork(
        self, count: int = 0, *, session_ids: Sequence[str] = (), ttl: types.Seconds | None = None
    ) -> list[AsyncSession]:
        """As `AsyncClient.fork_session`."""
        return await self._client.fork_session(self, count, session_ids=session_ids, ttl=ttl)

    async def snapshot(self, snapshot_id: str = "", *, ttl: types.Seconds | None = None) -> types.Snapshot:
        """As `AsyncClient.create_snapshot`."""
        return await self._client.create_snapshot(self, snapshot_id, ttl=ttl)

    async def update(self, *, ttl: types.Seconds) -> types.SessionInfo:
        """As `AsyncClient.update_session`."""
        self.info = await self._client._run(_operations.update_session(self, ttl=ttl))
        return self.info

    async def interrupt(self) -> types.SessionInfo:
        """As `AsyncClient.interrupt_session`."""
        self.info = await self._client._run(_operations.interrupt_session(self))
        return self.info

    async def delete(self, *, force: bool = False) -> None:
        """As `AsyncClient.delete_session`."""
        await self._client.delete_session(self, force=force)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.delete()
        except errors.NotFound:
            pass
        except errors.PalimpsestError:
            if error is None:
                raise
            # The block's own error matters more, and sessions expire.

    def __repr__(self) -> str:
        return f"<AsyncSession {self.name} at position {self.info.position}>"


class AsyncClient:
    """A connection to a Palimpsest server, for asyncio. Make it and use it within one event loop.

        async with palimpsest.AsyncClient("localhost:50051") as client:
            print(await client.generate_text("Once upon a time", max_tokens=50))

    It has the methods of `Client` with the same arguments: those that give one thing are awaited, `generate`,
    `list_sessions` and `list_snapshots` are iterated over with `async for`.

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
            grpc.aio.insecure_channel(target, arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, arguments)
        )
        self._callables = _wire.callables(self._channel)
        self._timeout = None if timeout is None else _operations.seconds(timeout)
        self._retry = retry
        self._replies = _shared.Replies()

    async def close(self) -> None:
        """Ends the connection; calls that still run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

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

    async def _wait_to_retry(self, attempts: Attempts, error: grpc.aio.AioRpcError, begun: bool = False) -> None:
        """Waits for the next attempt, if there is to be one; raises the exception for `error` otherwise."""
        failure = self._connection.failure(error, error.initial_metadata())
        wait = None if begun else attempts.wait_after(failure)
        if wait is None:
            raise failure from error
        await asyncio.sleep(wait)

    async def _run(self, call: _operations.Call[Result]) -> Result:
        self._replies.make_way(call)
        attempts = self._attempts(call)
        while True:
            try:
                return call.read(await self._start(call, attempts))
            except grpc.aio.AioRpcError as error:
                await self._wait_to_retry(attempts, error)

    async def _run_session(self, call: _operations.Call[types.SessionInfo]) -> AsyncSession:
        return AsyncSession(self, await self._run(call))

    async def _run_sessions(self, call: _operations.Call[list[types.SessionInfo]]) -> list[AsyncSession]:
        return [AsyncSession(self, info) for info in await self._run(call)]

    async def _run_listing(self, listing: _operations.Listing[Item]) -> AsyncIterator[Item]:
        token = ""
        while True:
            items, token = await self._run(listing.page(token))
            for item in items:
                yield item
            if not token:
                return

    async def _run_session_listing(
        self, listing: _operations.Listing[types.SessionInfo]
    ) -> AsyncIterator[AsyncSession]:
        async for info in self._run_listing(listing):
            yield AsyncSession(self, info)

    def _run_generation(self, call: _operations.Call[types.Chunk]) -> AsyncGeneration:
        return AsyncGeneration(self, call)

    async def _run_text(self, call: _operations.Call[types.Chunk]) -> str:
        return (await AsyncGeneration(self, call).result()).text

    async def _run_download(self, call: _operations.Call[bytes]) -> bytes:
        attempts = self._attempts(call)
        while True:
            reader = _shared.DownloadReader()
            responses = self._start(call, attempts)
            try:
                async for response in responses:
                    reader.take(response)
                return reader.data()
            except grpc.aio.AioRpcError as error:
                await self._wait_to_retry(attempts, error, reader.begun)
            finally:
                responses.cancel()

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

    async def save_snapshot(
        self, snapshot: _operations.Resource, path: str | os.PathLike[str], *, timeout: types.Seconds | None = None
    ) -> None:
        """Downloads a snapshot to a file, which appears whole or not at all and which only its owner may read."""
        data = await self.download_snapshot(snapshot, timeout=timeout)
        await asyncio.to_thread(_shared.write_whole_file, path, data)

    async def wait_until_serving(self, timeout: types.Seconds = 60.0) -> None:
        """Waits until the server is up and its model warm. Raises `DeadlineExceeded` if it is not within `timeout`."""
        give_up = time.monotonic() + _operations.seconds(timeout)
        while not await self._is_serving():
            if time.monotonic() > give_up:
                raise errors.DeadlineExceeded(f"the server did not serve within {_operations.seconds(timeout):g} s")
            await asyncio.sleep(0.05)

    async def _is_serving(self) -> bool:
        try:
            return await self.health(timeout=1.0) is types.Health.SERVING
        except (errors.Unavailable, errors.DeadlineExceeded):
            return False
