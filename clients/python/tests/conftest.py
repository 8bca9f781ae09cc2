"""A server that says what a test tells it to, and both clients behind one blocking face: each test runs on both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import palimpsest
from palimpsest import _wire


class FakeServer:
    """Answers each RPC with the function in `answer` under its name; keeps what came in `requests` and `metadata`."""

    def __init__(self) -> None:
        self.answer: dict[str, Callable[[Any, grpc.ServicerContext], Any]] = {}
        self.requests: list[tuple[str, Any]] = []
        self.metadata: dict[str, dict[str, Any]] = {}
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=8),
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        services: dict[str, dict[str, Any]] = {}
        for method in _wire.METHODS:
            make_handler = getattr(grpc, f"{method.kind()}_rpc_method_handler")
            services.setdefault(method.service, {})[method.name] = make_handler(
                self._behaviour(method),
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _behaviour(self, method: _wire.Method[Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def behave(request: Any, context: grpc.ServicerContext) -> Any:
            self.metadata[method.name] = dict(context.invocation_metadata())
            if method.streams_request:
                request = list(request)
            self.requests.append((method.name, request))
            return self.answer[method.name](request, context)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from behave(request, context)

        return stream if method.streams_response else behave

    def received(self, name: str) -> list[Any]:
        return [request for method, request in self.requests if method == name]

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


class Blocking:
    """An asynchronous object as a blocking one: coroutines are run, iterators are iterated, on a loop of its own."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target, self._loop = target, loop

    def _wait(self, coroutine: Any) -> Any:
        async def wait() -> Any:
            return await coroutine

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(timeout=60)

    def _wrap(self, value: Any) -> Any:
        if inspect.isawaitable(value):
            return self._wrap(self._wait(value))
        if isinstance(value, list):
            return [self._wrap(item) for item in value]
        if inspect.isasyncgen(value) or type(value).__module__ == "palimpsest.aio":
            return Blocking(value, self._loop)
        return value

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, "aclose" if name == "close" and hasattr(self._target, "aclose") else name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            async def on_loop() -> Any:
                plain = [arg._target if isinstance(arg, Blocking) else arg for arg in args]
                named = {key: arg._target if isinstance(arg, Blocking) else arg for key, arg in kwargs.items()}
                result = value(*plain, **named)
                return (await result,) if inspect.isawaitable(result) else (result,)

            return self._wrap(self._wait(on_loop())[0])

        return call

    def __iter__(self) -> Blocking:
        return self

    def __next__(self) -> Any:
        try:
            return self._wrap(self._wait(anext(self._target)))
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Any:
        self._wait(self._target.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._wait(self._target.__aexit__(*error))


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    event_loop = asyncio.new_event_loop()
    thread = threading.Thread(target=event_loop.run_forever)
    thread.start()
    yield event_loop
    event_loop.call_soon_threadsafe(event_loop.stop)
    thread.join()
    event_loop.close()


Connect = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client for a target; it is closed at the end."""
    clients: list[Any] = []
    event_loop = request.getfixturevalue("loop") if request.param == "async" else None

    def make(target: str, **options: Any) -> Any:
        if event_loop is None:
            clients.append(palimpsest.Client(target, **options))
        else:

            async def make_on_loop() -> palimpsest.AsyncClient:
                return palimpsest.AsyncClient(target, **options)

            made = asyncio.run_coroutine_threadsafe(make_on_loop(), event_loop).result()
            clients.append(Blocking(made, event_loop))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect, server: FakeServer) -> Any:
    return connect(server.target)
