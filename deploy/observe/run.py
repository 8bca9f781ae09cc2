"""Runs a server with a load and a real Prometheus over it, and checks that everything we ship to watch it has data.

Every query of every dashboard, console and recording rule must return data with the labels it is meant to have, and
every series that an alert looks at must be there. With --check it ends then; without, it says where to look and stays
until it is interrupted.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from checks import Prometheus, check_all
from render import DEPLOY, rendered

HERE = Path(__file__).resolve().parent
SKIPPED = 77  # what CTest takes for a test that was skipped
PATIENCE = 45.0  # seconds until everything must have data
PR_SET_PDEATHSIG = 1


class Interrupted(Exception):
    """SIGINT or SIGTERM has come."""


class Failed(Exception):
    """Something did not start, or ended before its time."""


def say(text: str) -> None:
    """A line for who watches."""
    print(f"observe: {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    """A port of the loopback interface that nobody has at the moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Child:
    """A process of ours, which logs to a file and ends when we do, however we end."""

    def __init__(self, name: str, command: list[str], work: Path) -> None:
        self.name = name
        self.log = work / f"{name}.log"
        parent = os.getpid()
        libc = ctypes.CDLL(None)

        def follow_parent() -> None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)

        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=follow_parent
            )

    def check(self) -> None:
        """Fails if it has ended."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise Failed(f"{self.name} ended with exit code {self.process.returncode}; its log ends:\n{tail}")

    def stop(self) -> None:
        """Ends it, by force if it takes longer than ten seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def wait_for(path: Path, child: Child) -> str:
    """The text of a file that the child is to write."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        if path.exists():
            return path.read_text().strip()
        child.check()
        time.sleep(0.02)
    raise Failed(f"{child.name} did not write {path.name} within 30 s")


def write_configuration(work: Path, metrics_port: str, machine: str) -> Path:
    """Our prometheus.yml with the ports of here, a scrape each second, and our rules beside it."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for wanted, given in (
        ("palimpsest:9464", f"127.0.0.1:{metrics_port}"),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("targets: [alertmanager:9093]", "targets: []"),
    ):
        if text.count(wanted) != 1:
            raise Failed(f"deploy/prometheus/prometheus.yml should have {wanted!r} once")
        text = text.replace(wanted, given)
    shutil.copytree(DEPLOY / "prometheus" / "rules", work / "rules")
    if machine:
        (work / "rules" / "machine.yml").write_text(machine)
    path = work / "prometheus.yml"
    path.write_text(text)
    return path


def take_screenshots(base: str, folder: Path, work: Path) -> None:
    """Pictures of the consoles, by a browser without a window."""
    folder.mkdir(parents=True, exist_ok=True)
    for page, height in (("service", 1520), ("state", 1430)):
        path = folder / f"console_{page}.png"
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={work / 'browser'}", "--virtual-time-budget=8000"),
                *(f"--window-size=1440,{height}", f"--screenshot={path}"),
                f"{base}/consoles/{page}.html?range=300",
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        say(f"wrote {path}")


def stay(children: list[Child], seconds: float | None = None) -> None:
    """Sleeps, but not if one of them ends."""
    give_up = time.monotonic() + seconds if seconds is not None else None
    while give_up is None or time.monotonic() < give_up:
        for child in children:
            child.check()
        time.sleep(0.2)


def observe(arguments: argparse.Namespace, work: Path, children: list[Child]) -> int:
    """Starts, checks, stays. The children it has started are in `children` at any time."""
    stale = [str(path) for path, text in rendered().items() if path.read_text() != text]
    if stale:
        raise Failed(f"{', '.join(stale)}: not what deploy/observe/render.py makes; run it")

    def start(name: str, *command: object) -> Child:
        children.append(Child(name, [str(word) for word in command], work))
        return children[-1]

    machine = ""
    measure = arguments.bin / "measure_machine"
    if measure.exists():
        say("measuring this machine, so that step time has a bound to be held against")
        machine = subprocess.run([measure], check=True, capture_output=True, text=True, timeout=60).stdout

    server = start(
        "server",
        *(arguments.bin / "palimpsest-server", f"--model=books={arguments.checkpoint}", "--slots=8", "--grace=2s"),
        *("--port=0", f"--port_file={work / 'port'}"),
        *("--metrics_address=127.0.0.1:0", f"--metrics_port_file={work / 'metrics_port'}"),
    )
    address = f"127.0.0.1:{wait_for(work / 'port', server)}"
    metrics_port = wait_for(work / "metrics_port", server)
    configuration = write_configuration(work, metrics_port, machine)
    base = f"http://127.0.0.1:{free_port()}"
    prometheus = start(
        "prometheus",
        *("prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={work / 'data'}"),
        *(f"--web.listen-address={base.removeprefix('http://')}", "--log.level=warn"),
        f"--web.console.templates={DEPLOY / 'prometheus' / 'consoles'}",
    )
    start("load", sys.executable, HERE / "load.py", "--server", address)
    say(f"server on {address}, Prometheus on {base}, load running; waiting for data")

    asked = Prometheus(base)
    give_up = time.monotonic() + PATIENCE
    while True:
        stay(children, 2)
        report = check_all(asked, with_machine=bool(machine))
        if not report.problems or time.monotonic() > give_up:
            break
    for problem in report.problems:
        say(f"FAIL  {problem}")
    if report.problems:
        say(f"{len(report.problems)} problems after {PATIENCE:.0f} s; Prometheus' log ends:")
        print(prometheus.log.read_text(errors="replace")[-2000:], file=sys.stderr)
        return 1
    say(f"ok: {report.summary()}")

    if arguments.screenshots is not None:
        say("letting the load run for five minutes before the pictures")
        stay(children, 300)
        take_screenshots(base, arguments.screenshots, work)
    elif not arguments.check:
        print(
            f"""
  consoles    {base}/consoles/service.html
              {base}/consoles/state.html
  alerts      {base}/alerts
  Prometheus  {base}/graph
  metrics     http://127.0.0.1:{metrics_port}/metrics
  server      {address}    (palimpsest --server {address} generate "Once upon a time")

Grafana's dashboards are deploy/grafana/dashboards/*.json. Ctrl-C ends it all.""",
            flush=True,
        )
        stay(children)
    return 0


def main() -> int:
    """Runs, and leaves nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="folder of palimpsest-server")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the model to serve")
    parser.add_argument("--check", action="store_true", help="end when everything has been checked")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the consoles; takes five minutes")
    arguments = parser.parse_args()
    for program in ("prometheus", *(["chromium"] if arguments.screenshots else [])):
        if shutil.which(program) is None:
            say(f"{program} is not installed: skipped (Debian's package is {program})")
            return SKIPPED

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    children: list[Child] = []
    work = Path(tempfile.mkdtemp(prefix="palimpsest-observe-"))
    try:
        return observe(arguments, work, children)
    except Failed as problem:
        say(str(problem))
        return 1
    except Interrupted:
        return 0 if not arguments.check else 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(children):
            child.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
