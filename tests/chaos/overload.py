"""Ten times the load: three owners of equal share, of which one floods.

Phases: the engine with all slots full and nobody waiting (the bound for the time between tokens, measured before the
flood and after it, since a machine's speed drifts); the two quiet owners alone, each with three tenths of what the
machine gives; the same with the third owner's calls coming at ten times its share; and the checks. The load is made by
`palimpsest bench`, open loop, one process for each owner. They stand for machines elsewhere, so here, where they share
the server's processors, they have the lowest priority. And no processor idles in any phase: how fast one is depends on
what its neighbour does, which is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from . import owners, report, rpc
from .checks import PROMPT, Bounds, Canary, afterwards, describe, while_attacked
from .rpc import Caller, generate_request
from .server import Server, known_flags

SLOTS = 12
# Replies of different lengths: those of equal length, begun together, end together, and a full engine without arrivals
# would take all prompts at once where in the flood they come one by one between the others' tokens.
TOKENS = "--output_tokens=uniform:32:96"
PROMPTS = "--prompt_tokens=fixed:16"
FLOOD = 10
LOSS = 0.10
STRETCH = 0.10


class Bench:
    """A `palimpsest bench` that runs."""

    def __init__(self, program: Path, target: str, owner: str, work: Path, *load: str) -> None:
        self._report = work / f"{owner}-{time.monotonic_ns()}.json"
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        self._process = subprocess.Popen(
            [
                "nice", "-n", "19", "setpriv", "--pdeathsig=KILL", "--", program, "bench", f"--server={target}",
                PROMPTS, TOKENS, "--seed=1", "--timeout=120s", f"--json={self._report}", *load,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment | {"PALIMPSEST_TOKEN": owners.token(owner)},
        )  # fmt: skip

    def result(self) -> dict[str, Any]:
        """Its report, when it has ended."""
        self._process.wait()
        data: dict[str, Any] = json.loads(self._report.read_text())
        return data


class Busy:
    """Programs that keep each processor busy as long as nothing else wants it."""

    _SPIN = """
import os
os.setsid()  # a scheduling group of its own, which can be put behind all others
try:
    with open("/proc/self/autogroup", "w") as file:
        file.write("19")
