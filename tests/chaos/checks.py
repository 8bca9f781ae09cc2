"""What must be true after every campaign, in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from .rpc import Caller, Metadata, Reply, carries_retry_info, generate_request
from .server import Server

PROMPT = "The captain looked at the sea and"
ANSWER_SECONDS = 20.0  # the deadline of a canary's calls
IDLE_SECONDS = 20.0  # until slots and places must be free again
EXIT_SECONDS = 30.0  # the server's --grace is 2 s in all campaigns
MEBIBYTE = 1 << 20

Unavailable = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


@dataclass(frozen=True)
class Bounds:
    """How far memory may go above what it was at the start.

    What is kept is more than nothing, because the allocator keeps some of what was freed for the next time; whether it
    grows from time to time is what the soak measures.
    """

    peak_bytes: int = 512 * MEBIBYTE
    kept_bytes: int = 320 * MEBIBYTE


def patiently(ask: Callable[[], bool], seconds: float) -> bool:
    """Whether it becomes true in time."""
    give_up = time.monotonic() + seconds
    while not ask():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


class Canary:
    """What somebody else has on the server: a session, and what it and a request without one must go on to say."""

    def __init__(self, caller: Caller) -> None:
        self.session = caller.create_session(session_id="canary")
        caller.generate(generate_request(PROMPT, 8, session=self.session))
        (twin,) = caller.fork(self.session)
        self._expected_in_session = self._go_on(caller, twin)
        caller.delete_session(twin)
        self._expected = self._ask(caller)

    def _ask(self, caller: Caller) -> Reply:
        return caller.generate(generate_request(PROMPT, 24, return_state_digest=True), ANSWER_SECONDS)

    def _go_on(self, caller: Caller, session: str) -> Reply:
        request = generate_request(" Then", 16, session=session, return_state_digest=True)
        return caller.generate(request, ANSWER_SECONDS)

    def sings(self, caller: Caller) -> Iterator[str]:
        """What is wrong: no answer, or another one than before."""
        try:
            if self._ask(caller) != self._expected:
                yield "a request without a session has another reply than before"
        except grpc.RpcError as error:
            yield f"the canary request fails: {describe(error)}"

    def session_is_intact(self, caller: Caller) -> Iterator[str]:
        """The same for the session; once only, because it goes on."""
        try:
            if self._go_on(caller, self.session) != self._expected_in_session:
                yield "the canary's session goes on otherwise than its fork did"
        except grpc.RpcError as error:
            yield f"the canary's session cannot go on: {describe(error)}"


def describe(error: grpc.RpcError) -> str:
    """A line of an error."""
    return f"{error.code().name}: {(error.details() or '')[:160]}"


def transfers_work(caller: Caller, session: str) -> Iterator[str]:
    """A snapshot is made, downloaded, uploaded and deleted; refusals are heeded for a while."""
    give_up = time.monotonic() + IDLE_SECONDS
    while True:
        try:
            made = caller.create_snapshot(session)
            try:
                data = caller.download(made)
                caller.delete_snapshot(caller.upload_bytes(data))
            finally:
                caller.delete_snapshot(made)
            return
        except grpc.RpcError as error:
            if error.code() not in Unavailable or time.monotonic() > give_up:
                yield f"snapshots cannot be sent to and fro: {describe(error)}"
                return
            if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and not carries_retry_info(error):
                yield f"a refusal does not say when to come again: {describe(error)}"
            time.sleep(0.5)


def is_idle(server: Server) -> bool:
    """Whether no slot is used and nothing waits."""
    page = server.metrics()
    busy = ("palimpsest_requests_running", "palimpsest_requests_waiting", 'condition="used"')
    return all(value == 0 for name, value in page.items() if any(word in name for word in busy) and "_max" not in name)


def while_attacked(server: Server, target: str, canary: Canary, metadata: Metadata) -> Iterator[str]:
    """With the attackers still there: the server serves others, and has its slots and places back."""
    if not server.running():
        yield f"the server has ended with {server.process.returncode}: {server.log()[-400:]}"
        return
    with Caller(target, metadata=metadata) as caller:
        if not patiently(lambda: caller.is_serving(5), ANSWER_SECONDS):
            yield "health does not say SERVING to a new connection"
        try:
            if not patiently(lambda: is_idle(server), IDLE_SECONDS):
                yield "slots are used or requests wait, though nobody who reads has any"
        except OSError as error:
            yield f"the metrics page does not come: {error}"
        yield from canary.sings(caller)
        yield from transfers_work(caller, canary.session)


def afterwards(server: Server, target: str, canary: Canary, bounds: Bounds, metadata: Metadata) -> Iterator[str]:
    """With the attackers gone: the same bytes as before, memory is back, and SIGTERM ends the server in order."""
    if server.over_ceiling:
        yield f"it took more than {server.peak_bytes // MEBIBYTE} MiB and was ended"
        return
    if not server.running():
        yield f"the server has ended with {server.process.returncode}: {server.log()[-400:]}"
        return
    with Caller(target, metadata=metadata) as caller:
        yield from canary.sings(caller)
        yield from canary.session_is_intact(caller)
    more = server.peak_bytes - server.start_bytes
    if more > bounds.peak_bytes:
        yield f"it took {more // MEBIBYTE} MiB more than at the start; allowed: {bounds.peak_bytes // MEBIBYTE}"
    kept = bounds.kept_bytes
    if not patiently(lambda: server.resident_bytes() - server.start_bytes <= kept, 10.0):
        more = server.resident_bytes() - server.start_bytes
        yield f"it keeps {more // MEBIBYTE} MiB more than at the start; allowed: {kept // MEBIBYTE}"
    code = server.stop(EXIT_SECONDS)
    if code is None:
        yield f"SIGTERM does not end it within {EXIT_SECONDS:.0f} s"
    elif code != 0:
        yield f"SIGTERM ends it with {code}: {server.log()[-400:]}"
