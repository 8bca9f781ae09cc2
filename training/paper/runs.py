"""Runs that are done once: each has a folder of its own, and `result.json` in it says that it is finished."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def say(message: str) -> None:
    """Progress, for a person."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


def write_json(path: Path, value: Any) -> None:
    """Writes beside `path` and renames, so that a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


@dataclass(frozen=True)
class Run:
    """One trained model and what was measured of it."""

    folder: Path

    @property
    def result_path(self) -> Path:
        """Where the result is, once there is one."""
        return self.folder / "result.json"

    def finished(self) -> bool:
        """Whether it need not be done again."""
        return self.result_path.exists()

    def result(self) -> dict[str, Any]:
        """What was measured."""
        return json.loads(self.result_path.read_text())

    def finish(self, result: dict[str, Any]) -> None:
        """Keeps the result; written last, when everything else of the run is there."""
        write_json(self.result_path, result)


def collect(work: Path, results: Path, part: str) -> list[dict[str, Any]]:
    """Merges the finished runs of `part` under `work` into `results`/`part`.json: a run replaces what the file had of
    its name, and what was measured elsewhere stays. Returns the whole."""
    path = results / f"{part}.json"
    kept = {item["name"]: item for item in json.loads(path.read_text())} if path.exists() else {}
    for file in sorted((work / part).glob("*/result.json")):
        item = json.loads(file.read_text())
        kept[item["name"]] = item
    merged = [kept[name] for name in sorted(kept)]
    if merged:
        write_json(path, merged)
    return merged
