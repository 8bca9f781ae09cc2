"""Everything that wants a GPU: device tests, sanitizers, benchmarks, profiles, a served system, and a report of them.

  ./dev gpu [STAGE...]      stages: see STAGES; default: the plan `full`, which takes 440 s
  ./dev gpu --plan short    what is worth running again after a fix: 170 s
  ./dev gpu --dry-run       what would run, with its time limits
  ./dev gpu --merge FILE... joins the lines of several runs into one report
  ./dev gpu --pack          where there is no GPU: builds, and packs the programs into build/gpu/pack.tar.xz, for a
                            machine with a driver and Python alone (PyTorch, too, for the comparison with fla)
  ./dev gpu --backend=cpu   where there is no GPU: rehearses a plan with tiny shapes, the emulator's programs and
                            servers on the processor

Programs come from that pack if it is there, else from build/cuda, else they are built. What is measured and what fails
is a line of OUT/<gpu>-<date>.jsonl at once, so that a kill at any moment takes nothing with it; the report, the same
with .md, is written anew after each stage. OUT is what --out says, else the variable OUT, else bench/results.
Every program has its own time limit, and ends with its children. Nothing stops what comes after it.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import dataclasses
import datetime
import importlib.util
import json
import lzma
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import gpu_report

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "cuda" / "bin"
EMULATED = ROOT / "build" / "release" / "bin"
PACK = ROOT / "build" / "gpu" / "pack.tar.xz"
UNPACKED = ROOT / "build" / "gpu" / "unpacked"
BOOKS = ROOT / "checkpoints" / "books-5m"
PACK_LIMIT = 64 << 20
PROGRAMS = ["device_bench", "model_bench", "palimpsest-server", "palimpsest"]  # beside the device tests
BEFORE = "device_bench_before"  # of another commit, to compare with in one run
FLA = ["fla-core==0.6.0", "einops==0.8.2"]  # the comparison; PyTorch and Triton are the machine's
CUBLAS = "libcublasLt.so.13"
# Libraries that come with the system or a CUDA toolkit. glibc cannot come from elsewhere, and our libstdc++ would help
# nobody: it needs glibc 2.36, and systems with that have a libstdc++ as new.
GLIBC = ("linux-vdso", "ld-linux", "libc.", "libm.", "libdl.", "librt.", "libpthread.", "libresolv.")
NOT_PACKED = (*GLIBC, "libstdc++", "libgcc_s", CUBLAS)

Row = dict[str, Any]


def say(text: str) -> None:
    """Tells the person who waits."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def die(text: str) -> NoReturn:
    """Ends with a message."""
    raise SystemExit(f"dev gpu: {text}")


def json_row(line: str) -> Row | None:
    """A line of JSON; nothing if it is something else."""
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def profile_row(line: str) -> Row | None:
    """A line of `ncu --csv --page details`: one metric of one kernel."""
    if not line.startswith('"'):
        return None
    fields = next(csv.reader([line]))
    if len(fields) < 15 or fields[0] == "ID" or not fields[12]:
        return None
    kernel = re.sub(r"\(.*|<(?!unnamed).*", "", fields[4].removeprefix("void ")).split("::")[-1]
    return {"kernel": kernel, "metric": fields[12], "unit": fields[13], "value": fields[14]}


@dataclasses.dataclass
class Step:
    """One program that a stage runs."""

    name: str
    command: list[str]
    seconds: float  # it is stopped after
    read: Callable[[str], Row | None] = json_row  # what a line of its standard output tells
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    after: "Step | None" = None  # it makes what this one needs


