"""The server under attack as a process: started with flags and limits, watched, asked for its metrics, and ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import owners

START_SECONDS = 60.0
# A server that takes more memory than this is ended, so that an attack that works does not take the machine along.
MEMORY_CEILING = 3 << 30


class StartFailure(Exception):
    """The server did not start; `code` is its exit code, negative for a signal, None if it was not ready in time."""

    def __init__(self, code: int | None, log: str) -> None:
        super().__init__(f"the server did not start (exit code {code}): {log[-600:]}")
        self.code = code
        self.log = log


@dataclass(frozen=True)
class Limits:
    """What the system gives the server. None: what we have."""

    files: int | None = None
    address_space: int | None = None
    threads: int | None = None  # beside those that its user has; root has no such limit, so a user of its own then
    wall_clock: Path | None = None  # libfaketime's file, whose offset the server's wall clock has
    group: Path | None = None  # a control group

    UNUSED_USER = 54321

    def command(self) -> list[str]:
        """What to run the server with: it ends when we do, and with the limits."""
        as_root = os.geteuid() == 0
        threads = self.threads if as_root or self.threads is None else self.threads + _threads_of(os.geteuid())
        values = (("nofile", self.files), ("as", self.address_space), ("nproc", threads))
        chosen = [f"--{name}={value}:{value}" for name, value in values if value is not None]
        user = [f"--reuid={self.UNUSED_USER}", "--clear-groups"] if self.threads is not None and as_root else []
        enter = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.group / "cgroup.procs")] if self.group else []
        return [*enter, *(["prlimit", *chosen, "--"] if chosen else []), "setpriv", "--pdeathsig=KILL", *user, "--"]

    def environment(self) -> dict[str, str]:
        """What the server's environment has besides ours."""
        if self.wall_clock is None:
            return {}
        return {
            "LD_PRELOAD": FAKETIME_LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(self.wall_clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def _threads_of(user: int) -> int:
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == user:
                count += len(list((folder / "task").iterdir()))
    return count


def memory_controller() -> Path | None:
    """The folder of our own memory control group, if we may make others below it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):  # version 1
            found = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
        elif not controllers and "memory" in _read(
            Path("/sys/fs/cgroup") / path.lstrip("/") / "cgroup.subtree_control"
        ):
            found = Path("/sys/fs/cgroup") / path.lstrip("/")
        else:
            continue
        if os.access(found, os.W_OK):
            return found
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A control group with so many bytes of memory. OSError where we may not make one."""
    parent = memory_controller()
    if parent is None:
        raise OSError("there is no memory control group that can be written to")
    group = parent / f"chaos-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        (group / ("memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


FAKETIME_LIBRARY = f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketimeMT.so.1"


class Server:
    """One server. `log` is where its standard error goes: a file of `work` unless it is given."""

    def __init__(
        self,
        binary: Path,
        checkpoint: Path,
        flags: Sequence[str],
        work: Path,
        *,
        limits: Limits | None = None,
        log: IO[bytes] | int | None = None,
    ) -> None:
        limits = limits or Limits()
        self._folder = work / f"server-{time.monotonic_ns()}"
        self._folder.mkdir()
        if limits.threads is not None:
            for folder in (work, self._folder):
                folder.chmod(0o777)
        command = [
            *limits.command(),
            str(binary),
            f"--model=books={checkpoint}",
            "--host=127.0.0.1",
            "--port=0",
            "--metrics_address=127.0.0.1:0",
            f"--port_file={self._folder / 'port'}",
            f"--metrics_port_file={self._folder / 'metrics_port'}",
            *flags,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PALIMPSEST_")}
        with (self._folder / "log").open("wb") as own_log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=own_log,
                stderr=own_log if log is None else log,
                env=environment | limits.environment(),
            )
        self.peak_bytes = 0
        self.over_ceiling = False
        self._ended = threading.Event()
        try:
            self.metrics_port = self._wait_for_port("metrics_port")
            self.port = self._wait_for_port("port")
        except BaseException:
            self.kill()
            raise
        self.target = f"127.0.0.1:{self.port}"
        self.start_bytes = self.resident_bytes()
        self._watcher = threading.Thread(target=self._watch_memory, daemon=True)
        self._watcher.start()

    def _wait_for_port(self, name: str) -> int:
        give_up = time.monotonic() + START_SECONDS
        path = self._folder / name
        while time.monotonic() < give_up:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return int(path.read_text())
            code = self.process.poll()
            if code is not None:
                raise StartFailure(code, self.log())
            time.sleep(0.02)
        raise StartFailure(None, self.log())

    def log(self) -> str:
        """What it has written to the log file."""
        return (self._folder / "log").read_text(errors="replace")

    def resident_bytes(self) -> int:
        """The memory that it has now; 0 when it has ended."""
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _watch_memory(self) -> None:
        while not self._ended.wait(0.05):
            now = self.resident_bytes()
            self.peak_bytes = max(self.peak_bytes, now)
            if now > MEMORY_CEILING:
                self.over_ceiling = True
                self.process.kill()
                return

    def running(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def metrics(self, timeout: float = 10.0) -> dict[str, float]:
        """The page of metrics, each series by its name and labels. OSError if it does not come in time."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=timeout)
        try:
            # A server without a file of owners does not look at this.
            connection.request("GET", "/metrics", headers=dict(owners.metadata(owners.WATCHER)))
            page = connection.getresponse().read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"the metrics page was cut short: {error!r}") from error
        finally:
            connection.close()
        found = re.findall(r"^(palimpsest_[a-z_]+(?:\{.*\})?|process_[a-z_]+) (\S+)$", page, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def metric(self, family: str, label: str = "", timeout: float = 10.0) -> float:
        """The sum of a family's series that have this label; 0 if there is none."""
        page = self.metrics(timeout)
        return sum(value for name, value in page.items() if name.partition("{")[0] == family and label in name)

    def stop(self, patience: float) -> int | None:
        """SIGTERM: its exit code, negative for a signal, or None if it still runs after that long."""
        self._ended.set()
        if self.running():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Ends it whatever it does, and forgets its files."""
        self._ended.set()
        if self.running():
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """Removes its files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def known_flags(binary: Path) -> set[str]:
    """The names of the flags that this server has."""
    help_text = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True, timeout=30).stdout
    return set(re.findall(r"--([a-z][a-z_]*)", help_text))
