#!/usr/bin/env python3
"""The served system for `./dev gpu`: real servers on loopback, asked by the real command line.

Prints a line of JSON after each thing that it learns, with all that it knows by then; the last has everything.

  gpu_serve.py text --bin FOLDER --checkpoint FOLDER   a server on the device and one on the processor: whether both say
                                                       the same, and whether a session of one goes on at the other
  gpu_serve.py load --bin FOLDER --checkpoint FOLDER   `palimpsest bench` at some numbers of streams, with what the
                                                       server's metrics tell of that time

What was done before a failure is printed, too, with the reason under "failed"; the exit status is then 1.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

PROMPTS = [
    "It was a dark and stormy night, and the old house on the hill",
    "The captain looked at the sea and said",
    "My dear sister, I write to you from",
    "Once upon a time there was a king who",
]
TOKENS = 32  # of each reply that is compared


class Failed(Exception):
    """Why the rest was not done."""


def say(text: str) -> None:
    """Tells the person who waits."""
    print(text, file=sys.stderr, flush=True)


def tell(report: Row) -> None:
    """What is known by now."""
    print(json.dumps(report), flush=True)


def end_of(log: pathlib.Path, lines: int = 1) -> str:
    """The last lines of a server's log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


class Programs:
    """Runs `palimpsest` and `palimpsest-server`, until the time is over."""

    def __init__(self, folder: pathlib.Path, library_path: str, seconds: float):
        self.folder = folder
        self.end = time.monotonic() + seconds
        # Loopback is to be reached directly, whatever proxy the machine has.
        self.environment = {**os.environ, "LD_LIBRARY_PATH": library_path, "no_proxy": "127.0.0.1"}

    def left(self) -> float:
        """Seconds that are left."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise Failed("no time was left")
        return seconds

    def client(self, *arguments: str) -> str:
        """What the command line prints."""
        command = [str(self.folder / "palimpsest"), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=self.left(), env=self.environment, check=False
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"no time was left for palimpsest {' '.join(arguments)}") from None
        if done.returncode != 0:
            raise Failed(f"palimpsest {' '.join(arguments)}: exit status {done.returncode}, {done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def serving(self, report: Row, name: str, checkpoint: pathlib.Path, *flags: str) -> Iterator["Server"]:
        """A server on free ports of loopback. Ends it by SIGTERM and writes its exit status into the report."""
        with tempfile.TemporaryDirectory() as scratch:
            work = pathlib.Path(scratch)
            command = [str(self.folder / "palimpsest-server"), f"--model=served={checkpoint}", "--port=0", "--grace=5s"]
            command += [f"--port_file={work / 'port'}", f"--metrics_port_file={work / 'metrics'}"]
            command += ["--metrics_address=127.0.0.1:0", "--log_format=text", *flags]
            with (work / "log").open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
            try:
                ports = []
                for file in (work / "port", work / "metrics"):
                    while not file.exists() or not file.read_text().strip():
                        if process.poll() is not None:
                            raise Failed(f"{name}: the server did not start: {end_of(work / 'log')}")
                        self.left()
                        time.sleep(0.05)
                    ports.append(int(file.read_text()))
                yield Server(self, name, *ports)
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                report.setdefault("exit_statuses", {})[name] = process.poll()
                if process.poll() != 0:
                    raise Failed(f"{name}: exit status {process.poll()} after SIGTERM: {end_of(work / 'log')}")
            except Exception:
                say(end_of(work / "log", lines=20))
                raise
            finally:
                process.kill()
                process.wait()


class Server:
    """One that runs."""

    def __init__(self, programs: Programs, name: str, port: int, metrics_port: int):
        self.programs = programs
        self.name = name
        self.port = port
        self.metrics_port = metrics_port

    def ask(self, *arguments: str) -> str:
        """What the command line prints when it asks this server."""
        return self.programs.client(*arguments, f"--server=127.0.0.1:{self.port}")

    def greedy(self, *arguments: str) -> Row:
        """A greedy reply: its text, its tokens with the two most probable at each place, and the position then."""
        flags = ["--temperature=0", f"--max_tokens={TOKENS}", "--ignore_end_of_text", "--top_logprobs=2", "--logprobs"]
        messages = [json.loads(line) for line in self.ask("generate", *arguments, *flags, "--json").splitlines()]
        return {
            "text": "".join(message.get("text", "") for message in messages),
            "tokens": [token for message in messages for token in message.get("tokens", [])],
            "position": max(int(message.get("position", 0)) for message in messages),
        }

    def metrics(self) -> dict[str, float]:
        """Those of the model that have no other label."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=10)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()
        found = re.findall(r'^palimpsest_(\w+)\{model="served"\} (\S+)$', page, re.MULTILINE)
        return {name: float(value) for name, value in found}


# -------------------------------------------------------------------------------------------------------------- text


def compare(expected: Row, actual: Row) -> Row:
    """How far two replies agree and, where they part, by how much the expected one preferred its token to the next."""
    pairs = list(zip(expected["tokens"], actual["tokens"], strict=False))
    alike = next((i for i, (a, b) in enumerate(pairs) if a.get("id", 0) != b.get("id", 0)), len(pairs))
    row = {
        "tokens": len(expected["tokens"]),
        "alike": alike,
        "logprob_difference": max((abs(a["logprob"] - b["logprob"]) for a, b in pairs[:alike]), default=0.0),
        "text": expected["text"],
        "other_text": actual["text"],
        "positions": [expected["position"], actual["position"]],
    }
    if alike < len(pairs):
        best, second = expected["tokens"][alike]["top"]
        row["margin"] = best["logprob"] - second["logprob"]
    return row