@dataclasses.dataclass
class Machine:
    """Where programs and tools are on this machine."""

    bin: pathlib.Path
    libraries: list[pathlib.Path]
    site: pathlib.Path | None  # of Python packages that were packed
    commit: str
    backend: str = "cuda"  # cpu: for a rehearsal
    only: str = ""  # of the tests and of the benchmark
    ceilings: pathlib.Path = PACK.parent / "ceilings.json"  # of this run: the first measurement leaves them to the rest

    @property
    def rehearsal(self) -> bool:
        """Whether there is no GPU."""
        return self.backend == "cpu"

    def program(self, name: str, *arguments: str) -> list[str]:
        """The command that runs one of ours."""
        return [str(self.bin / name), *arguments]

    def bench(self, only: str, *flags: str, program: str = "device_bench") -> list[str]:
        """The command that measures ops whose names match."""
        if self.rehearsal:
            return self.program("device_bench_emulated", f"--only={only}", "--tiny")
        return self.program(program, f"--only={only}", f"--ceilings_file={self.ceilings}", *flags)

    def environment(self) -> dict[str, str]:
        """Where our programs find their libraries."""
        paths = [*map(str, self.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"LD_LIBRARY_PATH": ":".join(p for p in paths if p)}

    def device_tests(self) -> list[str]:
        """The programs that test on a device."""
        names = sorted(p.name for p in self.bin.glob("*_test_on_device"))
        return [name for name in names if re.search(self.only, name)]


# ------------------------------------------------------------------------------------------------------------ stages

GROUPS = ["step", "mixer", "chunks", "linear", "layer", "sample", "replay", "launch"]  # of device_bench


def random_weights(machine: Machine) -> tuple[pathlib.Path, Step | None] | None:
    """The folder of a model with random weights, and what makes it if it is not there; or nothing makes it here."""
    preset = "30m" if machine.rehearsal else "1.3b-6-layers"
    folder = ROOT / "build" / "bench" / preset
    if (folder / "tokenizer.model").exists():  # older folders lack it, and are not served
        return folder, None
    if importlib.util.find_spec("numpy") is None:
        return None
    make = [sys.executable, "-m", "training.random_checkpoint", "--preset", preset, "--out", str(folder)]
    return folder, Step(f"random weights, {preset}", make, 120)


def smoke_steps(machine: Machine) -> list[Step]:
    """Each group of ops with tiny shapes: what fails at once is known at once."""
    return [
        Step(f"tiny {group}", [*machine.bench(f"^{group}/"), "--tiny"], 8, environment=machine.environment())
        for group in GROUPS
    ]


def test_steps(machine: Machine) -> list[Step]:
    """All device tests; those of ops first, the engine and the server last."""
    names = sorted(
        machine.device_tests(), key=lambda name: ("engine" in name or "server" in name, "model" in name, name)
    )
    return [
        Step(name, machine.program(name, "--gtest_brief=1"), 60, environment=machine.environment()) for name in names
    ]


def sanitizer_steps(machine: Machine) -> list[Step] | str:
    """Each tool over the benchmark's tiny run, whose arrays are the device's own. The vendor's kernels are let be:

    racecheck ends with an error of its own in them (seen with CUDA 13.0 on an H100).
    """
    sanitizer = find_tool("compute-sanitizer")
    if sanitizer is None:
        return "compute-sanitizer is not on PATH or in /usr/local/cuda/bin: it comes with CUDA toolkits"
    steps = []
    for tool in ("racecheck", "memcheck", "synccheck", "initcheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-name", "kernel_substring=palimpsest"]
        ours = "^(step|mixer|chunks|linear/.*/steps|layer|sample|replay)/"
        command += [*machine.bench(machine.only or ours), "--tiny"]
        steps.append(Step(tool, command, 70, environment=machine.environment()))
    return steps


def bench_step(machine: Machine, name: str, only: str, seconds: int) -> Step:
    """A group of the benchmark, in a process of its own."""
    command = machine.bench(only, f"--seconds={seconds - 4}")
    return Step(name, command, seconds, environment=machine.environment())


def bench_steps(machine: Machine) -> list[Step]:
    """The ops against the bounds of the device."""
    if machine.only:
        return [bench_step(machine, "chosen", machine.only, 60)]
    return [
        bench_step(machine, "ceilings", "^launch/", 20),
        bench_step(machine, "mixer", "^mixer/", 30),
        bench_step(machine, "step", "^step/", 25),
        bench_step(machine, "chunks", "^chunks/", 35),
        bench_step(machine, "linear", "^linear/.*/bf16(_folded)?/", 40),
        bench_step(machine, "layer", "^layer/", 20),
        bench_step(machine, "sample", "^sample/", 20),
        bench_step(machine, "replay", "^replay/", 25),
        bench_step(machine, "linear, float32", "^linear/.*f32", 20),
    ]


CORE = (
    "^(mixer/gdn_16_32/fused/|step/(delta|gated_delta)/batch/(1|64|256)$|chunks/gated_delta/.*heads/16x64|"
    "linear/(qkv|out|down)/bf16/|layer/short_conv|sample/|replay/8/gated_delta/batch/(64|256))"
)


def core_steps(machine: Machine) -> list[Step] | str:
    """The figures that matter most, of this commit and of one before, in turns."""
    names = ["device_bench", *([BEFORE] if (machine.bin / BEFORE).exists() else [])]
    return [
        Step(
            name.replace("device_bench", "core"),
            machine.bench(machine.only or CORE, "--seconds=36", program=name),
            40,
            environment=machine.environment(),
        )
        for name in names
    ]


# What a profile is worth having of: a kernel's name, and a measurement that launches it.
PROFILED = [
    ("FastWeightMixer", "^mixer/gdn_16_32/fused/batch/64$"),
    ("FastWeightChunks", "^chunks/gated_delta/f32/heads/16x64/tokens/8192/sequences/1$"),
    ("FastWeightChunks", "^chunks/gated_delta/tf32/heads/16x64/tokens/8192/sequences/1$"),
    ("Linear", "^linear/qkv/bf16/steps/64$"),
    ("Linear", "^linear/qkv/bf16/steps/1$"),
    ("Sample", "^sample/top_p_0.9/vocabulary/32000/rows/64$"),
    ("ShortConv", "^layer/short_conv/tokens/8192/sequences/1$"),
]


def profile_steps(machine: Machine) -> list[Step] | str:
    """What bounds the most important kernels, as Nsight Compute counts it."""
    ncu = find_tool("ncu")
    if ncu is None:
        return "ncu is not on PATH or in /usr/local/cuda/bin: it comes with CUDA toolkits"
    steps = []
    for kernel, measurement in PROFILED:
        command = [ncu, "--clock-control", "none", "--target-processes", "all", "--kernel-name", f"regex:{kernel}"]
        command += ["--launch-skip", "3", "--launch-count", "1", "--kill", "yes", "--csv", "--page", "details"]
        for section in ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats"):
            command += ["--section", section]
        command += machine.bench(measurement)
        steps.append(Step(measurement.strip("^$"), command, 20, profile_row, machine.environment()))
    return steps


def model_steps(machine: Machine) -> list[Step]:
    """Whole models: random weights in the shape of one of 1.3 billion parameters with fewer layers, and the bundled."""

    def measure(folder: pathlib.Path, seconds: int, after: Step | None, *flags: str) -> Step:
        flags = (f"--backend={machine.backend}", f"--checkpoint={folder}", *flags, "--far_position=0")
        command = machine.program("model_bench", *flags)
        if not machine.rehearsal:
            command.append(f"--ceilings_file={machine.ceilings}")
        return Step(folder.name, command, seconds, environment=machine.environment(), after=after)

    quick = ["--batches=1,8", "--prefill=64", "--engine_streams=2", "--seconds=0.1"]
    full = ["--batches=1,8,64,256", "--prefill=512,8192", "--seconds=0.5"]
    flags = quick if machine.rehearsal else full
    large = random_weights(machine)
    return [*([measure(large[0], 50, large[1], *flags)] if large else []), measure(BOOKS, 25, None, *flags)]


def serve_step(machine: Machine, name: str, what: str, folder: pathlib.Path, seconds: int, *flags: str) -> Step:
    """A stage of tools/gpu_serve.py. The library path is for our programs alone: Python has libraries of its own."""
    command = [sys.executable, str(ROOT / "tools" / "gpu_serve.py"), what, f"--bin={machine.bin}"]
    command += [f"--checkpoint={folder}", f"--backend={machine.backend}", *flags]
    command += [f"--library_path={machine.environment()['LD_LIBRARY_PATH']}", f"--seconds={seconds - 8}"]
    return Step(name, command, seconds)


def serve_steps(machine: Machine) -> list[Step]:
    """What servers on both backends say, then load: on the bundled model, and on random weights."""
    streams = "--streams=2" if machine.rehearsal else "--streams=1,64"
    steps = [
        serve_step(machine, "text", "text", BOOKS, 40),
        serve_step(machine, BOOKS.name, "load", BOOKS, 30, streams, "--load_seconds=4"),
    ]
    if large := random_weights(machine):
        step = serve_step(machine, large[0].name, "load", large[0], 40, streams, "--load_seconds=5")
        steps.append(dataclasses.replace(step, after=large[1]))
    return steps


def fla_steps(machine: Machine) -> list[Step] | str:
    """fla's kernels at the same shapes."""
    path = [str(machine.site)] if machine.site else []
    sys.path[:0] = path
    missing = [name for name in ("torch", "triton", "fla", "einops") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}: pack fla with --pack; PyTorch is to be there"
    path.append(os.environ.get("PYTHONPATH", ""))
    command = [sys.executable, str(ROOT / "bench" / "fla_bench.py"), "--seconds=75"]
    environment = {"PYTHONPATH": ":".join(p for p in path if p)}
    return [Step("fla_bench", command, 85, environment=environment)]


@dataclasses.dataclass
class Stage:
    """A part of `./dev gpu` that can run by itself."""

    name: str
    what: str
    steps: Callable[[Machine], list[Step] | str]  # or why there are none
    seconds: int  # for all of it
    jobs: int = 1  # at once


# In the order in which they run. A new one is a row here, and a section in gpu_report.py.
STAGES = [
    Stage("smoke", "device_bench --tiny, a process a group", smoke_steps, 25, jobs=4),
    Stage("tests", "ops against their references, models against their goldens, the engine", test_steps, 90, jobs=6),
    Stage("bench", "device_bench: ops against the measured bounds", bench_steps, 190),
    Stage("sanitizers", "compute-sanitizer: racecheck, memcheck, synccheck, initcheck", sanitizer_steps, 75, jobs=4),
    Stage("core", "device_bench: what matters most, of this commit and of one before", core_steps, 80),
    Stage("profiles", "Nsight Compute on the most important kernels", profile_steps, 60),
    Stage("models", "model_bench: whole models on the GPU, decode, prefill and the engine", model_steps, 70),
    Stage("serve", "palimpsest-server on the GPU and on the processor, and the load it bears", serve_steps, 95),
    Stage("fla", "flash-linear-attention's Triton kernels at the same shapes", fla_steps, 90),
]
PLANS = {
    "full": (440, ["smoke", "tests", "bench", "sanitizers", "profiles", "models", "serve"]),
    "short": (170, ["tests", "core", "models", "serve", "fla"]),
}

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


def pack(before: pathlib.Path | None) -> None:
    """Puts programs, their libraries and fla into one file. The programs are much alike, so it is small."""
    folder = PACK.parent / "packing"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    programs = {path.name: path for path in [*BUILT.glob("*_test_on_device"), *(BUILT / name for name in PROGRAMS)]}
    if before is not None:
        programs[BEFORE] = before
    for packed, program in programs.items():
        subprocess.run(["strip", "-o", str(folder / "bin" / packed), str(program)], check=True)
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
    filters = [{"id": 0x21, "preset": 2, "dict_size": 128 << 20}]  # LZMA2, which sees all programs at once
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


class Journal:
    """The lines of a run, each on the disk before the next is made. Any thread may write."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file = path.open("a")
        self._lock = threading.Lock()

    def write(self, **line: Any) -> None:
        """Adds a line. Where the checkout is on this machine is nobody's business."""
        text = json.dumps(line).replace(f"{ROOT}/", "")
        with self._lock:
            self._file.write(text + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def report(self) -> Row:
        """Writes what the lines say for people, and gives it as data."""
        results = gpu_report.results_of(self.path.read_text().splitlines())
        self.path.with_suffix(".md").write_text(gpu_report.report(results))
        return results


class Runner:
    """Runs steps, and ends those that run when it is asked to."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._killed = False
        self._made: dict[str, threading.Event] = {}

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        """Ends it and its children, which would keep the GPU from those that come after."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Ends what runs."""
        with self._lock:
            self._killed = True
            for process in self._running:
                self._kill(process)

    def run(self, stage: str, step: Step, end: float) -> bool:
        """Runs it until then at most; whether it passed. Never fails."""
        begin = time.monotonic()
        if step.after is not None and step.after.name in self._made:
            self._made[step.after.name].wait(max(0.0, end - begin))  # without it the step says what it misses
        seconds = min(step.seconds, end - time.monotonic())
        self.journal.write(stage=stage, step=step.name, begin=round(time.time(), 1))
        if seconds < 2:
            return self._ended(stage, step, begin, "no time was left", "")
        late = threading.Event()
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            try:
                process = subprocess.Popen(
                    step.command,
                    cwd=ROOT,  # where tests look for their data
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    errors="replace",
                    env={**os.environ, **step.environment},
                    start_new_session=True,
                )
            except OSError as error:
                return self._ended(stage, step, begin, str(error), "")

            def stop() -> None:
                late.set()
                self._kill(process)

            timer = threading.Timer(seconds, stop)
            timer.start()
            with self._lock:
                self._running.add(process)
            said = ""
            assert process.stdout is not None
            for line in process.stdout:
                if (row := step.read(line)) is not None:
                    self.journal.write(stage=stage, step=step.name, row=row)
                else:
                    said = (said + line)[-4000:]
            status = process.wait()
            timer.cancel()
            self._kill(process)  # children that it left
            with self._lock:
                self._running.discard(process)
            errors.seek(0)
            tail = (said + errors.read()[-4000:])[-6000:]
        if self._killed:  # said as of a run that was itself killed and could not say it
            return self._ended(stage, step, begin, "was killed", tail)
        if late.is_set():
            return self._ended(stage, step, begin, f"stopped after {seconds:.0f} s", tail)
        return self._ended(stage, step, begin, "" if status == 0 else f"exit status {status}", tail)

    def _ended(self, stage: str, step: Step, begin: float, why: str, tail: str) -> bool:
        took = round(time.monotonic() - begin, 1)
        self.journal.write(
            stage=stage, step=step.name, end={"seconds": took, **({"ended": why, "tail": tail} if why else {})}
        )
        say(f"{'FAIL' if why else 'ok  '} {step.name}, {took} s{': ' + why if why else ''}")
        if why:
            print(tail[-1500:], file=sys.stderr, flush=True)
        return not why

    def begin(self, step: Step, end: float) -> None:
        """Runs it beside all else."""
        self._made[step.name] = threading.Event()

        def work() -> None:
            self.run("background", step, end)
            self._made[step.name].set()

        threading.Thread(target=work, daemon=True).start()

    def run_stage(self, stage: Stage, machine: Machine, end: float) -> None:
        """All steps of a stage, as far as its time and that of the plan go."""
        say(f"{stage.name}: {stage.what}")
        steps = stage.steps(machine)
        if isinstance(steps, str):
            say(f"skipped: {steps}")
            self.journal.write(stage=stage.name, skipped=steps)
            return
        end = min(end, time.monotonic() + stage.seconds)
        with concurrent.futures.ThreadPoolExecutor(stage.jobs) as pool:
            for done in [pool.submit(self.run, stage.name, step, end) for step in steps]:
                done.result()

    def watch(self, seconds: float) -> None:
        """Writes the clocks, and what holds them down, as long as the process runs."""
        fields = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active,memory.used"

        def work() -> None:
            while True:
                told = output_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]).strip()
                if told:
                    values = told.splitlines()[0].split(", ")
                    self.journal.write(
                        clocks=dict(zip(fields.split(","), values, strict=False)), at=round(time.time(), 1)
                    )
                time.sleep(seconds)

        threading.Thread(target=work, daemon=True).start()


