#!/usr/bin/env python3
"""What the kernels take of a GPU: registers, stack, spills and shared memory, as the compiler told it, and the loads
that a thread of theirs has in flight (sass.py), where there is a cuobjdump to list the machine code.

  kernel_resources.py compile -- LAUNCHER... nvcc ...   runs the compiler; keeps what ptxas says beside the object file
  kernel_resources.py report OBJECT-FOLDER OUT          writes OUT.txt and OUT.json

The build does both (kernels/cuda/CMakeLists.txt). Exit status 1: a kernel spills registers, or has a stack that is not
known of.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import sass

SUFFIX = ".ptxas.txt"  # of the object file's name
# Kernels with an array that is indexed at run time: sinf's and cosf's, for large angles.
WITH_STACK = {"SinusoidKernel"}


@dataclasses.dataclass
class Kernel:
    """One kernel on one architecture."""

    name: str
    architecture: str
    registers: int = 0
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    shared_bytes: int = 0  # static; dynamic shared memory is the launch's
    barriers: int = 0
    loads_in_flight: int | None = None  # of a thread; None: there is no disassembler
    bytes_in_flight: int | None = None

    @property
    def leaves_registers(self) -> bool:
        """Whether it spills, or has a stack frame that is not known of."""
        stack = 0 if self.name in WITH_STACK else self.stack_bytes
        return stack + self.spill_store_bytes + self.spill_load_bytes > 0


def compile_and_keep(command: list[str]) -> int:
    """Runs the compiler and moves ptxas's lines from its standard error to a file beside the object."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    kept: list[str] = []
    told: list[str] = []
    lines = done.stderr.splitlines(keepends=True)
    for line in lines:
        about_kernel = line.startswith("ptxas info") or re.match(r"\s+\d+ bytes stack frame", line)
        (kept if about_kernel else told).append(line)
    sys.stderr.write("".join(told))
    if done.returncode == 0 and "-o" in command:
        pathlib.Path(command[command.index("-o") + 1] + SUFFIX).write_text("".join(kept))
    return done.returncode


def number(pattern: str, text: str) -> int:
    """The number that the pattern finds, or 0."""
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def parse(text: str) -> list[Kernel]:
    """The kernels of one compilation's report, by their mangled names."""
    kernels = []
    for block in text.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\S+)' for '(\S+)'", block)
        if head is None:
            raise ValueError(f"not understood: {block.splitlines()[0]!r}")
        kernels.append(
            Kernel(
                name=head.group(1),
                architecture=head.group(2),
                registers=number(r"Used (\d+) registers", block),
                stack_bytes=number(r"(\d+) bytes stack frame", block),
                spill_store_bytes=number(r"(\d+) bytes spill stores", block),
                spill_load_bytes=number(r"(\d+) bytes spill loads", block),
                shared_bytes=number(r"(\d+) bytes smem", block),
                barriers=number(r"used (\d+) barriers", block),
            )
        )
    return kernels


def readable(names: list[str]) -> list[str]:
    """Demangled, without our own namespaces, parameters and casts."""
    plain = subprocess.run(["c++filt"], input="\n".join(names), stdout=subprocess.PIPE, text=True, check=True).stdout
    short = []
    for line in plain.splitlines():
        name = re.sub(r"palimpsest::|cuda::|\(anonymous namespace\)::|^void ", "", line)
        name = re.sub(r"\((int|bool|unsigned char|UpdateRule|RowsForm|Tf32)\)", r"\1 ", name)
        short.append(re.sub(r">?\([^()]*\)$", lambda end: ">" if end.group().startswith(">") else "", name))
    return short


def count_loads(kernels: list[Kernel], object_file: pathlib.Path) -> None:
    """Fills in what the kernels of this object file have in flight."""
    program = sass.disassembler()
    if program is None or not object_file.exists():
        return
    for architecture in {kernel.architecture for kernel in kernels}:
        counts = sass.loads_in_flight(sass.listing(program, object_file, architecture))
        for kernel in kernels:
            if kernel.architecture == architecture and kernel.name in counts:
                kernel.loads_in_flight, kernel.bytes_in_flight = counts[kernel.name]


def report(objects: pathlib.Path, out: pathlib.Path) -> int:
    """Gathers the kept reports, writes both files and checks."""
    kernels = []
    for file in sorted(objects.rglob("*" + SUFFIX)):
        found = parse(file.read_text())
        count_loads(found, file.with_name(file.name.removesuffix(SUFFIX)))
        kernels += found
    if not kernels:
        print(f"kernel_resources.py: no kernel is reported under {objects}", file=sys.stderr)
        return 1
    for kernel, name in zip(kernels, readable([k.name for k in kernels]), strict=True):
        kernel.name = name
    kernels.sort(key=lambda k: (k.name, k.architecture))
    out.with_suffix(".json").write_text(json.dumps([dataclasses.asdict(k) for k in kernels], indent=1) + "\n")
    columns = ("registers", "stack_bytes", "spill_store_bytes", "spill_load_bytes", "shared_bytes", "barriers",
               "loads_in_flight", "bytes_in_flight")  # fmt: skip
    width = max(len(k.name) for k in kernels)
    lines = [f"{'kernel':{width}} {'arch':7} regs stack  spill stores  loads shared barriers in flight: loads bytes"]
    for kernel in kernels:
        values = ["-" if (value := getattr(kernel, column)) is None else value for column in columns]
        cells = "{:>4} {:>5} {:>13} {:>6} {:>6} {:>8} {:>16} {:>5}".format(*values)
        lines.append(f"{kernel.name:{width}} {kernel.architecture:7} {cells}")
    out.with_suffix(".txt").write_text("\n".join(lines) + "\n")

    bad = [k for k in kernels if k.leaves_registers]
    for kernel in bad:
        print(
            f"kernel_resources.py: {kernel.name} for {kernel.architecture} leaves the registers: "
            f"{kernel.stack_bytes} bytes of stack, {kernel.spill_store_bytes} stored and "
            f"{kernel.spill_load_bytes} loaded by spills",
            file=sys.stderr,
        )
    print(f"{len(kernels)} kernels, {len(bad)} of which leave the registers: {out.with_suffix('.txt')}")
    return 1 if bad else 0


def main() -> int:
    """Entry point."""
    if sys.argv[1:3] == ["compile", "--"]:
        return compile_and_keep(sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    to_report = commands.add_parser("report")
    to_report.add_argument("objects", type=pathlib.Path, help="folder of the object files, searched to its depths")
    to_report.add_argument("out", type=pathlib.Path, help="the files to write, without their suffixes")
    args = parser.parse_args()
    return report(args.objects, args.out)


if __name__ == "__main__":
    sys.exit(main())
