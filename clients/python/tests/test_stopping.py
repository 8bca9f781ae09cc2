"""What stops a reply that its reader has left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from answers import endless, finish, piece, reply
from conftest import FakeServer
from google.protobuf import empty_pb2

import palimpsest
from palimpsest.v1 import generation_pb2 as generation


class Sessions:
    """Endless replies, one at a time for each session; what comes second is ended by what would be ABORTED."""

    def __init__(self, server: FakeServer) -> None:
        self.stopped = threading.Event()
        server.answer["Generate"] = endless(self.stopped)
        server.answer["Score"] = lambda request, context: generation.ScoreResponse()
        server.answer["DeleteSession"] = lambda request, context: empty_pb2.Empty()


def test_the_next_call_on_the_session_stops_a_reply_that_an_exception_left(server: FakeServer) -> None:
    sessions = Sessions(server)
    with palimpsest.Client(server.target) as client:
        stream = client.generate("x", session="a")  # as a name in a notebook or in a kept traceback
        with pytest.raises(ZeroDivisionError):
            for _ in stream:
                raise ZeroDivisionError
        assert not sessions.stopped.wait(0.2)
        client.score("y", session="b")
        assert not sessions.stopped.is_set()
        client.score("y", session="a")
        assert sessions.stopped.wait(10)


def test_an_exception_in_the_body_cancels_a_reply_that_has_no_name(server: FakeServer) -> None:
    sessions = Sessions(server)
    with palimpsest.Client(server.target) as client:
        with pytest.raises(ZeroDivisionError) as kept:
            for _ in client.generate("x", session="a"):
                raise ZeroDivisionError
        assert sessions.stopped.wait(10)
        assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("same_task", [True, False])
async def test_the_next_call_on_the_session_stops_a_reply_that_an_exception_left_async(
    server: FakeServer, same_task: bool
) -> None:
    sessions = Sessions(server)
    async with palimpsest.AsyncClient(server.target) as client:
        stream = client.generate("x", session="a")

        async def leave() -> None:
            with pytest.raises(ZeroDivisionError):
                async for _ in stream:
                    raise ZeroDivisionError

        await (leave() if same_task else asyncio.create_task(leave()))
        assert not await asyncio.to_thread(sessions.stopped.wait, 0.2)
        await client.score("y", session="b")
        assert not sessions.stopped.is_set()
        await client.score("y", session="a")
        assert await asyncio.to_thread(sessions.stopped.wait, 10)


def test_a_reply_that_another_thread_reads_is_left_alone(server: FakeServer) -> None:
    sessions = Sessions(server)
    with palimpsest.Client(server.target) as client:
        begun, enough = threading.Event(), threading.Event()

        def read() -> None:
            with client.generate("x", session="a") as stream:
                for _ in stream:
                    begun.set()
                    if enough.is_set():
                        break

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(10)
        client.score("y", session="a")
        assert not sessions.stopped.is_set()
        enough.set()
        reader.join(10)
        assert sessions.stopped.wait(10)


async def test_a_reply_that_another_task_reads_is_left_alone(server: FakeServer) -> None:
    sessions = Sessions(server)
    async with palimpsest.AsyncClient(server.target) as client:
        begun, enough = asyncio.Event(), asyncio.Event()

        async def read() -> None:
            async with client.generate("x", session="a") as stream:
                async for _ in stream:
                    begun.set()
                    if enough.is_set():
                        break

        reader = asyncio.create_task(read())
        await begun.wait()
        await client.score("y", session="a")
        assert not sessions.stopped.is_set()
        enough.set()
        await reader
        assert await asyncio.to_thread(sessions.stopped.wait, 10)


def test_reading_a_reply_that_made_way_says_so(server: FakeServer, client: Any) -> None:
    Sessions(server)
    stream = client.generate("x", session="a")
    next(stream)
    client.score("y", session="sessions/a")
    with pytest.raises(palimpsest.Cancelled, match="stopped by Score on sessions/a"):
        for _ in stream:
            pass
    assert "x" in stream.text


def test_a_reply_that_has_ended_is_not_stopped(server: FakeServer, client: Any) -> None:
    Sessions(server)
    server.answer["Generate"] = reply(piece("a", 1), finish())
    stream = client.generate("x", session="a")
    assert stream.result().text == "a"
    client.score("y", session="a")
    assert list(stream) == [] and stream.result().text == "a"


def test_a_refused_reply_does_not_hide_the_one_that_has_the_session(server: FakeServer) -> None:
    sessions = Sessions(server)
    answer = server.answer["Generate"]

    def one_at_a_time(request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        if request.text == "second":
            context.abort(grpc.StatusCode.ABORTED, "held")
        yield from answer(request, context)

    server.answer["Generate"] = one_at_a_time
    with palimpsest.Client(server.target) as client:
        first = client.generate("first", session="a")
        next(first)

        def second() -> None:
            with pytest.raises(palimpsest.Aborted):
                client.generate_text("second", session="a")

        other = threading.Thread(target=second)
        other.start()
        other.join(10)
        assert not sessions.stopped.is_set()
        client.delete_session("a")
        assert sessions.stopped.wait(10)


async def test_breaking_out_of_the_loop_cancels_at_once(server: FakeServer) -> None:
    sessions = Sessions(server)
    async with palimpsest.AsyncClient(server.target) as client:
        async for _ in client.generate("x", session="a"):
            break
        assert await asyncio.to_thread(sessions.stopped.wait, 10)


async def test_cancelling_the_reader_cancels_the_call(server: FakeServer) -> None:
    sessions = Sessions(server)
    async with palimpsest.AsyncClient(server.target) as client:
        stream = client.generate("x", session="a")
        await anext(stream)

        async def read() -> None:
            async for _ in stream:
                pass

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await asyncio.to_thread(sessions.stopped.wait, 10)


INTERRUPTED = """
import sys, palimpsest
client = palimpsest.Client(sys.argv[1])
try:
    for number, _ in enumerate(client.generate("x", session="a")):
        print(number, flush=True)
except KeyboardInterrupt as error:
    kept = error
    print("interrupted", flush=True)
sys.stdin.read()  # the traceback lives, and the client too
"""


def test_an_interrupt_while_waiting_for_the_next_chunk_cancels_the_call(server: FakeServer) -> None:
    stopped = threading.Event()

    def two_then_silence(_request: Any, context: grpc.ServicerContext) -> Iterator[generation.GenerateResponse]:
        context.add_callback(stopped.set)
        yield piece("one", 1)
        yield piece("two", 2)
        stopped.wait(30)

    server.answer["Generate"] = two_then_silence
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, server.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "0\n"
        assert process.stdout.readline() == "1\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert stopped.wait(10)
        assert process.poll() is None
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()
