"""Everything at once, for a long time: what a busy day of several owners looks like, and who misbehaves on it.

Each visitor comes again and again in a random way of the table below, as one of the owners. Canaries: the same request
must give the same bytes at any moment; a session goes on as its fork did; and nobody ever sees, continues or downloads
what belongs to another owner.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
from palimpsest.v1 import generation_pb2 as generation
from palimpsest.v1 import session_pb2 as session

from . import http2, owners, report, rpc
from .arena import ATTACKER
from .checks import PROMPT, Bounds, Canary, afterwards, describe, while_attacked
from .rpc import Caller, Reply, generate_request
from .server import Server, known_flags

SLOTS = 32
VISITORS = 48
TEXT = "The captain looked at the sea and said nothing for a long time, while the wind turned to the north. "
BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED)


class Day:
    """What all visitors share: what they saw, and what must never change."""

    def __init__(self, address: tuple[str, int], has_owners: bool, expected: Reply) -> None:
        self.address = address
        self.target = f"{address[0]}:{address[1]}"
        self.has_owners = has_owners
        self.expected = expected
        self.end = 0.0
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._lock = threading.Lock()

    def metadata(self, owner: str) -> rpc.Metadata:
        """What an owner's calls carry."""
        return owners.metadata(owner) if self.has_owners else []

    def count(self, what: str) -> None:
        """One more of these."""
        with self._lock:
            self.counts[what] += 1

    def require(self, condition: bool, otherwise: str) -> None:
        """Records a failure unless the condition holds."""
        if not condition:
            with self._lock:
                self.failures[otherwise] += 1


