"""What an unlucky machine does to the server, and what unlucky callers do to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from . import owners, rpc
from .arena import Arena
from .checks import PROMPT, describe
from .rpc import Caller, generate_request
from .server import Limits, StartFailure


def many_calls(arena: Arena) -> None:
    """More calls than the log's pipe, which nobody reads, or the full disk behind it has room for."""
    caller = arena.caller()
    for index in range(600):
        try:
            caller.raw(rpc.TOKENIZE, b"\x12\x01a", 5.0)
        except grpc.RpcError as error:
            arena.require(False, f"call {index} ends in {describe(error)}")
            return


@contextlib.contextmanager
def _full_folder() -> Iterator[Path]:
    """A folder of a file system on which nothing is free; where we may not mount, one that cannot be written to."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "none", folder], capture_output=True, check=False
        )
        if mounted.returncode == 0:
            try:
                (Path(folder) / "filling").write_bytes(b"x" * 4096)
                yield Path(folder)
            finally:
                subprocess.run(["umount", folder], check=True)
        else:
            yield Path("/proc/self")


def full_disk(arena: Arena) -> None:
    """The log's disk is full, and a port file on a full disk ends a start with a reason."""
    many_calls(arena)
    with _full_folder() as folder:
        try:
            other = arena.start_another((f"--port_file={folder / 'port'}",), Limits())
        except StartFailure as failure:
            arena.require(
                failure.code in (1, 2) and "palimpsest-server: " in failure.log,
                f"with its port file on a full disk the start ends with {failure.code}",
            )
        else:
            other.kill()
            arena.require(False, "a port file on a full disk is written")


def thread_limit(arena: Arena) -> None:
    """Servers with hardly any threads: they start or end with a reason, and after SIGTERM they end in any case."""
    for threads in (6, 17, 19, 22):
        try:
            other = arena.start_another(("--slots=8",), Limits(threads=threads))
        except StartFailure as failure:
            arena.require(
                failure.code in (1, 2) and "palimpsest-server: " in failure.log,
                f"with {threads} threads the start ends with {failure.code}: {failure.log[-160:]}",
            )
            continue
        try:
            callers = [Caller(other.target) for _ in range(40)]
            streams = [caller.stream(rpc.GENERATE, generate_request(PROMPT, 2000)) for caller in callers]
            time.sleep(0.5)
            code = other.stop(20.0)
            arena.require(code is not None, f"with {threads} threads SIGTERM does not end the server within 20 s")
            arena.require(code is None or code in (0, 1), f"with {threads} threads the server ends with {code}")
            for stream in streams:
                stream.cancel()
            for caller in callers:
                caller.close()
        finally:
            other.kill()


def stopped_and_continued(arena: Arena) -> None:
    """SIGSTOP for a while with streams on their way, then SIGCONT: they go on."""
    caller = arena.caller()
    streams = [caller.stream(rpc.GENERATE, generate_request(PROMPT, 300), timeout=300.0) for _ in range(8)]
    for stream in streams:
        next(stream)
    pid = arena.server.process.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(pid, signal.SIGCONT)
    for stream in streams:
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            arena.require(False, f"a stream ends in {describe(error)} after the server stood still")


def cancellations(arena: Arena) -> None:
    """Calls that are cancelled, or whose deadline passes, at random moments."""
    end = time.monotonic() + arena.seconds
    counts = {"calls": 0}
    lock = threading.Lock()

    def call(index: int) -> None:
        session = ""
        with Caller(arena.target) as caller:
            with contextlib.suppress(grpc.RpcError):
                session = caller.create_session()
            while time.monotonic() < end:
                fields = {"session": session} if session and arena.random.random() < 0.5 else {}
                request = generate_request(PROMPT, 1 + arena.random.randrange(60), **fields)
                stream = caller.stream(rpc.GENERATE, request, timeout=0.005 + arena.random.random() * 0.3)
                with contextlib.suppress(grpc.RpcError):
                    for _ in range(arena.random.randrange(12)):
                        next(stream, None)
                stream.cancel()
                with lock:
                    counts["calls"] += 1
            # The last call may hold the session for a moment longer.
            for _ in range(50):
                try:
                    caller.delete_session(session)
                    break
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.ABORTED:
                        arena.require(False, f"a session cannot be deleted: {describe(error)}")
                        break
                    time.sleep(0.1)

    arena.crowd(12, call)
    arena.numbers |= counts


