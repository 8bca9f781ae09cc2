"""Runs fuzz targets that were built with libFuzzer, each for a while, and says what came of it.

Inputs that reach new code are kept under build/fuzz/corpus, where the next run begins. Inputs that end a target, or
need too much time or memory, are findings, under build/fuzz/findings. Exits with 1 if there is one.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Target:
    """How one target is run."""

    name: str
    max_len: int = 4096  # bytes of one input
    # A whole server is in the process: its threads allocate and free whenever they like, so leaks are looked for by the
    # tests under AddressSanitizer, when the program ends; and its log is not worth reading.
    server: bool = False
    options: tuple[str, ...] = field(default=())


TARGETS = (
    Target("config"),
    Target("safetensors"),
    Target("weight_index", max_len=32768),
    Target("sentencepiece", max_len=16384),
    Target("vocabulary"),
    Target("snapshot", max_len=2048),
    Target("flag_file", max_len=8192),
    Target("auth_tokens", max_len=8192),
    Target("wire", max_len=2048),
    Target("rpc", max_len=2048, server=True),
    Target("http2", max_len=16384, server=True),
)


@dataclass
class Result:
    """What came of one run."""

    target: str
    executions: int = 0
    per_second: int = 0
    coverage: int = 0
    features: int = 0
    corpus: int = 0
    memory: int = 0
    findings: list[Path] = field(default_factory=list)
    failed: bool = False


def last(pattern: str, text: str) -> int:
    """The last number that the pattern finds; 0 if there is none."""
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def read(target: str, log: str) -> Result:
    """The numbers of a run, from what libFuzzer prints."""
    return Result(
        target,
        executions=last(r"stat::number_of_executed_units:\s*(\d+)", log) or last(r"(?m)^#(\d+)", log),
        per_second=last(r"stat::average_exec_per_sec:\s*(\d+)", log) or last(r"exec/s: (\d+)", log),
        coverage=last(r" cov: (\d+)", log),
        features=last(r" ft: (\d+)", log),
        corpus=last(r" corp: (\d+)", log),
        memory=last(r"stat::peak_rss_mb:\s*(\d+)", log) or last(r"rss: (\d+)Mb", log),
    )


def command(target: Target, binaries: Path, work: Path, seconds: int, rss_limit: int) -> list[str]:
    """The program and its options; new inputs go to the first folder."""
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={target.max_len}",
        f"-rss_limit_mb={rss_limit}",
        "-timeout=120",
        "-print_final_stats=1",
        f"-artifact_prefix={work / 'findings' / target.name}/",
        *(["-detect_leaks=0", "-close_fd_mask=2"] if target.server else []),
        *target.options,
    ]
    folders = [work / "corpus" / target.name, ROOT / "tests" / "fuzz" / "corpus" / target.name]
    return [str(binaries / f"fuzz_{target.name}"), *options, *map(str, folders)]


def run(target: Target, binaries: Path, work: Path, seconds: int, rss_limit: int) -> Result:
    """Runs one target; its output is in a file beside its findings."""
    findings = work / "findings" / target.name
    for folder in (findings, work / "corpus" / target.name):
        folder.mkdir(parents=True, exist_ok=True)
    known = set(findings.iterdir())
    suppressions = ROOT / "cmake" / "lsan_suppressions.txt"
    environment = {
        **os.environ,
        # Targets that read a file write it first: in memory that is five times as fast.
        **({"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}),
        "LSAN_OPTIONS": f"suppressions={suppressions}:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    log_path = work / f"{target.name}.log"
    with log_path.open("wb") as log:
        ended = subprocess.run(
            command(target, binaries, work, seconds, rss_limit), stdout=log, stderr=log, env=environment, check=False
        )
    result = read(target.name, log_path.read_text(errors="replace"))
    result.findings = sorted(set(findings.iterdir()) - known)
    result.failed = ended.returncode != 0 or bool(result.findings)
    return result


def table(results: list[Result]) -> str:
    """One line for each target."""
    lines = [f"{'target':14}{'executions':>12}{'/s':>8}{'edges':>8}{'features':>10}{'corpus':>8}{'MB':>6}  findings"]
    lines += [
        f"{r.target:14}{r.executions:12}{r.per_second:8}{r.coverage:8}{r.features:10}{r.corpus:8}{r.memory:6}"
        f"  {len(r.findings) if r.findings or not r.failed else 'failed'}"
        for r in results
    ]
    return "\n".join(lines)


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    names = [target.name for target in TARGETS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"targets; all by default: {', '.join(names)}")
    parser.add_argument("--seconds", type=int, default=60, help="how long each runs (60)")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once (1)")
    parser.add_argument("--rss_limit_mb", type=int, default=2560, help="memory that a target may take (2560)")
    parser.add_argument("--bin", type=Path, default=ROOT / "build" / "fuzz" / "bin", help="where the programs are")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(names)):
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [target for target in TARGETS if not arguments.names or target.name in arguments.names]
    work = arguments.bin.resolve().parent

    def one(target: Target) -> Result:
        result = run(target, arguments.bin.resolve(), work, arguments.seconds, arguments.rss_limit_mb)
        print(f"{target.name}: {result.executions} executions", file=sys.stderr, flush=True)
        return result

    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(one, chosen))
    print(table(results))
    for result in results:
        if not result.failed:
            continue
        print(f"\n{result.target}: its output is in {os.path.relpath(work / f'{result.target}.log')}")
        for path in result.findings:
            print(f"  {os.path.relpath(path)}")
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