class Visitor(threading.Thread):
    """One caller of one owner."""

    def __init__(self, day: Day, index: int) -> None:
        super().__init__(daemon=True)
        self.day = day
        self.owner = owners.NAMES[index % len(owners.NAMES)]
        self.random = random.Random(index)
        self.caller = Caller(day.target, metadata=day.metadata(self.owner))

    def run(self) -> None:
        """Comes again and again until the day is over."""
        names, weights = zip(*((name, weight) for name, (_, weight) in WAYS.items()), strict=True)
        while time.monotonic() < self.day.end:
            (name,) = self.random.choices(names, weights)
            try:
                WAYS[name][0](self)
                self.day.count(f"{name}:OK")
            except grpc.RpcError as error:
                code = error.code()
                self.day.count(f"{name}:{code.name}")
                self.day.require(code in BUSY, f"{name} ends in {describe(error)}")
                if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.day.require(
                        rpc.carries_retry_info(error), f"{name}: a refusal does not say when to come again"
                    )
                time.sleep(0.05 + 0.1 * self.random.random())
            except OSError:
                self.day.count(f"{name}:closed")
        self.caller.close()

    def text(self, most: int) -> str:
        """A prompt of up to so many characters."""
        begin = self.random.randrange(len(TEXT))
        return (TEXT * (1 + most // len(TEXT)))[begin : begin + 1 + self.random.randrange(most)]

    def generates(self) -> None:
        """A reply to its end."""
        tokens = 1 + self.random.randrange(48)
        reply = self.caller.generate(generate_request(self.text(400), tokens), 300)
        self.day.require(len(reply.ids) == tokens, "a reply is cut short")

    def tokenizes(self) -> None:
        """A few small calls."""
        for _ in range(10):
            request = generation.TokenizeRequest(text=self.text(200))
            answer = self.caller.unary(rpc.TOKENIZE, request, generation.TokenizeResponse)
            self.day.require(len(answer.ids) > 0, "a text has no tokens")

    def scores(self) -> None:
        """The probability of a text."""
        request = generation.ScoreRequest(text=self.text(600))
        self.caller.unary(rpc.SCORE, request, generation.ScoreResponse, 300)

    def talks(self) -> None:
        """A session that is used, forked and deleted; the fork goes on with the same bytes."""
        name = self.caller.create_session()
        try:
            self.caller.generate(generate_request(self.text(100), 8, session=name), 300)
            (twin,) = self.caller.fork(name)
            try:
                said = []
                for which in (name, twin):
                    request = generate_request(" Then", 8, session=which, return_state_digest=True)
                    said.append(self.caller.generate(request, 300))
                self.day.require(said[0] == said[1], "a session goes on otherwise than its fork")
            finally:
                self.delete(twin)
        finally:
            self.delete(name)

    def saves(self) -> None:
        """A snapshot that goes out and comes in again."""
        name = self.caller.create_session()
        try:
            self.caller.generate(generate_request(self.text(60), 4, session=name), 300)
            made = self.caller.create_snapshot(name)
            try:
                data = self.caller.download(made, 60)
                self.caller.delete_snapshot(self.caller.upload_bytes(data, 60))
            finally:
                self.caller.delete_snapshot(made)
        finally:
            self.delete(name)

    def leaves(self) -> None:
        """A reply that is cancelled, and the session that it leaves behind, deleted at once."""
        name = self.caller.create_session()
        stream = self.caller.stream(rpc.GENERATE, generate_request(self.text(60), 400, session=name), 300)
        with contextlib.suppress(grpc.RpcError):
            for _ in range(self.random.randrange(8)):
                next(stream, None)
        stream.cancel()
        self.delete(name)

    def is_late(self) -> None:
        """A deadline that passes."""
        request = generate_request(self.text(200), 200)
        try:
            self.caller.generate(request, 0.005 + 0.2 * self.random.random())
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise

    def errs(self) -> None:
        """Mistakes that have an answer each."""
        for path, message, expected in (
            (rpc.GENERATE, generate_request("a", 1, session="sessions/nobody"), grpc.StatusCode.NOT_FOUND),
            (rpc.GENERATE, generate_request("a", -1), grpc.StatusCode.INVALID_ARGUMENT),
            (rpc.UPDATE_SESSION, session.UpdateSessionRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            try:
                for _ in self.caller.stream(path, message, 30):
                    pass
                self.day.require(False, f"a mistake in {path} is accepted")
            except grpc.RpcError as error:
                self.day.require(error.code() in (expected, *BUSY), f"a mistake in {path} gives {describe(error)}")

    def sings(self) -> None:
        """The canary: the same bytes as ever."""
        reply = self.caller.generate(generate_request(PROMPT, 24, return_state_digest=True), 300)
        self.day.require(reply == self.day.expected, "the canary request has another reply than before")

    def pries(self) -> None:
        """Another owner's session, whose name it knows: it is not there, and in no list."""
        if not self.day.has_owners:
            return
        other = self.random.choice([name for name in owners.NAMES if name != self.owner])
        name = f"sessions/of-{other}"
        for path, message in (
            (rpc.GENERATE, generate_request("a", 1, session=name)),
            (rpc.FORK_SESSION, session.ForkSessionRequest(name=name)),
            (rpc.DELETE_SESSION, session.DeleteSessionRequest(name=name)),
        ):
            try:
                for _ in self.caller.stream(path, message, 60):
                    pass
                self.day.require(False, f"{path} works on another owner's session")
            except grpc.RpcError as error:
                seen = error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED)
                self.day.require(not seen, f"{path} on another owner's session gives {describe(error)}")
        self.day.require(name not in self.caller.sessions(60), "another owner's session is in the list")

    def vanishes(self) -> None:
        """A connection that begins calls and is gone, some with frames that nobody should send."""
        extra = list(self.day.metadata(self.owner))
        request = generate_request(PROMPT, 100).SerializeToString()
        with http2.Connection(self.day.address, source=ATTACKER, timeout=5) as one:
            for _ in range(1 + self.random.randrange(4)):
                one.call(rpc.GENERATE, request, extra)
            one.read_some(0.2 * self.random.random())
            if self.random.random() < 0.3:
                one.send(http2.frame(self.random.randrange(12), self.random.randrange(256), 1, b"\0" * 8))
            one.close(abruptly=self.random.random() < 0.5)

    def delete(self, name: str) -> None:
        """Deletes a session, once the call that holds it has ended."""
        give_up = time.monotonic() + 30
        while True:
            try:
                return self.caller.delete_session(name)
            except grpc.RpcError as error:
                if error.code() not in BUSY or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)


# By the name that is counted: what is done, and how often beside the others.
WAYS: dict[str, tuple[Callable[[Visitor], None], int]] = {
    "generate": (Visitor.generates, 20),
    "tokenize": (Visitor.tokenizes, 20),
    "score": (Visitor.scores, 6),
    "talk": (Visitor.talks, 10),
    "save": (Visitor.saves, 4),
    "leave": (Visitor.leaves, 8),
    "late": (Visitor.is_late, 6),
    "err": (Visitor.errs, 4),
    "canary": (Visitor.sings, 4),
    "pry": (Visitor.pries, 4),
    "vanish": (Visitor.vanishes, 4),
}


def main(arguments: list[str]) -> int:
    """0 when nothing was lost, seen by others or kept."""
    parser = argparse.ArgumentParser(prog="dev chaos soak", description=__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--results", type=Path, help="write FILE.json and FILE.md")
    options = parser.parse_args(arguments)
    binary = options.bin / "palimpsest-server"
    has_owners = owners.FLAG in known_flags(binary)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        work = Path(folder)
        # The canary's session is not touched until the end: it is not to be idle for too long by then.
        flags = [f"--slots={SLOTS}", "--max_queue=64", "--grace=2s", "--session_ttl=24h"]
        if has_owners:
            flags.append(owners.write_tokens(work / "tokens.json"))
        server = Server(binary, options.checkpoint, flags, work)
        try:
            return spend(server, options, has_owners)
        finally:
            server.kill()


def spend(server: Server, options: argparse.Namespace, has_owners: bool) -> int:
    """The day, and what it left."""
    mine = owners.metadata(owners.NAMES[0]) if has_owners else []
    with Caller(server.target, metadata=mine) as caller:
        canary = Canary(caller)
        expected = caller.generate(generate_request(PROMPT, 24, return_state_digest=True))
    day = Day(("127.0.0.1", server.port), has_owners, expected)
    if has_owners:
        for name in owners.NAMES:
            with Caller(server.target, metadata=owners.metadata(name)) as caller:
                caller.create_session(session_id=f"of-{name}")
    line = report.MemoryLine(server)
    day.end = time.monotonic() + options.seconds
    visitors = [Visitor(day, index) for index in range(VISITORS)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    line.stop()

    failures = [f"{what} ({count} times)" for what, count in day.failures.items()]
    try:
        calls = int(server.metric("palimpsest_requests_total"))
    except OSError as error:
        calls = 0
        failures.append(f"the metrics page does not come: {error}")
    flat, early, late = line.flat()
    if not flat:
        failures.append(f"memory grows: {early} MiB early, {late} MiB at the end")
    failures += while_attacked(server, server.target, canary, mine)
    failures += afterwards(server, server.target, canary, Bounds(), mine)
    rows = [
        ("for", f"{options.seconds:.0f} s, {VISITORS} callers at once"),
        ("owners", f"{len(owners.NAMES)}" if has_owners else "one: this server knows no owners"),
        ("calls that the server answered", f"{calls:,}"),
        ("memory early and at the end", f"{early} MiB, {late} MiB"),
        *((f"{name}", f"{count:,}") for name, count in sorted(day.counts.items())),
        ("what broke", "; ".join(failures) or "nothing"),
    ]
    data = {"failures": failures, "calls": calls, "counts": dict(day.counts), "memory_bytes": line.bytes}
    command = f"./dev chaos soak --seconds {options.seconds:.0f}"
    report.write(options.results, "A day in which everything happens at once", command, data, rows)
    return 1 if failures else 0
