"""`./dev gpu` with scripts in place of the programs and of the driver. All numbers here are made up."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import gpu
import gpu_report
import gpu_serve
import pytest

GPU = {
    "name": "Test GPU 1",
    "driver_version": "1.2",
    "memory.total": "10 MiB",
    "clocks.max.sm": "1 MHz",
    "clocks.max.memory": "2 MHz",
    "power.limit": "3 W",
}


def op(group: str, **labels: Any) -> dict[str, Any]:
    figures = {"seconds": 1e-4, "bytes_per_second": 9.5e11, "flops_per_second": 1e12, "bound_share": 0.95}
    return {"name": f"{group}/x", "group": group, "bound": "bytes", **figures, **labels}


BENCH = {
    "ceilings": {"copy_bytes_per_second": 1e12, "bf16_flops_per_second": 2e14, "tf32_flops_per_second": 1e14},
    "measurements": [
        op("step", rule="delta", states="f32", batch=1, bound_share=0.2),
        op("step", rule="delta", states="f32", batch=64),
        op("step", rule="delta", states="bf16", batch=64, seconds=6.25e-5, bound_share=0.8),
        op("step", rule="sum", states="f32", batch=128),
        op("step", rule="low_rank", states="f32", batch=64),
        op("replay", rule="delta", states="f32", batch=64, interval=8, seconds=6e-5),
        op("replay", rule="delta", states="f32", batch=64, interval=4, seconds=8e-5),
        op("replay", rule="delta", states="bf16", batch=64, interval=4, seconds=5e-5),
        op("replay", rule="delta", states="bf16", batch=64, interval=16, seconds=5e-5),
        op("mixer", model="delta_net", form="fused", batch=1, kernels=1, seconds=4e-5),
        op("mixer", model="delta_net", form="op_by_op", batch=1, kernels=6),
        op("chunks", rule="delta", products="tf32", heads=16, value_heads=16, tokens=64, sequences=8),
        op("chunks", rule="channel_gated_delta", products="f32", heads=16, value_heads=16, tokens=64, sequences=8),
        op("linear_steps", projection="qkv", kind="bf16", rows=8),
        op("layer", op="gate", batch=1),
        op("sample", kind="greedy"),
    ],
}
MODEL = {
    "parameters": 2e6,
    "weight_dtype": "bf16",
    "math": "bf16",
    "machine": {"read_gb_per_second": 900},
    "decode": [{"batch": 1, "seconds": 1e-3, "tokens_per_second": 1000, "bytes_share": 0.5}],
    "prefill": [{"tokens": 64, "seconds": 1e-3, "tokens_per_second": 64000}],
    "position": {"far_position": 20000, "far_over_near": 1.01},
    "engine": {"streams": 64, "share_of_forward": 0.97},
}
FLA = {
    "versions": {"fla": "0"},
    "measurements": [
        {"group": "step", "rule": "delta", "dtype": "float32", "batch": 64, "seconds": 2e-4},
        {"group": "step", "rule": "delta", "dtype": "bfloat16", "batch": 64, "seconds": 1.4e-4},
        {"group": "chunks", "rule": "delta", "sequences": 8, "tokens": 64, "value_heads": 16, "seconds": 5e-5},
    ],
}


def lines_of(data: dict[str, Any]) -> list[str]:
    """As a program prints them: what belongs to all, then each measurement."""
    rest = {key: value for key, value in data.items() if key != "measurements"}
    return [json.dumps(row) for row in [rest, *data["measurements"]]]


def script(path: pathlib.Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "good_test_on_device", 'test "$LD_LIBRARY_PATH" = /libraries')
    script(folder / "device_bench", f"cat {tmp_path}/bench.jsonl")
    (tmp_path / "bench.jsonl").write_text("\n".join(lines_of(BENCH)) + "\n")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(gpu, "describe_gpu", lambda: GPU)
    found = gpu.Machine(folder, [pathlib.Path("/libraries")], None, "abc123")
    monkeypatch.setattr(gpu, "find_machine", lambda: found)
    monkeypatch.setattr(gpu, "random_weights", lambda machine: None)
    return found


def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(tmp_path / "out"), *arguments])
    status = gpu.main()
    (report,) = (tmp_path / "out").glob("test-gpu-1-*.md")
    lines = report.with_suffix(".jsonl").read_text().splitlines()
    return status, report.read_text(), gpu_report.results_of(lines)


@pytest.mark.usefixtures("machine")
def test_stages_run_one_by_one_fill_one_report(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, report, _ = run(tmp_path, monkeypatch, "tests")
    assert status == 0
    assert "1 of 1 programs passed" in report and "not measured" in report
    status, report, results = run(tmp_path, monkeypatch, "core")
    assert status == 0
    assert "1 of 1 programs passed" in report
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |" in report
    assert "95 % to 95 %: reached" in report
    assert set(results["stages"]) == {"tests", "core"}


def test_results_go_where_the_variable_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    script(machine.bin / "bad_test_on_device", "exit 3")
    monkeypatch.setenv("OUT", str(tmp_path / "kept"))
    monkeypatch.setattr("sys.argv", ["gpu.py", "tests"])
    assert gpu.main() == 1
    (lines,) = (tmp_path / "kept").glob("*.jsonl")
    # Runs of several machines make one report, where the last word on a step counts.
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines.read_text().replace('"ended": "exit status 3", ', "").splitlines()))
    monkeypatch.setattr("sys.argv", ["gpu.py", "--merge", str(lines), str(other)])
    assert gpu.main() == 0
    assert "tests: 2 of 2 passed" in capsys.readouterr().out


def test_a_failure_is_told_and_the_rest_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    script(machine.bin / "bad_test_on_device", "echo it is broken; exit 3")
    # It hangs with a child that would hold its output, and the device, for ever.
    script(machine.bin / "slow_test_on_device", f"sleep 61 & echo $! > {tmp_path}/child; wait")
    real = gpu.test_steps
    monkeypatch.setattr(
        gpu.STAGES[1], "steps", lambda machine: [gpu.dataclasses.replace(s, seconds=2.5) for s in real(machine)]
    )
    status, report, results = run(tmp_path, monkeypatch, "tests")
    assert status == 1
    assert "1 of 3 programs passed" in report
    assert "failed: bad_test_on_device, exit status 3" in report
    assert "failed: slow_test_on_device, stopped after 2 s" in report
    assert "it is broken" in results["stages"]["tests"]["steps"][0]["tail"]
    child = pathlib.Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_wrong_result_and_a_crash_leave_what_was_measured(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    wrong = json.dumps({"failed": "step/delta/batch/8", "what": "its state", "error": 0.5, "allowed": 1e-5})
    script(machine.bin / "device_bench", f"cat {tmp_path}/bench.jsonl; echo '{wrong}'; kill -9 $$")
    status, report, _ = run(tmp_path, monkeypatch, "core")
    assert status == 1
    assert "- failed: core, exit status -9" in report and "- wrong: step/delta/batch/8" in report
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |" in report


def test_a_kill_at_any_moment_takes_nothing_that_was_measured(tmp_path: pathlib.Path) -> None:
    for name, text in (
        ("nvidia-smi", 'echo "GPU, 1, 2 MiB, 3 MHz, 4 MHz, 5 W"'),
        ("device_bench", """printf '%s\\n' '{"name": "x", "group": "layer", "seconds": 1}'; exec sleep 62"""),
        *((name, "exit 1") for name in gpu.PROGRAMS[1:]),
    ):
        script(tmp_path / name, text)
    code = f"import gpu, pathlib; gpu.PACK = gpu.BUILT = pathlib.Path({str(tmp_path)!r}); "
    code += "gpu.PACK /= 'none'; gpu.cublas_folders = list; raise SystemExit(gpu.main())"
    for number in (signal.SIGTERM, signal.SIGKILL):
        out = tmp_path / f"out-{number}"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "core"],
            cwd=pathlib.Path(gpu.__file__).parent,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(out)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 30
        while not any('"row"' in path.read_text() for path in out.glob("*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        process.wait(30)
        (lines,) = out.glob("*.jsonl")
        (step,) = gpu_report.results_of(lines.read_text().splitlines())["stages"]["core"]["steps"]
        assert step["ended"] == "was killed"
        assert step["rows"] == [{"name": "x", "group": "layer", "seconds": 1}]
        assert number == signal.SIGKILL or list(out.glob("*.md"))


def test_a_missing_tool_skips_its_stage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    monkeypatch.setattr(gpu, "find_tool", lambda name: None)
    status, report, _ = run(tmp_path, monkeypatch, "sanitizers")
    assert status == 0
    assert "Skipped: compute-sanitizer is not on PATH" in report
    monkeypatch.setattr(gpu, "find_tool", lambda name: f"/tools/{name}")
    steps = gpu.sanitizer_steps(machine)
    assert {step.name for step in steps} == {"memcheck", "racecheck", "initcheck", "synccheck"}


def test_a_profile_is_read_as_the_tool_prints_it() -> None:
    line = '"0","7","device_bench","127.0.0.1","void palimpsest::cuda::<unnamed>::LinearKernel<4>(Params)","1","7",'
    line += '"(256, 1, 1)","(24, 1, 1)","0","9.0","GPU Speed Of Light Throughput","DRAM Throughput","%","87.5"'
    assert gpu.profile_row(line) == {
        "kernel": "LinearKernel",
        "metric": "DRAM Throughput",
        "unit": "%",
        "value": "87.5",
    }
    assert gpu.profile_row("==PROF== Connected") is None


def test_the_plans_fit_the_time_that_a_machine_is_lent_for() -> None:
    stages = {stage.name: stage for stage in gpu.STAGES}
    for seconds, names in gpu.PLANS.values():
        assert set(names) <= set(stages) and seconds <= 440


def test_goals_compare_with_the_fastest_of_fla() -> None:
    lines = [json.dumps({"run": {"gpu": GPU, "date": "2001-01-01", "commit": "c", "command": "x"}})]
    for stage, step, rows in (
        ("bench", "bench", lines_of(BENCH)),
        ("fla", "fla", lines_of(FLA)),
        ("models", "1.3b-6-layers", [json.dumps(MODEL)]),
    ):
        lines.append(json.dumps({"stage": stage, "step": step, "begin": 0}))
        lines += [json.dumps({"stage": stage, "step": step, "row": json.loads(row)}) for row in rows]
        lines.append(json.dumps({"stage": stage, "step": step, "end": {"seconds": 1}}))
    results = gpu_report.results_of(lines)
    step, faster, replay, mixer, chunks, decode, engine = (reach(results) for _, reach in gpu_report.GOALS)
    assert step == "95 % to 95 %: reached"
    assert faster == "1.40x to 1.40x: reached"
    assert replay == "1.67x to 1.67x: reached"
    assert mixer == "2.50x to 2.50x: reached"
    assert chunks == "0.50x to 0.50x: not reached"
    assert decode == "2.00x to 2.00x: not reached"
    assert engine == "97 % to 97 %: reached"
    report = gpu_report.report(results)
    assert "- engine, 64 streams: 97 % of the bare forward" in report
    assert "| delta | 16, 16 | tf32 | 8 x 64 | 100.0 | 1.0 | 95 % | 50.0 | 0.50x |" in report
    # fla keeps its states as float32.
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |  | 140.0 | 1.40x |" in report
    assert "| delta | bf16 | 64 | 62.5 | 950 | 80 % | 1.60x |  |  |" in report


@pytest.mark.usefixtures("machine")
def test_rules_and_states_stand_side_by_side(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report, _ = run(tmp_path, monkeypatch, "core")
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |  |" in report
    assert "| delta | bf16 | 64 | 62.5 | 950 | 80 % | 1.60x |" in report
    assert "| low rank | f32 | 64 | 100.0 | 950 | 95 % |  |" in report
    # A replay against the one of the same interval, if there is one.
    assert "| delta | bf16 | 64 | 4 | 50.0 | 95 % | 1.60x |" in report
    assert "| delta | bf16 | 64 | 16 | 50.0 | 95 % |  |" in report
    assert "| channel gated delta | 16, 16 | f32 | 8 x 64 | 100.0 |" in report


def test_two_commits_are_compared_in_one_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    slower = op("layer", op="gate", batch=1, seconds=3e-4)
    script(machine.bin / gpu.BEFORE, f"echo '{json.dumps(slower)}'")
    _, report, _ = run(tmp_path, monkeypatch, "core")
    assert "| layer/x | 300.0 | 100.0 | 3.00x |" in report


SERVER = """
import http.server, pathlib, signal, sys
flags = dict(flag.lstrip("-").split("=", 1) for flag in sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(pathlib.Path(__file__).with_name("exit_status").read_text())))
names = ["iterations_total", "iteration_seconds_sum", "batch_sequences_sum", "device_wait_seconds_total"]
names += ["device_recorded_passes_total", "device_direct_passes_total", "model_parameters"]
asked = 0

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        grown = dict.fromkeys(names, 40 * asked)
        grown |= {"iteration_seconds_sum": 2 * asked, "device_wait_seconds_total": asked}
        self.send_response(200)
        self.end_headers()
        for name, value in grown.items():
            self.wfile.write(f'palimpsest_{name}{{model="served"}} {value}\\n'.encode())

    def log_message(self, *_):
        pass

