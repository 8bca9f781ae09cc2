"""Attacks below gRPC: connections, frames and headers."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import grpc

from . import http2, rpc
from .arena import ATTACKER, Arena
from .checks import PROMPT, describe, patiently
from .front import make_certificate, start_front
from .rpc import Caller, generate_request
from .server import Limits


def connection_flood(arena: Arena) -> None:
    """Connections that send the preface and then nothing, more than the server has descriptors for."""
    _flood(arena, 200)


def connection_flood_1024(arena: Arena) -> None:
    """The same at the usual soft limit of 1,024 descriptors."""
    _flood(arena, 1400)


def _flood(arena: Arena, count: int) -> None:
    idle: list[socket.socket] = []
    with contextlib.suppress(OSError):
        for _ in range(count):
            one = socket.socket()
            one.settimeout(1.0)
            one.bind((ATTACKER, 0))
            one.connect(arena.address)
            one.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
            idle.append(one)
    arena.numbers["connections"] = len(idle)
    time.sleep(1.0)
    for one in idle:
        one.close()
    time.sleep(0.5)


def half_requests(arena: Arena) -> None:
    """Connections to the metrics port that send half a request and stay; a scrape must come all the same."""
    held = []
    for _ in range(8):
        one = socket.create_connection(("127.0.0.1", arena.server.metrics_port), 5, (ATTACKER, 0))
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
        held.append(one)
    try:
        arena.server.metrics(timeout=10)
    except OSError as error:
        arena.require(False, f"the metrics page does not come while others hold half requests: {error}")
    for one in held:
        one.close()


def _during(arena: Arena, attack: float) -> None:
    """Somebody else's call, made while the attack runs, is answered before its deadline."""
    begin = time.monotonic()
    with Caller(arena.target) as caller:
        try:
            caller.generate(generate_request(PROMPT, 4), timeout=attack)
        except grpc.RpcError as error:
            arena.require(False, f"during the attack, somebody else's call ends in {describe(error)}")
    arena.numbers["others_seconds"] = max(arena.numbers.get("others_seconds", 0.0), round(time.monotonic() - begin, 3))


def rapid_resets(arena: Arena) -> None:
    """Three connections begin calls and reset them at once, as fast as they can."""
    end = time.monotonic() + arena.seconds
    sent = [0, 0, 0]

    def reset(index: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError), http2.Connection(arena.address, source=ATTACKER, timeout=2) as one:
                block = http2.header_block(http2.grpc_headers(rpc.GENERATE, one.authority))
                stream = 1
                while time.monotonic() < end:
                    burst = bytearray()
                    for _ in range(50):
                        burst += http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)
                        burst += http2.frame(http2.RST_STREAM, 0, stream, struct.pack(">I", http2.CANCEL))
                        stream += 2
                    one.send(bytes(burst))
                    sent[index] += 50
                    if not one.is_open():
                        break
            time.sleep(0.01)

    def others(index: int) -> None:
        if index < 3:
            reset(index)
        else:
            while time.monotonic() < end:
                _during(arena, 20.0)
                time.sleep(0.2)

    arena.crowd(4, others)
    arena.numbers["resets"] = sum(sent)


def continuation_flood(arena: Arena) -> None:
    """One header block of 264 MB in CONTINUATION frames that never end."""
    filler = b"".join(b"\x00" + bytes([6]) + b"x-%04d" % (n % 1000) + bytes([100]) + b"v" * 100 for n in range(150))
    chunk = http2.frame(http2.CONTINUATION, 0, 1, filler[: http2.MAX_FRAME])
    end = time.monotonic() + max(arena.seconds, 5)
    sent = 0
    with contextlib.suppress(OSError):
        one = arena.connect(timeout=3)
        block = http2.header_block(http2.grpc_headers(rpc.GENERATE, one.authority))
        one.send(http2.frame(http2.HEADERS, 0, 1, block))
        while sent < 264_000_000 and time.monotonic() < end:
            one.send(chunk)
            sent += len(chunk)
    arena.numbers["megabytes"] = sent // 1_000_000
    _during(arena, 20.0)


def ping_and_settings_flood(arena: Arena) -> None:
    """PING and SETTINGS frames whose answers nobody reads."""
    burst = (http2.frame(http2.PING, 0, 0, b"\0" * 8) + http2.frame(http2.SETTINGS, 0, 0)) * 500
    end = time.monotonic() + arena.seconds
    with contextlib.suppress(OSError):
        one = arena.connect(timeout=2)
        while time.monotonic() < end:
            one.send(burst)
    _during(arena, 20.0)


def malformed_bin_header(arena: Arena) -> None:
    """Calls whose -bin header or trailer is not base64, beside another client's stream over the same way."""
    with Caller(arena.target) as caller:
        stream = caller.stream(rpc.GENERATE, generate_request(PROMPT, 400))
        try:
            next(stream)
            for attempt in range(20):
                with contextlib.suppress(OSError), http2.Connection(arena.address, source=ATTACKER) as one:
                    bad = [("x-trace-bin", "not*base64" if attempt % 2 else "A")]
                    if attempt < 14:
                        one.call(rpc.HEALTH_CHECK, b"", bad)
                    else:
                        number = one.call(rpc.UPLOAD_SNAPSHOT, b"", end=False)
                        flags = http2.END_HEADERS | http2.END_STREAM
                        one.send(http2.frame(http2.HEADERS, flags, number, http2.header_block(bad)))
                    one.read_some(0.05)
            received = sum(1 for _ in stream)
            arena.require(received > 0, "the other client's stream ends early")
        except grpc.RpcError as error:
            arena.require(False, f"the other client's stream ends in {describe(error)}")


