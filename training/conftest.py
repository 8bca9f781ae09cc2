"""Where PyTorch is not installed, tests that need it are left out, and the report says which."""

import importlib.util
import pathlib
import re

FOLDER = pathlib.Path(__file__).parent
HAS_TORCH = importlib.util.find_spec("torch") is not None
NEED_TORCH = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob("*_test.py")
    if re.search(r"^(import|from) torch\b", path.read_text(encoding="utf-8"), re.MULTILINE)
)
collect_ignore = [] if HAS_TORCH else NEED_TORCH


def pytest_report_header() -> str | None:
    """What this run leaves out."""
    return None if HAS_TORCH else f"no PyTorch here, left out: {', '.join(NEED_TORCH)}"
