import json
import pathlib

import kernel_resources
import pytest

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN10palimpsest4cuda20FastWeightRowsKernelILi128ELNS_10UpdateRuleE1EEEvNS0_20\
FastWeightRowsParamsE' for 'sm_90a'
ptxas info    : Function properties for _ZN10palimpsest4cuda20FastWeightRowsKernelILi128ELNS_10UpdateRuleE1EEEvNS0_20\
FastWeightRowsParamsE
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 126 registers, used 1 barriers, {stack} bytes cumulative stack size, 512 bytes smem
ptxas info    : Compiling entry function '_ZN10palimpsest4cuda14SinusoidKernelENS_14SinusoidParamsE' for 'sm_80'
ptxas info    : Function properties for _ZN10palimpsest4cuda14SinusoidKernelENS_14SinusoidParamsE
    32 bytes stack frame, {spilt} bytes spill stores, {spilt} bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 32 bytes cumulative stack size
"""


def run(tmp_path: pathlib.Path, text: str) -> tuple[int, list[dict[str, object]]]:
    (tmp_path / "objects" / "deep").mkdir(parents=True)
    (tmp_path / "objects" / "deep" / "a.cu.o.ptxas.txt").write_text(text)
    status = kernel_resources.report(tmp_path / "objects", tmp_path / "out")
    written = tmp_path / "out.json"
    return status, json.loads(written.read_text()) if written.exists() else []


def test_reports_every_kernel(tmp_path: pathlib.Path) -> None:
    status, kernels = run(tmp_path, REPORT.format(stack=0, stores=0, loads=0, spilt=0))
    assert status == 0
    assert [(k["name"], k["architecture"], k["registers"]) for k in kernels] == [
        ("FastWeightRowsKernel<128, UpdateRule 1>", "sm_90a", 126),
        ("SinusoidKernel", "sm_80", 12),
    ]
    assert kernels[0]["shared_bytes"] == 512
    text = (tmp_path / "out.txt").read_text().splitlines()
    # No object file is there, whose loads could be counted.
    assert len(text) == 3 and text[1].split()[-8:] == ["126", "0", "0", "0", "512", "1", "-", "-"]


def test_counts_loads_where_there_is_a_disassembler(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cuobjdump"
    program.write_text(
        "#!/bin/sh\n"
        'case "$3" in\n'
        "  sm_80) echo 'Function : _ZN10palimpsest4cuda14SinusoidKernelENS_14SinusoidParamsE'\n"
        "         echo '/*0000*/ LDG.E.128 R4, desc[UR4][R2.64] ; /* 0x00 */' ;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "objects" / "deep").mkdir(parents=True)
    (tmp_path / "objects" / "deep" / "a.cu.o").write_bytes(b"")
    (tmp_path / "objects" / "deep" / "a.cu.o.ptxas.txt").write_text(REPORT.format(stack=0, stores=0, loads=0, spilt=0))
    assert kernel_resources.report(tmp_path / "objects", tmp_path / "out") == 0
    kernels = json.loads((tmp_path / "out.json").read_text())
    assert [(k["loads_in_flight"], k["bytes_in_flight"]) for k in kernels] == [(None, None), (1, 16)]


@pytest.mark.parametrize("left", [{"stack": 8}, {"stores": 4}, {"loads": 4}])
def test_fails_when_a_kernel_leaves_the_registers(
    tmp_path: pathlib.Path, left: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run(tmp_path, REPORT.format(**{"stack": 0, "stores": 0, "loads": 0, "spilt": 0, **left}))
    assert status == 1
    told = capsys.readouterr().err
    assert "FastWeightRowsKernel<128, UpdateRule 1> for sm_90a" in told and "Sinusoid" not in told


def test_a_known_stack_is_no_excuse_for_spills(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, REPORT.format(stack=0, stores=0, loads=0, spilt=8))[0] == 1
    assert "SinusoidKernel for sm_80" in capsys.readouterr().err


def test_a_missing_report_is_a_failure(tmp_path: pathlib.Path) -> None:
    assert kernel_resources.report(tmp_path, tmp_path / "out") == 1


def test_keeps_what_ptxas_says_and_passes_on_the_rest(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        "echo 'ptxas info    : 0 bytes gmem' >&2\n"
        "echo '    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads' >&2\n"
        "echo 'a.cu(1): warning: odd' >&2\n"
        "exit $1\n"
    )
    compiler.chmod(0o755)
    object_file = tmp_path / "a.o"
    assert kernel_resources.compile_and_keep([str(compiler), "0", "-o", str(object_file)]) == 0
    assert capsys.readouterr().err == "a.cu(1): warning: odd\n"
    assert len((tmp_path / "a.o.ptxas.txt").read_text().splitlines()) == 2
    assert kernel_resources.compile_and_keep([str(compiler), "3", "-o", str(tmp_path / "b.o")]) == 3
    assert not (tmp_path / "b.o.ptxas.txt").exists()