except OSError:
    pass  # a kernel without such groups
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""

    def __init__(self) -> None:
        command = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, "-c", self._SPIN]
        self._processes = [subprocess.Popen(command) for _ in os.sched_getaffinity(0)]

    def stop(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
            process.wait()


class Pace:
    """What the server measured between two looks at its metrics, or more pairs of them."""

    def __init__(self, *looks: tuple[dict[str, float], dict[str, float]]) -> None:
        def grown(family: str) -> float:
            name = f"palimpsest_{family}"
            return sum(
                value - before.get(key, 0.0)
                for before, after in looks
                for key, value in after.items()
                if key.partition("{")[0] == name
            )

        def mean(family: str, count: str) -> float:
            return grown(family) / grown(count) if grown(count) else float("nan")

        seconds = "time_per_output_token_seconds"
        self.token_ms = 1000 * mean(f"{seconds}_sum", f"{seconds}_count")
        self.sequences = mean("batch_sequences_sum", "iterations_total")

    def __str__(self) -> str:
        return f"{self.token_ms:.2f} ms with {self.sequences:.1f} sequences in a batch"


class Prober(threading.Thread):
    """A caller of the flooding owner, which looks at each refusal."""

    def __init__(self, target: str, metadata: rpc.Metadata) -> None:
        super().__init__(daemon=True)
        self.refused = self.without_retry_info = self.served = 0
        self.unexpected: set[str] = set()
        self._target, self._metadata = target, metadata
        self._over = threading.Event()

    def run(self) -> None:
        """Until it is told to stop."""
        with Caller(self._target, metadata=self._metadata) as caller:
            while not self._over.wait(0.2):
                try:
                    caller.generate(generate_request(PROMPT, 4), timeout=120)
                    self.served += 1
                except grpc.RpcError as error:
                    self.refused += 1
                    self.without_retry_info += not rpc.carries_retry_info(error)
                    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                        self.unexpected.add(describe(error))

    def stop(self) -> None:
        """Waits for its last call."""
        self._over.set()
        self.join()


def main(arguments: list[str]) -> int:
    """0 when every bound is kept."""
    parser = argparse.ArgumentParser(prog="dev chaos overload_long", description=__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the flood goes on")
    parser.add_argument("--results", type=Path, help="write FILE.json and FILE.md")
    options = parser.parse_args(arguments)
    server_binary, client = options.bin / "palimpsest-server", options.bin / "palimpsest"
    has_owners = owners.FLAG in known_flags(server_binary)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        work = Path(folder)
        flags = [f"--slots={SLOTS}", f"--max_queue={4 * SLOTS}", "--threads=1", "--grace=2s"]
        if has_owners:
            flags.append(owners.write_tokens(work / "tokens.json", {"weight": 1, "max_queue": SLOTS}))
        server = Server(server_binary, options.checkpoint, flags, work)
        busy = Busy()
        try:
            return measure(server, client, work, options, has_owners)
        finally:
            busy.stop()
            server.kill()


def served(result: dict[str, Any]) -> float:
    """The part of a load's calls that was served."""
    return float(result["completed"] / max(1, result["requests"]))


def measure(server: Server, client: Path, work: Path, options: argparse.Namespace, has_owners: bool) -> int:
    """The phases and what they show."""
    mine = owners.metadata(owners.NAMES[0]) if has_owners else []
    others = owners.metadata(owners.NAMES[2]) if has_owners else []
    with Caller(server.target, metadata=mine) as caller:
        canary = Canary(caller)
    short = f"--duration={max(5.0, min(60.0, options.seconds / 5)):.0f}s"

    def fill() -> tuple[dict[str, Any], tuple[dict[str, float], dict[str, float]]]:
        before = server.metrics()
        # A few more than there are slots, so that none is empty while a caller thinks: the same batch as in the flood.
        many = f"--concurrency={SLOTS + SLOTS // 2}"
        result = Bench(client, server.target, owners.NAMES[0], work, many, short, "--warmup=24").result()
        return result, (before, server.metrics())

    full, looks_before = fill()
    capacity = full["requests_per_second"]

    quiet = [f"--rate={0.3 * capacity:.3f}", "--connections=4"]
    alone = [Bench(client, server.target, name, work, *quiet, short) for name in owners.NAMES[:2]]
    alone_results = [bench.result() for bench in alone]

    line = report.MemoryLine(server)
    prober = Prober(server.target, others)
    before = server.metrics()
    prober.start()
    long = f"--duration={options.seconds:.0f}s"
    flood_rate = f"--rate={FLOOD * capacity / 3:.3f}"
    benches = [Bench(client, server.target, name, work, *quiet, long) for name in owners.NAMES[:2]]
    benches.append(Bench(client, server.target, owners.NAMES[2], work, flood_rate, "--connections=16", long))
    results = [bench.result() for bench in benches]
    loaded = Pace((before, server.metrics()))
    prober.stop()
    line.stop()
    _, looks_after = fill()
    unloaded = Pace(looks_before, looks_after)
    drift = [Pace(looks).token_ms for looks in (looks_before, looks_after)]

    failures: list[str] = []
    # Calls come at random times, at the same rate in both phases: what is compared is the share of them that is served.
    kept = [served(results[n]) / max(served(alone_results[n]), 1e-9) for n in range(2)]
    medians = [(result["end_to_end_seconds"] or {}).get("p50", float("nan")) for result in (*alone_results, *results)]
    waits = [f"{1000 * median:.0f} ms" for median in medians[:4]]
    for name, share, result in zip(owners.NAMES, kept, results, strict=False):
        if share < 1 - LOSS:
            failures.append(f"{name} gets {share:.1%} of what it gets alone")
        if set(result["errors"]) - {"RESOURCE_EXHAUSTED"}:
            failures.append(f"{name} has errors: {result['errors']}")
    if set(results[2]["errors"]) - {"RESOURCE_EXHAUSTED"}:
        failures.append(f"the flood has other errors than refusals: {results[2]['errors']}")
    if loaded.token_ms > unloaded.token_ms * (1 + STRETCH):
        failures.append(f"{loaded} between tokens, {unloaded} unloaded")
    if prober.without_retry_info or prober.unexpected:
        failures.append(f"{prober.without_retry_info} refusals without RetryInfo; {sorted(prober.unexpected)}")
    flat, early, late = line.flat()
    if not flat:
        failures.append(f"memory grows: {early} MiB early, {late} MiB at the end")
    failures += while_attacked(server, server.target, canary, mine)
    failures += afterwards(server, server.target, canary, Bounds(), mine)

    rows = [
        ("owners", "three of equal share" if has_owners else "one: this server knows no owners"),
        ("requests per second with all slots full", f"{capacity:.1f}"),
        ("flood", f"{FLOOD} times its share for {options.seconds:.0f} s: {results[2]['requests']} calls"),
        ("refused of the flood", f"{sum(results[2]['errors'].values())}"),
        ("what the quiet owners keep of what they get alone", ", ".join(f"{share:.1%}" for share in kept)),
        ("their calls' median, alone and in the flood", f"{', '.join(waits[:2])}; {', '.join(waits[2:])}"),
        ("time between tokens, unloaded and in the flood", f"{unloaded}; {loaded}"),
        ("the former before the flood and after it", f"{drift[0]:.2f} ms, {drift[1]:.2f} ms"),
        ("refusals looked at, without RetryInfo", f"{prober.refused}, {prober.without_retry_info}"),
        ("memory early and at the end", f"{early} MiB, {late} MiB"),
        ("broken bounds", "; ".join(failures) or "none"),
    ]
    data = {
        "failures": failures, "capacity_requests_per_second": capacity, "kept": kept, "unloaded": vars(unloaded),
        "unloaded_before_and_after_ms": drift, "loaded": vars(loaded), "memory_bytes": line.bytes,
        "full": full, "alone": alone_results, "flood": results,
        "probes": {"refused": prober.refused, "without_retry_info": prober.without_retry_info, "served": prober.served},
    }  # fmt: skip
    command = f"./dev chaos overload_long --seconds {options.seconds:.0f}"
    report.write(options.results, f"Ten times the load, for {options.seconds:.0f} s", command, data, rows)
    return 1 if failures else 0
