import json
import pathlib
import sys

import compile_database


def test_flags_that_say_what_a_source_means(tmp_path: pathlib.Path) -> None:
    build = tmp_path / "build" / "release"
    build.mkdir(parents=True)
    command = "/usr/bin/c++ -DA='\"b c\"' -I/x -isystem /y -O3 -Wall -std=c++20 -o a.o -c"
    entries = [
        {"directory": str(build), "command": f"{command} {tmp_path}/server/a.cc", "file": f"{tmp_path}/server/a.cc"},
        {"directory": str(build), "command": f"{command} -DTWICE", "file": f"{tmp_path}/server/a.cc"},
        {"directory": str(build), "command": command, "file": f"{build}/proto/made.cc"},
    ]
    (build / "compile_commands.json").write_text(json.dumps(entries))
    flags = ['-DA="b c"', "-I/x", "-isystem", "/y", "-std=c++20"]
    assert compile_database.read(build, tmp_path) == {"server/a.cc": flags}


def test_a_bound_of_time_is_for_all_together() -> None:
    wait = [sys.executable, "-c", "import time; time.sleep(30)"]
    quick = [sys.executable, "-c", "import sys; print('said'); sys.exit(3)"]
    assert compile_database.run({"quick": quick}, jobs=1) == {"quick": compile_database.Result(3, "said\n")}
    late = compile_database.run({"slow": wait, "next": quick}, jobs=1, seconds=0.2)
    assert [result.status for result in late.values()] == [None, None]
