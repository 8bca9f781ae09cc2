"""What the long programs share: memory over time, and results as JSON and Markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from .checks import MEBIBYTE
from .server import Server


def machine() -> dict[str, Any]:
    """Where and of what a result is."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    root = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=root)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False, cwd=root)
    return {
        "machine": f"{model}, {len(os.sched_getaffinity(0))} processors, Linux {platform.release()}",
        "commit": commit.stdout.strip() + ("-changed" if changed.stdout.strip() else ""),
    }


class MemoryLine:
    """The server's memory, each second, from now until it is stopped."""

    def __init__(self, server: Server) -> None:
        self.bytes: list[int] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            self.bytes.append(self._server.resident_bytes())

    def stop(self) -> None:
        """Takes no more."""
        self._over.set()
        self._thread.join()

    def flat(self) -> tuple[bool, int, int]:
        """Whether the last fifth is no higher than the second, within a tenth and 24 MB; and both maxima in MiB."""
        fifth = max(1, len(self.bytes) // 5)
        early = max(self.bytes[fifth : 2 * fifth], default=0)
        late = max(self.bytes[-fifth:], default=0)
        return late <= early * 1.1 + 24e6, early // MEBIBYTE, late // MEBIBYTE


def write(path: Path | None, title: str, command: str, data: dict[str, Any], rows: list[tuple[str, str]]) -> None:
    """PATH.json with everything and PATH.md with a table; without a path, the table on standard output."""
    about = machine() | {"command": command, "date": time.strftime("%Y-%m-%d")}
    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    lines += ["", f"{about['machine']}; commit {about['commit']}; {about['date']}.", "", f"    {command}", ""]
    print("\n".join(lines), flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(about | data, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(lines))