def plan(stages: list[Stage], machine: Machine, seconds: float) -> None:
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
        print(f"  {stage.jobs} at once, all within {stage.seconds} s")
    print(f"all within {seconds:.0f} s")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [s.name for s in STAGES]
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(names)}; default: those of the plan")
    parser.add_argument("--plan", choices=sorted(PLANS), default="full", help="default %(default)s")
    parser.add_argument("--only", default="", metavar="REGEX", help="of the tests and of what is measured")
    parser.add_argument("--seconds", type=float, help="for all; default: the plan's")
    parser.add_argument("--pack", action="store_true", help="make the pack and stop")
    parser.add_argument("--before", type=pathlib.Path, help="a device_bench of another commit, to pack beside")
    parser.add_argument("--merge", nargs="+", type=pathlib.Path, metavar="FILE", help="lines of runs; report and stop")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    parser.add_argument("--backend", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the report; default $OUT or bench/results")
    args = parser.parse_args()
    if args.pack:
        pack(args.before)
        return 0
    seconds, planned = PLANS[args.plan]
    if unknown := set(args.stages) - set(names):
        parser.error(f"no stage {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    wanted = args.stages or planned
    stages = [stage for stage in STAGES if stage.name in wanted]
    deadline = time.monotonic() + (args.seconds or seconds)
    rehearsal = args.backend == "cpu"
    default = PACK.parent / "rehearsal" if rehearsal else ROOT / "bench" / "results"
    out = args.out or pathlib.Path(os.environ.get("OUT") or default)
    out.mkdir(parents=True, exist_ok=True)
    date = datetime.date.today().isoformat()
    if args.merge:
        journal = Journal(out / f"merged-{date}.jsonl")
        for file in args.merge:
            for line in file.read_text().splitlines():
                if (row := json_row(line)) is not None:
                    journal.write(**row)
        print("\n".join(gpu_report.summary(journal.report())))
        return 0
    gpu = {} if args.dry_run or rehearsal else describe_gpu()
    machine = Machine(EMULATED, [], None, head()) if rehearsal else find_machine()
    machine = dataclasses.replace(machine, backend=args.backend, only=args.only)
    if args.dry_run:
        plan(stages, machine, args.seconds or seconds)
        return 0

    slug = "-".join(gpu.get("name", "rehearsal").lower().replace("/", " ").split()) + "-" + date
    machine.ceilings.parent.mkdir(parents=True, exist_ok=True)
    machine.ceilings.unlink(missing_ok=True)  # perhaps of another GPU
    journal = Journal(out / f"{slug}.jsonl")
    command = " ".join(["./dev gpu", *sys.argv[1:]])
    journal.write(run={"gpu": gpu, "date": date, "commit": machine.commit, "command": command})
    runner = Runner(journal)
    if gpu:
        runner.watch(5.0)

    def stop(number: int, _: Any) -> None:
        runner.kill_all()
        journal.report()
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # The processor is free for this while the GPU is busy.
    if {"models", "serve"} & set(wanted) and (large := random_weights(machine)) and large[1]:
        runner.begin(large[1], deadline)
    for stage in stages:
        runner.run_stage(stage, machine, deadline)
        results = journal.report()
    say(f"wrote {journal.path.with_suffix('.md')} and {journal.path.name}")
    print("\n".join(gpu_report.summary(results)), flush=True)
    return 0 if gpu_report.all_passed(results) else 1


if __name__ == "__main__":
    sys.exit(main())
