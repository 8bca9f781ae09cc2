#!/usr/bin/env python3
"""Everything that wants a GPU: device tests, sanitizers, benchmarks, a served system, and a report of them.

  ./dev gpu [STAGE...]   stages: see STAGES, or all (the default); each ends within 9 minutes
  ./dev gpu --dry-run    what would run, with its time limits
  ./dev gpu --pack       where there is no GPU: builds, and packs the programs into build/gpu/pack.tar.xz, for a machine
                         with a driver and Python alone (PyTorch, too, for the comparison with fla)
  ./dev gpu serve --backend=cpu   where there is no GPU: rehearses the stage on the processor, with smaller weights

Programs come from that pack if it is there, else from build/cuda, else they are built. After each stage the report and
its numbers are written anew: OUT/<gpu>-<date>.md and .json, where OUT is bench/results or what --out says. A rehearsal
writes to build/gpu/rehearsal.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from typing import Any

import gpu_report

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "cuda" / "bin"
PACK = ROOT / "build" / "gpu" / "pack.tar.xz"
UNPACKED = ROOT / "build" / "gpu" / "unpacked"
BOOKS = ROOT / "checkpoints" / "books-5m"
STAGE_SECONDS = 540
PACK_LIMIT = 64 << 20
PROGRAMS = ["device_bench", "model_bench", "palimpsest-server", "palimpsest"]  # beside the device tests
FLA = ["fla-core==0.6.0", "einops==0.8.2"]  # the comparison; PyTorch and Triton are the machine's
CUBLAS = "libcublasLt.so.13"
# Libraries that come with the system or a CUDA toolkit. glibc cannot come from elsewhere, and our libstdc++ would help
# nobody: it needs glibc 2.36, and systems with that have a libstdc++ as new.
GLIBC = ("linux-vdso", "ld-linux", "libc.", "libm.", "libdl.", "librt.", "libpthread.", "libresolv.")
NOT_PACKED = (*GLIBC, "libstdc++", "libgcc_s", CUBLAS)


def say(text: str) -> None:
    """Tells the person who waits."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def die(text: str) -> None:
    """Ends with a message."""
    raise SystemExit(f"dev gpu: {text}")


@dataclasses.dataclass
class Step:
    """One program that a stage runs."""

    name: str
    command: list[str]
    seconds: int  # it is stopped after
    json: bool = False  # its standard output is
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Machine:
    """Where programs and tools are on this machine."""

    bin: pathlib.Path
    libraries: list[pathlib.Path]
    site: pathlib.Path | None  # of Python packages that were packed
    commit: str
    backend: str = "cuda"  # cpu: for a rehearsal

    def program(self, name: str, *arguments: str) -> list[str]:
        """The command that runs one of ours."""
        return [str(self.bin / name), *arguments]

    def environment(self) -> dict[str, str]:
        """Where our programs find their libraries."""
        paths = [*map(str, self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"LD_LIBRARY_PATH": ":".join(p for p in paths if p)}

    def device_tests(self) -> list[str]:
        """The programs that test on a device."""
        return sorted(p.name for p in self.bin.glob("*_test_on_device"))


# ------------------------------------------------------------------------------------------------------------ stages


def test_steps(machine: Machine) -> list[Step]:
    """All device tests."""
    return [
        Step(name, machine.program(name, "--gtest_brief=1"), 150, environment=machine.environment())
        for name in machine.device_tests()
    ]


def sanitizer_steps(machine: Machine) -> list[Step] | str:
    """Each tool over the benchmark's tiny run, whose arrays are the device's own; memcheck over some tests, too."""
    sanitizer = find_tool("compute-sanitizer")
    if sanitizer is None:
        return "compute-sanitizer is not on PATH or in /usr/local/cuda/bin: it comes with CUDA toolkits"
    steps = []
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *machine.program("device_bench", "--tiny")]
        steps.append(Step(f"{tool}: device_bench", command, 90, environment=machine.environment()))
    for name in ("norm", "window_attention", "short_conv"):
        command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"]
        command += machine.program(f"{name}_test_on_device", "--gtest_brief=1")
        steps.append(Step(f"memcheck: {name}", command, 60, environment=machine.environment()))
    return steps


def bench_steps(machine: Machine) -> list[Step]:
    """The ops against the bounds of the device."""
    return [
        Step(
            "device_bench",
            machine.program("device_bench", "--seconds=420"),
            520,
            json=True,
            environment=machine.environment(),
        )
    ]