page = http.server.HTTPServer(("127.0.0.1", 0), Page)
pathlib.Path(flags["metrics_port_file"]).write_text(str(page.server_port))
pathlib.Path(flags["port_file"]).write_text("1")
page.serve_forever()
"""
CLIENT = """
import json, sys
latency = {"p50": 0.001, "p99": 0.002}
if sys.argv[1] == "generate":
    token = {"id": 7, "logprob": -0.5, "top": [{"id": 7, "logprob": -0.5}, {"id": 8, "logprob": -1.5}]}
    for position in range(32):
        print(json.dumps({"text": "a", "tokens": [token], "position": str(position)}))
if sys.argv[1] == "models":
    print(json.dumps({"backend": "a device"}))
if sys.argv[1] == "bench":
    times = {"time_to_first_token_seconds": latency, "time_per_output_token_seconds": latency}
    print(json.dumps({"seconds": 4, "completed": 3, "errors": {}, "generated_tokens_per_second": 1234, **times}))
"""


@pytest.fixture
def served(machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> gpu.Machine:
    for name, text in (("palimpsest-server", SERVER), ("palimpsest", CLIENT)):
        (machine.bin / name).write_text(f"#!{sys.executable}\n{text}")
        (machine.bin / name).chmod(0o755)
    (machine.bin / "exit_status").write_text("0")
    monkeypatch.setattr(gpu, "random_weights", lambda machine: (tmp_path / "random", None))
    return machine


@pytest.mark.usefixtures("served")
def test_a_served_system_is_compared_and_loaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, report, _ = run(tmp_path, monkeypatch, "serve")
    assert status == 0
    assert "6 of 6 texts are the same" in report
    assert "| session of the device, continued on the processor | 32 of 32 | 0.0e+00 |  |" in report
    assert "### random: 0M parameters, a device" in report
    # Two seconds of four within iterations, one of them waiting.
    assert "| 64 | 1234 | 1.00 | 2.00 | 1.00 | 2.00 | 1.0 | 50.00 | 50 % | 50 % | 50 % |" in report
    assert "after SIGTERM: text, device: 0, text, processor: 0, books-5m, device: 0, random, device: 0." in report


def test_a_server_that_ends_badly_is_told_with_what_it_did(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, served: gpu.Machine
) -> None:
    (served.bin / "exit_status").write_text("3")
    status, report, _ = run(tmp_path, monkeypatch, "serve")
    assert status == 1
    assert "- failed: books-5m, exit status 1" in report and "device: exit status 3 after SIGTERM:" in report
    assert "| 64 | 1234 |" in report and "text, device: 3" in report


def test_a_rehearsal_says_that_no_gpu_was_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, served: gpu.Machine
) -> None:
    monkeypatch.setattr(gpu, "PACK", tmp_path / "pack.tar.xz")
    monkeypatch.setattr(gpu, "EMULATED", served.bin)
    monkeypatch.setattr("sys.argv", ["gpu.py", "serve", "--backend=cpu"])
    assert gpu.main() == 0
    (report,) = (tmp_path / "rehearsal").glob("rehearsal-*.md")
    assert "No GPU was used" in report.read_text() and "### random" in report.read_text()


def test_replies_are_compared_up_to_where_they_part() -> None:
    def reply(*ids: int) -> dict[str, Any]:
        top = [{"id": 1, "logprob": -0.25}, {"id": 2, "logprob": -0.75}]
        return {"text": "", "position": 9, "tokens": [{"id": i, "logprob": -0.1 * i, "top": top} for i in ids]}

    row = gpu_serve.compare(reply(1, 2, 3), reply(1, 2, 4))
    assert (row["alike"], row["tokens"], row["margin"]) == (2, 3, 0.5)
    assert "margin" not in gpu_serve.compare(reply(1, 2), reply(1, 2))
