"""Measures ops, models and the served system on this machine and writes a report.

The machine's own bounds (memory bandwidth, float32 peak) are measured in the same run, and each figure is given with
its share of the bound that applies. Random checkpoints of about 30M, 125M and 350M parameters are made in build/bench.
"""

import argparse
import datetime
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "build" / "bench"

SIZES = ["30m", "125m", "350m"]  # presets of training.random_checkpoint


def say(text: str) -> None:
    """Tells the person who waits."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(command: list[str | pathlib.Path]) -> str:
    """The standard output of a command; its standard error goes to the terminal."""
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True).stdout


def checkpoint(size: str) -> pathlib.Path:
    """The folder of the random checkpoint of that size, made if it is not there with its tokenizer."""
    folder = CHECKPOINTS / size
    if not (folder / "tokenizer.model").exists():
        say(f"making a random checkpoint of {size} parameters")
        make = [sys.executable, "-m", "training.random_checkpoint", "--preset", size, "--out", folder]
        subprocess.run([str(c) for c in make], cwd=ROOT, check=True)
    return folder


def served(bin_folder: pathlib.Path, folder: pathlib.Path, streams: int, tokens: int) -> dict[str, Any]:
    """Throughput and latency through gRPC: a server of its own, and the load generator in a process beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        with (work / "log").open("w") as log:
            server = subprocess.Popen(
                [
                    bin_folder / "palimpsest-server",
                    f"--model=bench={folder}",
                    "--port=0",
                    f"--port_file={work / 'port'}",
                    "--metrics_address=",
                    f"--slots={streams}",
                ],
                stderr=log,
                stdout=log,
            )
        try:
            while not (work / "port").exists() or not (work / "port").read_text().strip():
                if server.poll() is not None:
                    raise RuntimeError((work / "log").read_text())
                time.sleep(0.05)
            port = (work / "port").read_text().strip()
            out = work / "bench.json"
            run(
                [
                    bin_folder / "palimpsest",
                    "--server",
                    f"127.0.0.1:{port}",
                    "bench",
                    "--concurrency",
                    str(streams),
                    "--requests",
                    str(streams * 2),
                    "--prompt-tokens",
                    "fixed:2",
                    "--output-tokens",
                    f"fixed:{tokens}",
                    "--json",
                    out,
                ]
            )
            result: dict[str, Any] = json.loads(out.read_text())
            return result
        finally:
            server.terminate()
            server.wait()


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.0f} %"