def moved(origin: Server, other: Server, prompt: str) -> Row:
    """A session that begins at one server and goes on at both, by way of a file."""
    name = f"from-{origin.name}"
    origin.ask("session", "create", name)
    origin.greedy(prompt, f"--session={name}")
    with tempfile.TemporaryDirectory() as scratch:
        state = f"{scratch}/state"
        origin.ask("snapshot", "create", name, name)
        origin.ask("snapshot", "download", name, state)
        other.ask("snapshot", "upload", state, name)
    other.ask("session", "create", name, f"--from_snapshot={name}")
    return compare(origin.greedy(f"--session={name}"), other.greedy(f"--session={name}"))


def text(programs: Programs, report: Row, checkpoint: pathlib.Path, backend: str) -> None:
    """What a server on the device says, against one on the processor. Both in float32: bf16 rounds to near ties."""
    flags = ["--math=f32", "--slots=4"]
    with (
        programs.serving(report, "processor", checkpoint, "--backend=cpu", *flags) as processor,
        programs.serving(report, "device", checkpoint, f"--backend={backend}", *flags) as device,
    ):
        report |= {"replies": [], "sessions": []}
        for prompt in PROMPTS:
            report["replies"].append({"prompt": prompt, **compare(processor.greedy(prompt), device.greedy(prompt))})
            tell(report)
        for origin, other in ((processor, device), (device, processor)):
            names = {"begun_on": origin.name, "continued_on": other.name}
            report["sessions"].append(names | moved(origin, other, PROMPTS[0]))
            tell(report)
        for row in [*report["replies"], *report["sessions"]]:
            say(f"{row['alike']} of {row['tokens']} tokens alike")


# -------------------------------------------------------------------------------------------------------------- load


def load(
    programs: Programs, report: Row, checkpoint: pathlib.Path, backend: str, numbers: list[int], seconds: float
) -> None:
    """Throughput and latency by number of streams, and what the engine's thread did in that time."""
    report |= {"streams": []}
    flags = [f"--backend={backend}", f"--slots={max(numbers)}"]
    with programs.serving(report, "device", checkpoint, *flags) as server:
        model = json.loads(server.ask("models", "list", "--json").splitlines()[0])
        report |= {"backend": model["backend"], "parameters": int(server.metrics()["model_parameters"])}
        for streams in numbers:
            bench = ["bench", f"--concurrency={streams}", "--connections=4", "--warmup=0", "--json=-"]
            bench += ["--prompt_tokens=uniform:32:128"]
            server.ask(*bench, f"--requests={streams}", "--output_tokens=fixed:16")  # records graphs of this size
            before = server.metrics()
            loaded = json.loads(server.ask(*bench, f"--duration={seconds:g}s", "--output_tokens=fixed:256"))
            after = server.metrics()
            report["streams"].append(row_of(streams, loaded, {name: after[name] - before[name] for name in before}))
            tell(report)
            say(f"{streams} streams: {loaded['generated_tokens_per_second']:.0f} tokens/s")
            if loaded["errors"]:
                raise Failed(f"{streams} streams: {loaded['errors']}")


def row_of(streams: int, loaded: Row, grown: dict[str, float]) -> Row:
    """Figures of one load: what the client saw, and by how much the server's metrics grew."""
    iterations = grown["iterations_total"]
    within = grown["iteration_seconds_sum"]
    row = {
        "streams": streams,
        "seconds": loaded["seconds"],
        "requests": loaded["completed"],
        "tokens_per_second": loaded["generated_tokens_per_second"],
        "first_token_seconds": loaded["time_to_first_token_seconds"],
        "per_token_seconds": loaded["time_per_output_token_seconds"],
        "iterations": iterations,
        "iteration_seconds": within / iterations,
        "sequences": grown["batch_sequences_sum"] / iterations,
        "between_iterations_share": 1 - within / loaded["seconds"],
    }
    if "device_wait_seconds_total" in grown:  # not on a processor
        recorded = grown["device_recorded_passes_total"]
        row["device_wait_share"] = grown["device_wait_seconds_total"] / within
        row["recorded_share"] = recorded / (recorded + grown["device_direct_passes_total"])
    return row


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["text", "load"])
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the programs")
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="folder of the model")
    parser.add_argument("--backend", default="cuda", help="of the server on the device; default %(default)s")
    parser.add_argument("--library_path", default="", help="where the programs find their libraries")
    parser.add_argument("--seconds", type=float, default=600, help="time for all; default %(default)s")
    parser.add_argument("--streams", default="1,16,64,256", help="numbers of streams of a load; default %(default)s")
    parser.add_argument("--load_seconds", type=float, default=8, help="requests begin for so long; default %(default)s")
    args = parser.parse_args()
    report: Row = {}
    try:
        programs = Programs(args.bin, args.library_path, args.seconds)
        if args.what == "text":
            text(programs, report, args.checkpoint, args.backend)
        else:
            numbers = [int(number) for number in args.streams.split(",")]
            load(programs, report, args.checkpoint, args.backend, numbers, args.load_seconds)
    except Exception as failure:  # whatever it is: what was measured before is worth telling
        traceback.print_exc()
        report["failed"] = str(failure)
    tell(report)
    return 1 if "failed" in report else 0


if __name__ == "__main__":
    sys.exit(main())
