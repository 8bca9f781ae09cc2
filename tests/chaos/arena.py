"""Where a campaign takes place: the server, the way to it, and what the attackers have open until it is over."""

from __future__ import annotations

import contextlib
import random
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from .checks import Canary
from .http2 import Connection
from .rpc import Caller
from .server import Limits, Server

# Attackers have an address of their own, so that what bounds a peer leaves the others alone.
ATTACKER = "127.0.0.66"


class Arena:
    """What an attack gets. `address` is where attackers dial: the server itself, or the proxy in front of it."""

    def __init__(
        self,
        server: Server,
        port: int,
        canary: Canary,
        seconds: float,
        work: Path,
        start: Callable[..., Server],
        fronts: dict[str, Path],
    ) -> None:
        self.server = server
        self.address = ("127.0.0.1", port)
        self.target = f"127.0.0.1:{port}"
        self.canary = canary
        self.seconds = seconds
        self.work = work
        self.fronts = fronts
        self.random = random.Random(1)
        self.failures: list[str] = []
        self.numbers: dict[str, float] = {}
        self._start = start
        self._open = contextlib.ExitStack()

    def require(self, condition: bool, otherwise: str) -> None:
        """Records a failure unless the condition holds."""
        if not condition and otherwise not in self.failures:
            self.failures.append(otherwise)

    def connect(self, *, window: int | None = None, timeout: float = 10.0) -> Connection:
        """An attacker's connection, which stays until the campaign is over."""
        return self._open.enter_context(Connection(self.address, window=window, timeout=timeout, source=ATTACKER))

    def caller(self) -> Caller:
        """A well-behaved client, which stays until the campaign is over."""
        return self._open.enter_context(Caller(self.target))

    def start_another(self, flags: Sequence[str], limits: Limits) -> Server:
        """A second server, which the attack must end. StartFailure."""
        return self._start(flags, limits)

    def crowd(self, count: int, act: Callable[[int], None]) -> None:
        """Runs `act` in so many threads at once; an attack's own errors are its end and no failure."""

        def run(index: int) -> None:
            with contextlib.suppress(OSError):
                act(index)

        threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def leave(self) -> None:
        """Closes what the attackers have open."""
        self._open.close()


def raise_own_file_limit() -> None:
    """Floods need descriptors of ours too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
