"""`./dev gpu` with scripts in place of the programs and of the driver. All numbers here are made up."""

import json
import pathlib
import sys
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
        op("chunks", rule="delta", products="tf32", tokens=64, sequences=8),
        op("chunks", rule="channel_gated_delta", products="f32", tokens=64, sequences=8),
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
        {"group": "chunks", "rule": "delta", "dtype": "bfloat16", "sequences": 8, "tokens": 64, "seconds": 5e-5},
    ],
}


def script(path: pathlib.Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "good_test_on_device", 'test "$LD_LIBRARY_PATH" = /libraries')
    script(folder / "device_bench", f"cat {tmp_path}/bench.json")
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(gpu, "describe_gpu", lambda: GPU)
    found = gpu.Machine(folder, [pathlib.Path("/libraries")], None, "abc123")
    monkeypatch.setattr(gpu, "find_machine", lambda: found)
    return found


def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *stages: str) -> tuple[int, str, dict[str, Any]]:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(tmp_path / "out"), *stages])
    status = gpu.main()
    (report,) = (tmp_path / "out").glob("test-gpu-1-*.md")
    return status, report.read_text(), json.loads(report.with_suffix(".json").read_text())


@pytest.mark.usefixtures("machine")
def test_stages_run_one_by_one_fill_one_report(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, report, _ = run(tmp_path, monkeypatch, "tests")
    assert status == 0
    assert "1 of 1 programs passed" in report and "not measured" in report
    status, report, results = run(tmp_path, monkeypatch, "bench")
    assert status == 0
    assert "1 of 1 programs passed" in report
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |" in report
    assert "95 % to 95 %: reached" in report
    assert set(results["stages"]) == {"tests", "bench"}


def test_a_failure_is_told_and_the_rest_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    script(machine.bin / "bad_test_on_device", "echo it is broken; exit 3")
    script(machine.bin / "slow_test_on_device", "exec sleep 60")
    real = gpu.run_step
    monkeypatch.setattr(gpu, "run_step", lambda step, seconds: real(step, min(seconds, 0.3)))
    status, report, results = run(tmp_path, monkeypatch, "tests")
    assert status == 1
    assert "1 of 3 programs passed" in report
    assert "failed: bad_test_on_device, exit status 3" in report
    assert "failed: slow_test_on_device, stopped after 0 s" in report
    assert "it is broken" in results["stages"]["tests"]["steps"][0]["tail"]


def test_a_failed_benchmark_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    script(machine.bin / "device_bench", "echo wrong >&2; exit 1")
    status, report, _ = run(tmp_path, monkeypatch, "bench")
    assert status == 1
    assert "## Ops\n\nFailed: exit status 1." in report


def test_a_missing_tool_skips_its_stage(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, machine: gpu.Machine
) -> None:
    monkeypatch.setattr(gpu, "find_tool", lambda name: None)
    status, report, _ = run(tmp_path, monkeypatch, "sanitizers")
    assert status == 0
    assert "Skipped: compute-sanitizer is not on PATH" in report
    monkeypatch.setattr(gpu, "find_tool", lambda name: f"/tools/{name}")
    steps = gpu.sanitizer_steps(machine)
    assert isinstance(steps, list)
    assert {step.name.split(":")[0] for step in steps} == {"memcheck", "racecheck", "initcheck", "synccheck"}
    assert sum(step.seconds for step in steps) <= gpu.STAGE_SECONDS


def test_goals_compare_with_the_fastest_of_fla() -> None:
    stages: dict[str, Any] = {
        name: {"steps": [{"name": name, "passed": True, "data": data}]}
        for name, data in (("bench", BENCH), ("fla", FLA))
    }
    stages["models"] = {"steps": [{"name": "1.3b", "passed": True, "data": MODEL}]}
    results = {"gpu": GPU, "date": "2001-01-01", "commit": "c", "command": "x", "stages": stages}
    step, faster, replay, mixer, chunks, decode, engine = (reach(results) for _, reach in gpu_report.GOALS)
    assert step == "95 % to 95 %: reached"
    assert faster == "1.40x to 1.40x: reached"
    assert replay == "1.67x to 1.67x: reached"
    assert mixer == "2.50x to 2.50x: reached"
    assert chunks == "0.50x to 0.50x: not reached"
    assert decode == "2.00x to 2.00x: not reached"
    assert engine == "97 % to 97 %: reached"
    assert "- engine, 64 streams: 97 % of the bare forward" in gpu_report.report(results)
    assert "| delta | tf32 | 8 x 64 | 100.0 | 1.0 | 95 % | 50.0 | 0.50x |" in gpu_report.report(results)


@pytest.mark.usefixtures("machine")
def test_rules_and_states_stand_side_by_side(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, report, results = run(tmp_path, monkeypatch, "bench")
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |  |" in report
    assert "| delta | bf16 | 64 | 62.5 | 950 | 80 % | 1.60x |" in report
    assert "| low rank | f32 | 64 | 100.0 | 950 | 95 % |  |" in report
    # A replay against the one of the same interval, if there is one.
    assert "| delta | bf16 | 64 | 4 | 50.0 | 95 % | 1.60x |" in report
    assert "| delta | bf16 | 64 | 16 | 50.0 | 95 % |  |" in report
    assert "| channel gated delta | f32 | 8 x 64 | 100.0 |" in report
    # fla keeps its states as float32.
    results["stages"]["fla"] = {"steps": [{"name": "fla", "passed": True, "data": FLA}]}
    report = gpu_report.report(results)
    assert "| delta | f32 | 64 | 100.0 | 950 | 95 % |  | 140.0 | 1.40x |" in report
    assert "| delta | bf16 | 64 | 62.5 | 950 | 80 % | 1.60x |  |  |" in report


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
    monkeypatch.setattr(gpu, "random_weights", lambda preset: (tmp_path / preset, []))
    return machine


@pytest.mark.usefixtures("served")
def test_a_served_system_is_compared_and_loaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, report, _ = run(tmp_path, monkeypatch, "serve")
    assert status == 0
    assert "6 of 6 texts are the same" in report
    assert "| session of the device, continued on the processor | 32 of 32 | 0.0e+00 |  |" in report
    assert "### 1.3b: 0M parameters, a device" in report
    # Two seconds of four within iterations, one of them waiting.
    assert "| 64 | 1234 | 1.00 | 2.00 | 1.00 | 2.00 | 1.0 | 50.00 | 50 % | 50 % | 50 % |" in report
    assert "after SIGTERM: text, device: 0, text, processor: 0, books-5m, device: 0, 1.3b, device: 0." in report


def test_a_server_that_ends_badly_is_told_with_what_it_did(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, served: gpu.Machine
) -> None:
    (served.bin / "exit_status").write_text("3")
    status, report, _ = run(tmp_path, monkeypatch, "serve")
    assert status == 1
    assert "- failed: books-5m: device: exit status 3 after SIGTERM:" in report
    assert "| 256 | 1234 |" in report and "text, device: 3" in report


def test_a_rehearsal_says_that_no_gpu_was_used(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, served: gpu.Machine
) -> None:
    monkeypatch.setattr(gpu, "PACK", tmp_path / "pack.tar.xz")
    monkeypatch.setattr("sys.argv", ["gpu.py", "serve", "--backend=cpu"])
    assert gpu.main() == 0
    (report,) = (tmp_path / "rehearsal").glob("rehearsal-*.md")
    assert "No GPU was used" in report.read_text() and "### 30m" in report.read_text()
    monkeypatch.setattr("sys.argv", ["gpu.py", "serve", "bench", "--backend=cpu"])
    with pytest.raises(SystemExit):
        gpu.main()


def test_replies_are_compared_up_to_where_they_part() -> None:
    def reply(*ids: int) -> dict[str, Any]:
        top = [{"id": 1, "logprob": -0.25}, {"id": 2, "logprob": -0.75}]
        return {"text": "", "position": 9, "tokens": [{"id": i, "logprob": -0.1 * i, "top": top} for i in ids]}

    row = gpu_serve.compare(reply(1, 2, 3), reply(1, 2, 4))
    assert (row["alike"], row["tokens"], row["margin"]) == (2, 3, 0.5)
    assert "margin" not in gpu_serve.compare(reply(1, 2), reply(1, 2))
