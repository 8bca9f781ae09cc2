"""The compile database of a build folder: which sources there are, how they are compiled, and tools run over them."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Result:
    """What a tool said of a source. `status` is None where the time was up first."""

    status: int | None
    output: str


def read(build: pathlib.Path, repository: pathlib.Path = REPOSITORY) -> dict[str, list[str]]:
    """The sources of the repository, by their paths in it, each with the flags that say what it includes and means."""
    sources: dict[str, list[str]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = os.path.relpath(entry["file"], repository)
        if path.startswith((os.pardir, "build")):
            continue
        arguments, flags = iter(shlex.split(entry["command"])), []
        for argument in arguments:
            if argument in ("-isystem", "-include"):
                flags += [argument, next(arguments)]
            elif re.match("-[DIU]|-std=", argument):
                flags.append(argument)
        sources.setdefault(path, flags)
    return sources


def run(commands: Mapping[str, Sequence[str]], jobs: int, seconds: float | None = None) -> dict[str, Result]:
    """Runs the command of each source from the root of the repository, for no more than so many seconds together."""
    end = None if seconds is None else time.monotonic() + seconds

    def one(command: Sequence[str]) -> Result:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return Result(None, "")
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            return Result(None, "")
        return Result(done.returncode, done.stdout + done.stderr)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return dict(zip(commands, pool.map(one, commands.values()), strict=True))