def random_weights(preset: str) -> tuple[pathlib.Path, list[Step]]:
    """The folder of a model with random weights, and what makes it if it is not there."""
    folder = ROOT / "build" / "bench" / preset
    make = [sys.executable, "-m", "training.random_checkpoint", "--preset", preset, "--out", str(folder)]
    there = (folder / "config.json").exists()
    return folder, [] if there else [Step(f"random weights, {preset}", make, 120)]


def no_random_weights() -> str | None:
    """Why there can be none."""
    if importlib.util.find_spec("numpy") is None:
        return f"{sys.executable} has no numpy, which makes the random weights"
    return None


def model_steps(machine: Machine) -> list[Step] | str:
    """Whole models: the bundled one, and random weights in the shape of one of 1.3 billion parameters."""
    if reason := no_random_weights():
        return reason
    large, steps = random_weights("1.3b")

    def measure(name: str, folder: pathlib.Path) -> Step:
        flags = ["--backend=cuda", f"--checkpoint={folder}", "--batches=1,8,64,256", "--far_position=20000"]
        command = machine.program("model_bench", *flags)
        return Step(name, command, 200, json=True, environment=machine.environment())

    return [*steps, measure("1.3b", large), measure("books-5m", BOOKS)]


def serve_steps(machine: Machine) -> list[Step]:
    """What servers on both backends say, then load: on the bundled model, and on random weights."""

    def serve(name: str, what: str, folder: pathlib.Path, seconds: int) -> Step:
        # The library path is for our programs alone: Python has libraries of its own.
        library_path = machine.environment()["LD_LIBRARY_PATH"]
        command = [sys.executable, str(ROOT / "tools" / "gpu_serve.py"), what, f"--bin={machine.bin}"]
        command += [f"--checkpoint={folder}", f"--backend={machine.backend}", f"--library_path={library_path}"]
        return Step(name, [*command, f"--seconds={seconds - 25}"], seconds, json=True)  # less what stopping may take

    first = [serve("text", "text", BOOKS, 90), serve("books-5m", "load", BOOKS, 150)]
    if reason := no_random_weights():
        say(f"{reason}: the bundled model alone is served")
        return first
    preset = "1.3b" if machine.backend == "cuda" else "30m"
    large, make = random_weights(preset)
    return [*first, *make, serve(preset, "load", large, 180)]


def fla_steps(machine: Machine) -> list[Step] | str:
    """fla's kernels at the same shapes."""
    path = [str(machine.site)] if machine.site else []
    sys.path[:0] = path
    missing = [name for name in ("torch", "triton", "fla", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}: pack fla with --pack; PyTorch is to be there"
    path.append(os.environ.get("PYTHONPATH", ""))
    command = [sys.executable, str(ROOT / "bench" / "fla_bench.py"), "--seconds=420"]
    environment = {"PYTHONPATH": ":".join(p for p in path if p)}
    return [Step("fla_bench", command, 520, json=True, environment=environment)]


@dataclasses.dataclass
class Stage:
    """A part of `./dev gpu` that can run by itself."""

    name: str
    what: str
    steps: Callable[[Machine], list[Step] | str]  # or why there are none


# In the order in which they run. A new one is a row here, and a section in gpu_report.py.
STAGES = [
    Stage("tests", "ops against their references, models against their goldens, the engine", test_steps),
    Stage("sanitizers", "compute-sanitizer: memcheck, racecheck, initcheck, synccheck", sanitizer_steps),
    Stage("bench", "device_bench: ops against the measured bounds", bench_steps),
    Stage("models", "model_bench: whole models on the GPU, decode, prefill and the engine", model_steps),
    Stage("serve", "palimpsest-server on the GPU and on the processor, and the load it bears", serve_steps),
    Stage("fla", "flash-linear-attention's Triton kernels at the same shapes", fla_steps),
]

# -------------------------------------------------------------------------------------------------------- the machine


def find_tool(name: str) -> str | None:
    """A tool of a CUDA toolkit."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def output_of(command: list[str]) -> str:
    """What it prints; nothing if it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def cublas_folders() -> list[pathlib.Path]:
    """Where the vendor's library is, if the loader would not find it by itself."""
    if CUBLAS in output_of(["/sbin/ldconfig", "-p"]):
        return []
    spec = importlib.util.find_spec("nvidia")
    roots = [pathlib.Path(p) for p in (spec and spec.submodule_search_locations) or []]
    folders = [path for root in roots for path in root.glob("*/lib")]
    folders += [path for cuda in sorted(pathlib.Path("/usr/local").glob("cuda*")) for path in cuda.glob("lib*")]
    folders += pathlib.Path(ROOT / "build" / "cuda-toolkit").glob("lib/python3*/site-packages/nvidia/cu13/lib")
    found = [folder for folder in folders if (folder / CUBLAS).exists()]
    if not found:
        die(f"{CUBLAS} is nowhere: install a CUDA 13 toolkit or the Python package nvidia-cublas")
    return found[:1]


def head() -> str:
    """The commit of this checkout."""
    return output_of(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]).strip() or "unknown"


