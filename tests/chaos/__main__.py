"""Runs campaigns against a server of its own, one line each, and says at the end what broke."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from . import overload, soak
from .arena import raise_own_file_limit
from .campaigns import CAMPAIGNS, Campaign, Result, Setting, lacks, run

LONG = {"overload_long": overload.main, "soak": soak.main}


def find_fronts() -> dict[str, Path]:
    """The proxies that this machine has."""
    fronts: dict[str, Path] = {}
    for name, program in (("haproxy", "haproxy"), ("envoy", os.environ.get("ENVOY", "envoy"))):
        beside = Path(sys.executable).parent / program
        path = str(beside) if beside.exists() else shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if path:
            fronts[name] = Path(path)
    return fronts


def choose(names: list[str]) -> list[Campaign]:
    """The campaigns with these names, or whose names begin with NAME before a `*`; all, if none is named."""
    if not names:
        return list(CAMPAIGNS)
    chosen: list[Campaign] = []
    for name in names:
        found = [c for c in CAMPAIGNS if c.name == name or (name.endswith("*") and c.name.startswith(name[:-1]))]
        if not found:
            known = ", ".join((*(campaign.name for campaign in CAMPAIGNS), *LONG))
            sys.exit(f"chaos: no campaign is called {name}; there are: {known}")
        chosen += [campaign for campaign in found if campaign not in chosen]
    return chosen


def line(result: Result) -> str:
    """One line of a result."""
    verdict = "ok  " if not result.failures else "FAIL"
    numbers = " ".join(f"{name}={value:g}" for name, value in result.numbers.items())
    return f"{verdict}  {result.name:32} {result.seconds:6.1f} s  {numbers}"


def main() -> int:
    """0 when all is well."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in LONG:
        return LONG[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(prog="dev chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="campaigns; `haproxy_*` are those that begin so")
    parser.add_argument("--bin", type=Path, required=True, help="folder of palimpsest-server")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long an attack that has no end goes on")
    parser.add_argument("--results", type=Path, help="write the results as JSON")
    parser.add_argument("--list", action="store_true", help="say which campaigns there are")
    options = parser.parse_args(arguments)
    chosen = choose(options.names)
    if options.list:
        for campaign in chosen:
            print(f"{campaign.name:32} {campaign.what}")
        return 0
    raise_own_file_limit()
    setting = Setting.of(options.bin / "palimpsest-server", options.checkpoint, find_fronts(), options.seconds)
    results: list[Result] = []
    for campaign in chosen:
        if missing := lacks(campaign, setting):
            if options.names:
                sys.exit(f"chaos: {campaign.name} needs {missing}, which this machine does not have")
            print(f"--    {campaign.name:32} needs {missing}", flush=True)
            continue
        results.append(run(campaign, setting))
        print(line(results[-1]), flush=True)
        for failure in results[-1].failures:
            print(f"        {failure}", flush=True)
    failed = [result.name for result in results if result.failures]
    print(f"\n{len(results) - len(failed)} of {len(results)} campaigns left the server as it was", flush=True)
    if failed:
        print(f"failed: {' '.join(failed)}")
    if options.results:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps([vars(result) for result in results], indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