def clock_jump(arena: Arena) -> None:
    """The wall clock goes two hours forward, then four back: sessions stay, and so do streams with a deadline."""
    clock = arena.work / "clock"
    caller = arena.caller()
    session = caller.create_session()
    caller.generate(generate_request(PROMPT, 4, session=session))
    for offset in ("+7200", "-7200", "+0"):
        stream = caller.stream(rpc.GENERATE, generate_request(PROMPT, 200), timeout=60.0)
        next(stream)
        clock.write_text(offset)
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            arena.require(False, f"with the clock at {offset} s a stream ends in {describe(error)}")
        time.sleep(1.2)  # whoever looks for what has expired looks meanwhile
        try:
            caller.generate(generate_request("a", 1, session=session))
        except grpc.RpcError as error:
            arena.require(False, f"with the clock at {offset} s a session of an hour: {describe(error)}")
    with contextlib.suppress(grpc.RpcError):
        caller.delete_session(session)


def overload(arena: Arena) -> None:
    """Ten times the calls that fit: refusals say when to come again, and who is patient is served."""
    end = time.monotonic() + arena.seconds
    served, refused = [0, 0], [0]
    lock = threading.Lock()

    def call(index: int) -> None:
        patient = index < 2
        with Caller(arena.target) as caller:
            while time.monotonic() < end:
                try:
                    caller.generate(generate_request(PROMPT, 16 if patient else 64), timeout=60.0)
                    with lock:
                        served[0 if patient else 1] += 1
                except grpc.RpcError as error:
                    with lock:
                        refused[0] += 1
                    arena.require(
                        error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, f"overload ends in {describe(error)}"
                    )
                    arena.require(rpc.carries_retry_info(error), "a refusal does not say when to come again")
                    time.sleep(0.05)

    arena.crowd(82, call)
    arena.require(served[0] > 0, "the patient callers are never served")
    arena.numbers |= {"served_patient": served[0], "served_flood": served[1], "refused": refused[0]}


def overload_of_one_owner(arena: Arena) -> None:
    """One of three owners of equal share sends all that it can: it is refused, and the others never are."""
    end = time.monotonic() + arena.seconds
    served = dict.fromkeys(owners.NAMES, 0)
    refused = dict.fromkeys(owners.NAMES, 0)
    lock = threading.Lock()

    def call(index: int) -> None:
        owner = owners.NAMES[index] if index < 2 else owners.NAMES[2]
        with Caller(arena.target, metadata=owners.metadata(owner)) as caller:
            while time.monotonic() < end:
                try:
                    caller.generate(generate_request(PROMPT, 32), timeout=60.0)
                    with lock:
                        served[owner] += 1
                except grpc.RpcError as error:
                    with lock:
                        refused[owner] += 1
                    arena.require(
                        error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, f"overload ends in {describe(error)}"
                    )
                    arena.require(rpc.carries_retry_info(error), "a refusal does not say when to come again")
                    time.sleep(0.05)

    arena.crowd(42, call)
    for owner in owners.NAMES[:2]:
        arena.require(served[owner] > 0, f"{owner} is never served")
        arena.require(refused[owner] == 0, f"{owner}, who has one call at a time, is refused {refused[owner]} times")
    arena.require(refused[owners.NAMES[2]] > 0, "the flood is never refused")
    arena.numbers |= {f"served_{name}": count for name, count in served.items()}