def find_machine() -> Machine:
    """Programs from the pack, from the build, or built now."""
    if PACK.exists():
        stamp = UNPACKED / ".stamp"
        mark = str(PACK.stat().st_mtime_ns)
        if not stamp.exists() or stamp.read_text() != mark:
            say(f"unpacking {PACK.relative_to(ROOT)}")
            shutil.rmtree(UNPACKED, ignore_errors=True)
            with tarfile.open(PACK, "r:xz") as pack:
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                pack.extractall(UNPACKED, **safely)
            stamp.write_text(mark)
        commit = json.loads((UNPACKED / "pack.json").read_text())["commit"]
        if (here := head()) not in (commit, "unknown"):
            say(f"the pack is of commit {commit}, this checkout is {here}: --pack makes a new one")
        return Machine(UNPACKED / "bin", [UNPACKED / "lib", *cublas_folders()], UNPACKED / "site", commit)
    if not all((BUILT / name).exists() for name in PROGRAMS):
        missing = [tool for tool in ("cmake", "ninja", "ccache", "g++") if shutil.which(tool) is None]
        if missing:
            die(f"nothing is packed in {PACK.relative_to(ROOT)} or built, and building needs {', '.join(missing)}")
        say("building")
        subprocess.run([str(ROOT / "dev"), "cuda"], check=True)
    return Machine(BUILT, cublas_folders(), None, head())


