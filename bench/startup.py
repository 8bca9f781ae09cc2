"""Measures how long the server takes from its start until it serves, and writes a report.

    .venv/bin/python bench/startup.py --bin build/release/bin

Two models: the bundled one, and a random checkpoint of 1.3 billion parameters in bf16 (2.6 GB, made in build/bench if
it is not there), whose files are in the page cache. The clock runs from the start of the process until its port file is
there, which the server writes once it is ready; health says SERVING by then. The first start, which finds memory that
the machine has not handed out before, is told apart.
"""

import argparse
import datetime
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

from run import ROOT, checkpoint, run, say

GOALS = {"books-5m": 0.3, "1.3b": 3.0}


def start(server: pathlib.Path, folder: pathlib.Path, slots: int) -> tuple[float, int, str]:
    """Seconds to ready, the largest resident size in MB, and what the server says of the model."""
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        command = [
            str(server),
            f"--model=bench={folder}",
            "--port=0",
            f"--port_file={work / 'port'}",
            "--metrics_address=",
            f"--slots={slots}",
            "--log_format=text",
        ]
        with (work / "log").open("w") as log:
            begin = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not (work / "port").exists():
                if process.poll() is not None:
                    raise RuntimeError((work / "log").read_text())
                time.sleep(0.001)
            seconds = time.monotonic() - begin
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
            process.wait()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        backend = re.search(r'backend="([^"]*)"', (work / "log").read_text())
        assert peak and backend
        return seconds, int(peak[1]) // 1000, backend[1]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the built binaries")
    parser.add_argument("--starts", type=int, default=7, help="starts of each model; default %(default)s")
    parser.add_argument("--slots", type=int, default=64, help="as the server's; default %(default)s")
    parser.add_argument("--out", type=pathlib.Path, help="report; default bench/results/MACHINE-DATE-startup.md")
    args = parser.parse_args()

    cpu_lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")), "unknown")
    date = datetime.date.today().isoformat()
    folders = {"books-5m": ROOT / "checkpoints" / "books-5m", "1.3b": checkpoint("1.3b")}
    rows = []
    for name, folder in folders.items():
        for file in folder.glob("*.safetensors"):  # into the page cache
            with file.open("rb") as weights:
                while weights.read(1 << 24):
                    pass
        say(f"{name}: {args.starts} starts")
        starts = [start(args.bin / "palimpsest-server", folder, args.slots) for _ in range(args.starts)]
        seconds = [row[0] for row in starts]
        rest = seconds[1:] or seconds
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
        rows.append(
            f"| {name} | {size:,.0f} MB | {seconds[0] * 1e3:,.0f} ms | {statistics.median(rest) * 1e3:,.0f} ms "
            f"| {min(rest) * 1e3:,.0f} to {max(rest) * 1e3:,.0f} ms | {GOALS[name] * 1e3:,.0f} ms "
            f"| {max(row[1] for row in starts):,} MB |"
        )
        backend = starts[0][2]
    command = " ".join(["bench/startup.py", *sys.argv[1:]])
    commit = run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).strip()
    slug = "-".join(cpu.lower().replace("(r)", "").split()[:3])
    out = args.out or ROOT / "bench" / "results" / f"{slug}-{date}-startup.md"
    lines = [
        f"# {cpu}, {date}: from start to ready",
        "",
        f"Commit {commit}, Linux {platform.release()}, {backend}, command `{command}`.",
        f"{args.starts} starts of each model with {args.slots} slots, files in the page cache.",
        "",
        "| model | weights | first start | median of the rest | range | goal | peak resident |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    out.write_text("\n".join(lines))
    say(f"wrote {out}")


if __name__ == "__main__":
    main()