def model_section(size: str, math: str, data: dict[str, Any]) -> list[str]:
    """The report's part on one model."""
    machine = data["machine"]
    lines = [
        f"## {size}: {data['parameters'] / 1e6:.0f}M parameters, weights {data['weight_dtype']}, products {math}",
        "",
        f"Weights {data['weight_bytes'] / 1e6:.0f} MB, state {data['state_bytes'] / 1e6:.2f} MB a sequence.",
        f"Bounds in this run: {machine['read_gb_per_second']:.1f} GB/s reads, "
        + f"{machine['f32_gflop_per_second']:.0f} GFLOP/s float32, {data['threads']} threads, {data['simd']}.",
        "",
        "| | ms | tokens/s | share of bandwidth | share of f32 peak | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in data["decode"]:
        lines.append(
            f"| decode, batch {row['batch']} | {row['seconds'] * 1e3:.2f} | {row['tokens_per_second']:.0f} "
            f"| {percent(row['bytes_share'])} | {percent(row['flops_share'])} | {row['bound']} |"
        )
    for row in data["prefill"]:
        lines.append(
            f"| prefill, {row['tokens']} tokens | {row['seconds'] * 1e3:.2f} | {row['tokens_per_second']:.0f} "
            f"| | {percent(row['flops_share'])} | f32 flops |"
        )
    lines.append("")
    if position := data.get("position"):
        lines.append(
            f"Step at position {position['far_position']:,} against position 100: "
            f"{position['far_over_near']:.3f} times the time."
        )
    if engine := data.get("engine"):
        lines.append(
            f"Engine with {engine['streams']} streams: {engine['tokens_per_second']:.0f} tokens/s, "
            f"{percent(engine['share_of_forward'])} of the bare forward pass at that batch."
        )
    if grpc := data.get("served"):
        rate = grpc["generated_tokens_per_second"]
        lines.append(
            f"Through gRPC with {data['engine']['streams']} streams, client on the same machine: {rate:.0f} tokens/s, "
            f"{percent(rate / data['engine']['tokens_per_second'])} of the engine alone."
        )
    lines.append("")
    return lines


def mixers_section(ops: dict[str, Any]) -> list[str]:
    """One table of the mixers of 2102.11174: a step of 64 sequences, and a chunked prefill of 512 tokens."""
    rows: dict[str, dict[str, Any]] = {}
    for row in ops["benchmarks"]:
        kind, _, name = row["name"].removesuffix("/real_time").partition("/")
        if kind.startswith("mixer_"):
            rows.setdefault(name, {})[kind] = row
    if not rows:
        return []
    context = ops["context"]
    lines = [
        "## Mixers of 2102.11174",
        "",
        "16 layers of 8 heads of 32 (the paper's medium models), from projected q, k and v to the mixer's output: "
        "feature map, attention normalisation, memory. "
        + f"Bounds in this run: {context['read_bound']} reads, {context['update_bound']} updates, "
        + f"{context['f32_bound']} float32, {context['threads']} threads, {context['simd']}. "
        + "A step reads and writes every state (a window is read only); a share above 100 % came from a cache.",
        "",
        "| mixer | state, kB | step of 64, ms | share of bandwidth | of f32 | 512 tokens, ms | tokens/s | of f32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, kinds in rows.items():
        step, chunk = kinds["mixer_step_of_64"], kinds["mixer_chunks_of_512"]
        lines.append(
            f"| {name} | {step['state_bytes'] / 1e3:.0f} | {step['real_time']:.2f} | {percent(step['memory_share'])} "
            f"| {percent(step['f32_share'])} | {chunk['real_time']:.1f} | {chunk['tokens_per_second']:.0f} "
            f"| {percent(chunk['f32_share'])} |"
        )
    return [*lines, ""]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the built binaries")
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma separated, or none; default %(default)s")
    parser.add_argument("--ops", default=".", help="which ops, a regular expression; default all")
    parser.add_argument("--math", default="f32,bf16", help="arithmetic of the projections; default %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement; default %(default)s")
    parser.add_argument("--no-served", action="store_true", help="leave out the measurement through gRPC")
    parser.add_argument("--no-ops", action="store_true", help="leave out the ops")
    parser.add_argument(
        "--out", type=pathlib.Path, help="report (.md), and .json beside it; default bench/results/MACHINE-DATE.md"
    )
    args = parser.parse_args()

    cpu_lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")), "unknown")
    commit = run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).strip()
    date = datetime.date.today().isoformat()
    results: dict[str, Any] = {
        "cpu": cpu,
        "kernel": platform.release(),
        "commit": commit,
        "date": date,
        "command": " ".join(["./dev bench", *sys.argv[3:]]),
        "models": {},
    }

    if not args.no_ops:
        say("ops")
        results["ops"] = json.loads(
            run([args.bin / "kernels_bench", "--benchmark_format=json", f"--benchmark_filter={args.ops}"])
        )
    for size in args.sizes.split(",") if args.sizes != "none" else []:
        folder = checkpoint(size)
        for math in args.math.split(","):
            say(f"model {size}, {math}")
            # The far position is worth its minutes once.
            far = "100000" if size == "30m" and math == args.math.split(",")[0] else "0"
            lines = run(
                [
                    args.bin / "model_bench",
                    f"--checkpoint={folder}",
                    f"--math={math}",
                    f"--seconds={args.seconds}",
                    f"--far_position={far}",
                ]
            )
            data = json.loads(lines.splitlines()[-1])
            data["checkpoint"] = str(folder.relative_to(ROOT))
            if not args.no_served and math == args.math.split(",")[-1]:
                say(f"served {size}")
                data["served"] = served(args.bin, folder, streams=64, tokens=128)
            results["models"][f"{size} {math}"] = data

    slug = "-".join(cpu.lower().replace("(r)", "").split()[:3])
    out = args.out or ROOT / "bench" / "results" / f"{slug}-{date}.md"
    lines = [
        f"# {cpu}, {date}",
        "",
        f"Commit {commit}, Linux {platform.release()}, command `{results['command']}`.",
        "Every share is of a bound measured in the same run on the same threads. Raw numbers: the JSON file beside.",
        "",
    ]
    if ops := results.get("ops"):
        others = [row for row in ops["benchmarks"] if not row["name"].startswith("mixer_")]
        lines += ["## Ops", "", "| op | time | figure |", "|---|---|---|"] if others else []
        for row in others:
            figures = ", ".join(
                f"{name.replace('_', ' ')} {row[name]:.3g}"
                for name in row
                if name.endswith(("share", "per_second", "GBs", "GFLOPs")) and isinstance(row[name], (int, float))
            )
            lines.append(f"| {row['name']} | {row['real_time']:.3g} {row['time_unit']} | {figures} |")
        lines += [""] if others else []
        lines += mixers_section(ops)
    for name, data in results["models"].items():
        size, math = name.split()
        lines += model_section(size, math, data)
    out.write_text("\n".join(lines))
    out.with_suffix(".json").write_text(json.dumps(results, indent=1))
    say(f"wrote {out} and {out.with_suffix('.json').name}")


if __name__ == "__main__":
    main()