def pack() -> None:
    """Puts programs, their libraries and fla into one file. The programs are much alike, so it is small."""
    folder = PACK.parent / "packing"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    for program in [*BUILT.glob("*_test_on_device"), *(BUILT / name for name in PROGRAMS)]:
        subprocess.run(["strip", "-o", str(folder / "bin" / program.name), str(program)], check=True)
        listed = subprocess.run(["ldd", str(program)], stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in listed.splitlines():
            name, _, place = line.strip().partition(" => ")
            if place and not name.startswith(NOT_PACKED):
                if place == "not found":
                    die(f"{program.name} lacks {name}")
                shutil.copy(place.split(" (")[0], folder / "lib" / name)
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--target", str(folder / "site"), *FLA], check=True)
    (folder / "pack.json").write_text(json.dumps({"commit": head(), "date": datetime.date.today().isoformat()}))
    filters = [{"id": 0x21, "preset": 6, "dict_size": 128 << 20}]  # LZMA2, which sees all programs at once
    with lzma.open(PACK, "wb", filters=filters) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    shutil.rmtree(folder)
    size = PACK.stat().st_size
    if size > PACK_LIMIT:
        die(f"{PACK.relative_to(ROOT)} has {size >> 20} MiB, more than {PACK_LIMIT >> 20}")
    say(f"{PACK.relative_to(ROOT)}: {size / 2**20:.1f} MiB, of commit {head()}")


def describe_gpu() -> dict[str, str]:
    """What the driver says of the first GPU."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        die("nvidia-smi is not on PATH: this machine has no NVIDIA driver (--dry-run shows the plan without one)")
    fields = ["name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "power.limit"]
    query = [str(smi), f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        die(f"nvidia-smi finds no GPU: {done.stdout.strip()}")
    return dict(zip(fields, map(str.strip, done.stdout.splitlines()[0].split(",")), strict=True))


# ------------------------------------------------------------------------------------------------------------ running


def text_of(output: str | bytes | None) -> str:
    """What a program that was stopped had printed."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def run_step(step: Step, seconds: float) -> dict[str, Any]:
    """Runs it for at most so long; never fails."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            step.command,
            cwd=ROOT,  # where tests look for their data
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={**os.environ, **step.environment},
            check=False,
        )
        output, errors, ended = done.stdout, done.stderr, f"exit status {done.returncode}"
        passed = done.returncode == 0
    except subprocess.TimeoutExpired as late:
        output, errors = (text_of(late.stdout), text_of(late.stderr))
        ended, passed = f"stopped after {seconds:.0f} s", False
    except OSError as error:
        output, errors, ended, passed = "", "", str(error), False
    result: dict[str, Any] = {"name": step.name, "passed": passed, "seconds": round(time.monotonic() - begin, 1)}
    if step.json:
        with contextlib.suppress(ValueError):  # what failed may have printed nothing, or half
            result["data"] = json.loads(output)
    if not passed:
        result["ended"] = ended
        result["tail"] = (output + errors)[-4000:]
        print(result["tail"], file=sys.stderr)
    say(f"{'ok  ' if passed else 'FAIL'} {step.name}, {result['seconds']} s{'' if passed else ': ' + ended}")
    return result


def run_stage(stage: Stage, machine: Machine) -> dict[str, Any]:
    """All steps of a stage, as far as its time goes."""
    say(f"{stage.name}: {stage.what}")
    steps = stage.steps(machine)
    if isinstance(steps, str):
        say(f"skipped: {steps}")
        return {"skipped": steps}
    end = time.monotonic() + STAGE_SECONDS
    results = []
    for step in steps:
        left = end - time.monotonic()
        if left < 5:
            results.append({"name": step.name, "passed": False, "seconds": 0, "ended": "no time was left", "tail": ""})
            say(f"FAIL {step.name}: no time was left")
            continue
        results.append(run_step(step, min(step.seconds, left)))
    return {"steps": results}


def plan(stages: list[Stage], machine: Machine) -> None:
    """Prints what would run."""
    print(f"programs: {machine.bin}, of commit {machine.commit}")
    for stage in stages:
        print(f"{stage.name}: {stage.what}")
        steps = stage.steps(machine)
        if isinstance(steps, str):
            print(f"  skipped: {steps}")
            continue
        for step in steps:
            there = "" if shutil.which(step.command[0]) else "   (missing)"
            print(f"  at most {step.seconds:3} s  {' '.join(step.command)}{there}")
        total = sum(step.seconds for step in steps)
        print(f"  all within {min(total, STAGE_SECONDS)} s")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(s.name for s in STAGES) + "; default all")
    parser.add_argument("--pack", action="store_true", help="make the pack and stop")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda", help="cpu: rehearse the stage serve")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the report; default bench/results")
    args = parser.parse_args()
    if args.pack:
        pack()
        return 0
    names = [s.name for s in STAGES] if not args.stages or "all" in args.stages else args.stages
    if unknown := set(names) - {s.name for s in STAGES}:
        parser.error(f"no stage {', '.join(sorted(unknown))}: there are {', '.join(s.name for s in STAGES)}, all")
    stages = [s for s in STAGES if s.name in names]
    rehearsal = args.backend == "cpu"
    if rehearsal and names != ["serve"]:
        parser.error("--backend=cpu is for the stage serve alone")
    gpu = {} if args.dry_run or rehearsal else describe_gpu()
    machine = dataclasses.replace(find_machine(), backend=args.backend)
    if args.dry_run:
        plan(stages, machine)
        return 0

    date = datetime.date.today().isoformat()
    slug = "-".join(gpu.get("name", "rehearsal").lower().replace("/", " ").split()) + "-" + date
    out = args.out or (PACK.parent / "rehearsal" if rehearsal else ROOT / "bench" / "results")
    out.mkdir(parents=True, exist_ok=True)
    numbers = out / f"{slug}.json"
    results: dict[str, Any] = {"stages": {}}
    if numbers.exists() and json.loads(numbers.read_text())["commit"] == machine.commit:
        results = json.loads(numbers.read_text())  # of stages that ran before
    command = ["./dev gpu", *names, *(["--backend=cpu"] if rehearsal else [])]
    results |= {"gpu": gpu, "date": date, "commit": machine.commit, "command": " ".join(command)}
    failed = False
    for stage in stages:
        results["stages"][stage.name] = run_stage(stage, machine)
        failed |= any(not step["passed"] for step in results["stages"][stage.name].get("steps", []))
        numbers.write_text(json.dumps(results, indent=1) + "\n")
        numbers.with_suffix(".md").write_text(gpu_report.report(results))
    say(f"wrote {numbers.with_suffix('.md')} and {numbers.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
