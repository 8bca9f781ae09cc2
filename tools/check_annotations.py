"""Checks what is said about locks (ABSL_GUARDED_BY and its kin) with clang, which alone can.

Only sources that say such a thing are read, and those that include a header of ours that does; nothing is compiled.
"""

import argparse
import os
import pathlib
import re
import sys

import compile_database

ANNOTATION = re.compile(r"\bABSL_\w*(GUARDED_BY|LOCK|ACQUIRED_|ASSERT_)")


def annotated(sources: list[str], repository: pathlib.Path) -> list[str]:
    """Those of the sources that annotate, or include a header of the repository that does."""
    says: dict[str, bool] = {}

    def says_it(path: str, text: str) -> bool:
        if path not in says:
            says[path] = ANNOTATION.search(text) is not None
        return says[path]

    found = []
    for source in sources:
        text = (repository / source).read_text(encoding="utf-8")
        headers = [h for h in re.findall(r'#include "([^"]+)"', text) if (repository / h).is_file()]
        if says_it(source, text) or any(says_it(h, (repository / h).read_text(encoding="utf-8")) for h in headers):
            found.append(source)
    return found


def main() -> int:
    """Reads the arguments and checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="folder that holds compile_commands.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    flags = compile_database.read(arguments.build)
    clang = ["clang++-14", "-fsyntax-only", "-Wno-everything", "-Wthread-safety", "-Werror=thread-safety"]
    sources = annotated(list(flags), compile_database.REPOSITORY)
    results = compile_database.run({s: [*clang, *flags[s], s] for s in sources}, arguments.jobs)
    for result in results.values():
        sys.stderr.write(result.output)
    if not results:
        print("no source says anything about locks: the wrong build folder?", file=sys.stderr)
        return 1
    return 1 if any(result.status != 0 for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
