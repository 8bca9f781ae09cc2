"""clang-tidy over sources, or over what has changed since a commit.

Of a changed file, what it says of the changed lines counts; a changed header is read by the source of the same name, or
by the first that includes it.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

import compile_database

Lines = list[tuple[int, int]]  # first and last, from 1
WHOLE: Lines = [(1, 1_000_000)]


def git(*arguments: str) -> str | None:
    """What git prints; None if it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=compile_database.REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def commit_before() -> str | None:
    """Where the branch left origin/main, or the commit before the last one; None: this is all that git has."""
    base = git("merge-base", "HEAD", "origin/main")
    if base is not None and base != git("rev-parse", "HEAD"):
        return base
    return git("rev-parse", "--verify", "--quiet", "HEAD~1")


def changed_lines(diff: str) -> dict[str, Lines]:
    """The lines that are there since a change, of each file of `git diff --unified=0`."""
    changed: dict[str, Lines] = {}
    path = ""
    for line in diff.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ ").removeprefix("b/")
        elif hunk := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(hunk[1]), int(hunk[2] or 1)
            if count:
                changed.setdefault(path, []).append((first, first + count - 1))
    return changed


def readers(changed: list[str], sources: list[str], repository: pathlib.Path) -> list[str]:
    """The fewest sources that have all of the changed files in them."""
    found = [path for path in changed if path in sources]
    for header in (path for path in changed if path.endswith(".h")):
        include = f'#include "{header}"'
        own = header.removesuffix(".h") + ".cc"
        candidates = [own] * (own in sources) + found + [source for source in sources if source not in found]
        for source in candidates:
            if include in (repository / source).read_text(encoding="utf-8"):
                found += [source] * (source not in found)
                break
    return found


def main() -> int:
    """Reads the arguments and runs clang-tidy."""
    parser = argparse.ArgumentParser(prog="./dev tidy", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="these sources; by default all that are built")
    parser.add_argument("--changed", action="store_true", help="what has changed, in commits and beside them")
    since = (
        "the same, since this one; by default since the branch left origin/main, or since the commit before the last"
    )
    parser.add_argument("--since", metavar="COMMIT", help=since)
    parser.add_argument("--seconds", type=float, help="bound of the whole; what is left then is named and no failure")
    parser.add_argument("--build", type=pathlib.Path, required=True, help="folder that holds compile_commands.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    sources = list(compile_database.read(arguments.build))
    command = ["clang-tidy-14", "-p", str(arguments.build.resolve()), "--quiet"]
    if arguments.changed or arguments.since:
        since = arguments.since or commit_before()
        if since is None:
            print("nothing to compare with: the history ends here")
            return 0
        diff = git("diff", "--unified=0", since, "--", "*.cc", "*.h")
        new = git("ls-files", "--others", "--exclude-standard", "--", "*.cc", "*.h")
        if diff is None or new is None:
            parser.error(f"git does not know {since}")
        changed = changed_lines(diff) | {path: WHOLE for path in new.splitlines()}
        command.append("--line-filter=" + json.dumps([{"name": p, "lines": lines} for p, lines in changed.items()]))
        files = readers(list(changed), sources, compile_database.REPOSITORY)
    else:
        files = [os.path.relpath(pathlib.Path(file).resolve(), compile_database.REPOSITORY) for file in arguments.files]
        if unknown := [file for file in files if file not in sources]:
            parser.error(f"not built in {arguments.build}: {' '.join(unknown)}")
        files = files or sources

    results = compile_database.run({file: [*command, file] for file in files}, arguments.jobs, arguments.seconds)
    for result in results.values():
        sys.stderr.write(re.sub(r"^\d+ warnings? generated\.\n", "", result.output, flags=re.MULTILINE))
    late = [file for file, result in results.items() if result.status is None]
    print(f"clang-tidy read {len(results) - len(late)} of {len(results)} sources")
    if late:
        print(f"not read within {arguments.seconds:g} s (./dev tidy FILE does): {' '.join(late)}")
    return 1 if any(result.status not in (0, None) for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
