import pathlib

import pytest
import sass


def listing(*code: str) -> str:
    lines = [
        f"        /*{16 * i:04x}*/              {line} ;     /* 0x0000000816148981 */" for i, line in enumerate(code)
    ]
    return "\n".join(["arch = sm_90a", "\t\tFunction : _Z1kPf", "\t.headerflags @...", *lines, "\t\t....."])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(["LDG.E R4, desc[UR4][R2.64]", "FADD R5, R4, 1"], (1, 4), id="one"),
        pytest.param(["LD.E.128 R4, desc[UR4][R2.64]", "LDS R5, [R8]"], (1, 16), id="of memory of any kind"),
        pytest.param(
            ["LDG.E.128 R4, desc[UR4][R2.64]", "@!P0 LDG.E.64 R8, desc[UR4][R2.64+0x10]", "FADD R0, R7, R9"],
            (2, 24),
            id="two before they are read",
        ),
        pytest.param(
            ["LDG.E.128 R4, desc[UR4][R2.64]", "FADD R0, R6, 1", "LDG.E.U16 R8, desc[UR4][R2.64]"],
            (1, 16),
            id="read before the next",
        ),
        pytest.param(
            ["LDG.E R4, desc[UR4][R2.64]", "LDG.E R4, desc[UR4][R2.64+0x4]"], (1, 4), id="the same register again"
        ),
        pytest.param(
            ["LDG.E R2, desc[UR4][R10.64]", "LDG.E R4, desc[UR4][R2.64]"], (1, 4), id="an address that was loaded"
        ),
        pytest.param(
            [
                "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R4.64]",
                "LDGSTS.E.BYPASS.128 [R3+0x10], desc[UR4][R4.64]",
                "LDGDEPBAR",
                "DEPBAR.LE SB0, 0x2",
            ],
            (6, 96),
            id="copies of two groups that a wait leaves, and the third",
        ),
        pytest.param(["FADD R5, R4, 1"], (0, 0), id="none"),
    ],
)
def test_counts_what_is_not_waited_for(code: list[str], expected: tuple[int, int]) -> None:
    assert sass.loads_in_flight(listing(*code)) == {"_Z1kPf": expected}


def test_kernels_are_told_apart() -> None:
    text = listing("LDG.E R4, desc[UR4][R2.64]") + "\n" + listing("FADD R5, R4, 1").replace("_Z1kPf", "_Z1lPf")
    assert sass.loads_in_flight(text) == {"_Z1kPf": (1, 4), "_Z1lPf": (0, 0)}


def test_an_object_without_code_has_no_listing(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "cuobjdump"
    program.write_text("#!/bin/sh\necho 'no code' >&2\nexit 1\n")
    program.chmod(0o755)
    assert sass.listing(str(program), tmp_path / "a.o", "sm_90a") == ""
