"""Checks that each room includes only the rooms it may know.

The arrows are those of docs/architecture.md; CMake's link lines are the same, but a header can be included without
being linked, so this looks at the #include lines themselves.
"""

import re
import subprocess
import sys

# Room (longest prefix wins) -> the rooms it may include besides itself.
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "kernels": {"base"},
    "server/json": {"base"},
    "server/errors": set(),
    "server/auth": {"base", "server/json"},
    "server/tokenizer": {"base"},
    "server/model": {"base", "kernels", "server/json"},
    "server/session": {"base", "kernels/common"},
    "server/engine": {"base", "server/model", "server/session", "server/tokenizer", "kernels"},
    "server/net": set(),
    "server/metrics": {"base", "server/engine", "server/session"},
    "server/models": {
        "base",
        "server/engine",
        "server/errors",
        "server/metrics",
        "server/model",
        "server/session",
        "server/tokenizer",
        "kernels/common",
    },
    "server/rpc": {
        "base",
        "server/auth",
        "server/engine",
        "server/errors",
        "server/metrics",
        "server/model",
        "server/models",
        "server/net",
        "server/session",
        "server/tokenizer",
        "kernels/common",
        "palimpsest/v1",
    },
    "server/flags": {"base"},
    "server/main.cc": {
        "base",
        "kernels/cuda",
        "server/flags",
        "server/models",
        "server/net",
        "server/rpc",
        "server/metrics",
        "server/engine",
        "server/model",
    },
    "clients/cpp": {"base", "palimpsest/v1"},
    "cmake": set(),
    "bench": {"base", "kernels", "server/model", "server/engine", "server/session", "server/tokenizer"},
    "tests": {"base", "kernels", "server", "clients/cpp", "palimpsest/v1"},
}
ROOTS = ("base/", "kernels/", "server/", "clients/", "bench/", "tests/", "palimpsest/")
# Tests beside the code may use the rooms' test helpers.
TEST_EXTRA = {"server/model/testing", "kernels", "server", "tests"}


def room_of(path: str) -> str | None:
    """The room that a file belongs to."""
    return max((r for r in ALLOWED if path == r or path.startswith(r + "/")), key=len, default=None)


def violations() -> list[str]:
    """Each include that points the wrong way, as file:line and why."""
    files = subprocess.run(
        ["git", "ls-files", "*.cc", "*.h", "*.cu", "*.cuh"], capture_output=True, text=True, check=True
    ).stdout.split()
    found = []
    for file in files:
        room = room_of(file)
        if room is None:
            found.append(f"{file}: belongs to no room")
            continue
        allowed = ALLOWED[room] | {room}
        if file.endswith("_test.cc") or "/testing/" in file:
            allowed |= TEST_EXTRA
        with open(file, encoding="utf-8") as source:
            for number, line in enumerate(source, 1):
                match = re.match(r'#include "([^"]+)"', line)
                if not match or not match[1].startswith(ROOTS):
                    continue
                if not any(match[1] == a or match[1].startswith(a + "/") for a in allowed):
                    found.append(f"{file}:{number}: {room} may not include {match[1]}")
    return found


if __name__ == "__main__":
    problems = violations()
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    sys.exit(1 if problems else 0)
