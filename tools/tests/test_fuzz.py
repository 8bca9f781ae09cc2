import re
from pathlib import Path

import fuzz
import fuzz_corpus

ROOT = Path(__file__).resolve().parent.parent.parent


def names_in_cmake() -> list[str]:
    return re.findall(r"^palimpsest_fuzzer\((\w+)", (ROOT / "tests/fuzz/CMakeLists.txt").read_text(), re.MULTILINE)


def test_every_target_is_run_and_has_seeds():
    assert names_in_cmake() == [target.name for target in fuzz.TARGETS]
    assert names_in_cmake() == list(fuzz_corpus.SEEDS)


def test_the_corpora_have_the_seeds_that_are_described():
    for target, seeds in fuzz_corpus.SEEDS.items():
        for name, seed in seeds().items():
            assert (fuzz_corpus.CORPUS / target / name).read_bytes() == seed, f"{target}/{name}"


def test_seeds_are_as_long_as_their_target_takes():
    for target in fuzz.TARGETS:
        longest = max((fuzz_corpus.CORPUS / target.name).iterdir(), key=lambda path: path.stat().st_size)
        assert longest.stat().st_size <= target.max_len, longest


def test_numbers_are_read_from_what_libfuzzer_prints():
    log = """#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb
#8192\tpulse  cov: 312 ft: 840 corp: 97/12Kb lim: 80 exec/s: 4096 rss: 51Mb
stat::number_of_executed_units: 9001
stat::average_exec_per_sec:     4500
stat::peak_rss_mb:              52
"""
    assert fuzz.read("config", log) == fuzz.Result("config", 9001, 4500, 312, 840, 97, 52)


def test_a_run_that_ended_early_has_the_numbers_of_its_last_line():
    log = "#8192\tpulse  cov: 312 ft: 840 corp: 97/12Kb lim: 80 exec/s: 4096 rss: 51Mb\n==7== ERROR: libFuzzer\n"
    assert fuzz.read("config", log).executions == 8192
    failed = fuzz.Result("config", failed=True)
    assert fuzz.table([failed]).endswith("failed")