def headers_that_aborted(arena: Arena) -> None:
    """Headers over which gRPC before 1.53 is known to abort: odd values, and more than 8 KiB of others."""
    odd: list[list[http2.Header]] = [[("te", "x")], [("grpclb_client_stats", "x")], [(":scheme", "x")]]
    large: list[list[http2.Header]] = [[("x-large", "v" * 9000)], [(f"x-{n}", "v" * 100) for n in range(100)]]
    for strange in odd:
        for more in large:
            for extra in (strange + more, more + strange):
                with contextlib.suppress(OSError), http2.Connection(arena.address, source=ATTACKER) as one:
                    usual = http2.grpc_headers(rpc.HEALTH_CHECK, one.authority)
                    pseudo = [header for header in (*extra, *usual) if header[0].startswith(":")]
                    names = {name for name, _ in extra}
                    pseudo = [header for header in pseudo if header in extra or header[0] not in names]
                    plain = [header for header in (*extra, *usual) if not header[0].startswith(":")]
                    plain = [header for header in plain if header in extra or header[0] not in names]
                    block = http2.header_block(pseudo + plain)
                    one.send(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, block))
                    one.read_some(0.2)


def abrupt_ends(arena: Arena) -> None:
    """Clients that vanish in the middle of a stream, with a TCP reset or without a word."""
    request = generate_request(PROMPT, 500).SerializeToString()
    end = time.monotonic() + arena.seconds

    def vanish(index: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                one = http2.Connection(arena.address, source=ATTACKER)
                for _ in range(4):
                    one.call(rpc.GENERATE, request)
                one.read_some(arena.random.random() * 0.2)
                one.close(abruptly=index % 2 == 0)

    arena.crowd(4, vanish)


def damaged_frames(arena: Arena) -> None:
    """Frames that no client would send: wrong lengths, streams, flags and compression."""
    random = arena.random
    end = time.monotonic() + arena.seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), http2.Connection(arena.address, source=ATTACKER, timeout=2) as one:
            one.call(rpc.HEALTH_CHECK, b"")
            for _ in range(20):
                payload = random.randbytes(random.choice((0, 1, 4, 5, 8, 9, 200)))
                one.send(http2.frame(random.randrange(12), random.randrange(256), random.randrange(8), payload))
            one.read_some(0.05)


def replicas(arena: Arena) -> None:
    """Two replicas behind one proxy: calls on a session go to the one that has it, forks by their parent's name."""
    from palimpsest import Client, errors

    other = arena.start_another((), Limits())
    folder = arena.work / "replicas"
    folder.mkdir()
    try:
        with start_front("haproxy", arena.fronts, [arena.server.port, other.port], folder) as front:
            target = f"127.0.0.1:{front.port}"
            names = [f"route-{n}" for n in range(24)]
            for name in names:
                with Client(target, metadata=[("x-goog-request-params", f"session=sessions/{name}")]) as client:
                    made = client.create_session(name)
                    try:
                        client.generate_text(PROMPT, session=made, max_tokens=2)
                        (fork,) = client.fork_session(made)
                        client.generate_text(PROMPT, session=fork, max_tokens=2)
                        client.delete_session(fork)
                    except errors.NotFound as error:
                        arena.require(False, f"a call went to the other replica: {error}")
            here, there = (server.metric("palimpsest_sessions", "idle") for server in (arena.server, other))
            arena.require(here > 1 and there > 0, f"of {len(names)} sessions, {here} and {there} are on the replicas")
            for name in names:
                with Client(target) as client:
                    client.delete_session(f"sessions/{name}")
    finally:
        other.kill()


def serves_tls(arena: Arena) -> None:
    """Clients that speak TLS to the proxy are served; who speaks plain text there is not."""
    from palimpsest import Client

    folder = arena.work / "tls"
    folder.mkdir()
    certificate = make_certificate(folder)
    with start_front("haproxy", arena.fronts, [arena.server.port], folder, certificate) as front:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with Client(f"localhost:{front.port}", credentials=credentials) as client:
            said = client.generate_text(PROMPT, max_tokens=50, temperature=0)
            arena.require(len(said) > 20, "a reply over TLS is cut short")
        with Caller(f"127.0.0.1:{front.port}") as caller:
            arena.require(not caller.is_serving(3), "plain text is answered where TLS is due")


def serves_clients(arena: Arena) -> None:
    """Ordinary clients: unary calls, long streams, uploads and downloads, errors with their details."""
    from palimpsest import Client, errors

    with Client(arena.target) as client:
        said = "".join(chunk.text for chunk in client.generate(PROMPT, max_tokens=300, temperature=0))
        arena.require(len(said) > 100, "a stream of 300 tokens is cut short")
        again = client.generate_text(PROMPT, max_tokens=300, temperature=0)
        arena.require(said == again, "the same request has another reply")
        made = client.create_session("through-the-proxy")
        client.generate_text(PROMPT, session=made, max_tokens=8)
        client.delete_session(made)
        try:
            client.get_session("nobody")
            arena.require(False, "a session that is not there is found")
        except errors.NotFound:
            pass
        except errors.PalimpsestError as error:
            arena.require(False, f"a session that is not there gives {error!r}")
    streams = []
    caller = arena.caller()
    for _ in range(8):
        streams.append(caller.stream(rpc.GENERATE, generate_request(PROMPT, 200)))
    try:
        counts = [sum(1 for _ in stream) for stream in streams]
        arena.require(min(counts) > 0, "a stream beside others is empty")
    except grpc.RpcError as error:
        arena.require(False, f"a stream beside others ends in {describe(error)}")
    arena.require(patiently(lambda: caller.is_serving(), 10), "health does not answer")
