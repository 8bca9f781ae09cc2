"""The proxies of deploy/ as processes in front of a server, with the files that are shipped."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from .rpc import Caller

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"


class Front:
    """A proxy that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def running(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None


def free_port() -> int:
    """A port of the loopback interface that nobody has at the moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def haproxy_command(program: Path, port: int, servers: Sequence[int], work: Path) -> tuple[list[str], dict[str, str]]:
    """haproxy.cfg with the first server by the environment, and a line at its end for each further one."""
    configuration = work / "haproxy.cfg"
    more = "".join(f"    server palimpsest-{n} 127.0.0.1:{other}\n" for n, other in enumerate(servers[1:], start=1))
    configuration.write_text((DEPLOY / "haproxy" / "haproxy.cfg").read_text() + more)
    environment = {
        "PALIMPSEST_PROXY_BIND": f"127.0.0.1:{port}",
        "PALIMPSEST_PROXY_SERVER": f"127.0.0.1:{servers[0]}",
    }
    return [str(program), "-db", "-f", str(configuration)], environment


def envoy_command(program: Path, port: int, servers: Sequence[int], work: Path) -> tuple[list[str], dict[str, str]]:
    """envoy.yaml with the addresses of here."""
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
    for wanted, given in (
        ("{address: 0.0.0.0, port_value: 50051}", f"{{address: 127.0.0.1, port_value: {port}}}"),
        ("{address: palimpsest, port_value: 50051}", f"{{address: 127.0.0.1, port_value: {servers[0]}}}"),
    ):
        if text.count(wanted) != 1:
            raise ValueError(f"deploy/envoy/envoy.yaml should have {wanted!r} once")
        text = text.replace(wanted, given)
    configuration = work / "envoy.yaml"
    configuration.write_text(text)
    options = ["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning"]
    return [str(program), "-c", str(configuration), *options], {}


COMMANDS = {"haproxy": haproxy_command, "envoy": envoy_command}


def make_certificate(work: Path) -> Path:
    """A file with a certificate for localhost, signed by itself, and its key, as HAProxy wants it."""
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    key, certificate, both = work / "key.pem", work / "certificate.pem", work / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    both.write_text(certificate.read_text() + key.read_text())
    return both


@contextlib.contextmanager
def start_front(
    kind: str, programs: dict[str, Path], servers: Sequence[int], work: Path, certificate: Path | None = None
) -> Iterator[Front]:
    """The proxy before these servers, which it has found healthy; with a certificate, HAProxy speaks TLS."""
    port = free_port()
    command, environment = COMMANDS[kind](programs[kind], port, servers, work)
    credentials = None
    if certificate is not None:
        environment["PALIMPSEST_PROXY_CERTIFICATE"] = str(certificate)
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with (work / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        )
    try:
        give_up = time.monotonic() + 20
        with Caller(f"localhost:{port}", credentials=credentials) as caller:
            while not caller.is_serving(2):
                if process.poll() is not None or time.monotonic() > give_up:
                    log_text = (work / f"{kind}.log").read_text(errors="replace")
                    raise OSError(f"{kind} does not serve: {log_text[-1500:]}")
                time.sleep(0.1)
        yield Front(process, port)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
