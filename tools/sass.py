"""What a kernel's machine code has under way: loads from the GPU's memory that nobody has waited for yet.

How fast a kernel streams is the bytes it keeps in flight divided by the time one load takes (Little's law), so that is
counted here, from cuobjdump's listing: instructions in the order of their addresses, a load in flight (LDG; LD where
the compiler does not know which memory it is of) until something reads or overwrites its register; copies into shared
memory (LDGSTS) by the groups that a wait leaves (DEPBAR).
"""

import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

_FUNCTION = re.compile(r"\bFunction : (\S+)")
_MEMORY = re.compile(r"\b(LDG[\w.]*|LD\.[\w.]*|DEPBAR[\w.]*)\s*(.*)")
_REGISTER = re.compile(r"\bR(\d+)(\.64)?\b")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_ROOT = pathlib.Path(__file__).resolve().parent.parent


def disassembler() -> str | None:
    """cuobjdump, with nvdisasm beside it: the one on PATH, or that of kernels/cuda/disassembler.txt."""
    installed = sorted(_ROOT.glob(".venv/lib/python3*/site-packages/nvidia/cu*/bin/cuobjdump"))
    return shutil.which("cuobjdump") or (str(installed[-1]) if installed else None)


def listing(program: str, objects: pathlib.Path, architecture: str) -> str:
    """The machine code for one architecture; empty if the object file has none."""
    path = f"{pathlib.Path(program).parent}:/usr/bin:/bin"  # nvdisasm's
    command = [program, "-sass", "-arch", architecture, str(objects)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": path})
    return done.stdout


def loads_in_flight(text: str) -> dict[str, tuple[int, int]]:
    """By the kernels' mangled names: the most loads a thread has under way at once, and their bytes."""
    return {name: _most_in_flight(code) for name, code in _functions(text)}


def _functions(text: str) -> Iterator[tuple[str, list[str]]]:
    _, *parts = _FUNCTION.split(text)
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        yield name, [line.split("*/", 1)[1].split(";", 1)[0] for line in body.splitlines() if ";" in line]


def _most_in_flight(code: list[str]) -> tuple[int, int]:
    loads: dict[int, tuple[int, int]] = {}  # by their first registers: how many registers, and bytes
    most = (0, 0)
    copies, largest, left = (0, 0), (0, 0), 0  # of the group that is open, the largest, and how many a wait leaves
    for instruction in code:
        if loads:
            touched = {int(n) + i for n, wide in _REGISTER.findall(instruction) for i in range(2 if wide else 1)}
            for first in [first for first, (count, _) in loads.items() if touched & set(range(first, first + count))]:
                del loads[first]
        found = _MEMORY.search(instruction)
        if found is None:
            continue
        (name, *suffixes), operands = found.group(1).split("."), found.group(2)
        size = next((_WIDTHS[suffix] for suffix in suffixes if suffix in _WIDTHS), 4)
        if name in ("LD", "LDG") and (to := _REGISTER.match(operands)) is not None:
            loads[int(to.group(1))] = ((size + 3) // 4, size)
            most = max(most, (len(loads), sum(size for _, size in loads.values())), key=lambda amount: amount[1])
        elif name == "LDGSTS":
            copies = (copies[0] + 1, copies[1] + size)
        elif name == "LDGDEPBAR":
            largest, copies = max(largest, copies, key=lambda amount: amount[1]), (0, 0)
        elif name == "DEPBAR" and (groups := re.search(r"SB0, (0x[0-9a-f]+)", operands)) is not None:
            left = max(left, int(groups.group(1), 16))
    # A loop's next group is under way beside those that it leaves.
    staged = ((left + 1) * largest[0], (left + 1) * largest[1])
    return max(most, staged, key=lambda amount: amount[1])
