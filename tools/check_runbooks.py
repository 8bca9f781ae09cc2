"""Checks that every alert names its section of docs/operations.md, and that the section is there."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules"
LINK = re.compile(r"docs/[\w/.-]+\.md#[\w-]+")


def anchors(document: Path) -> set[str]:
    """The anchors that its headings make, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def main() -> int:
    """Prints what is wrong."""
    wrong: list[str] = []
    alerts = 0
    for path in sorted(RULES.glob("*.yml")):
        for block in re.split(r"^ *- (?=alert: |record: )", path.read_text(), flags=re.MULTILINE):
            if (named := re.match(r"alert: (\w+)", block)) is None:
                continue
            alerts += 1
            wanted = f"docs/operations.md#{named[1].lower()}"
            if not re.search(rf"^ *runbook: {re.escape(wanted)}$", block, re.MULTILINE):
                wrong.append(f"{path.relative_to(ROOT)}: {named[1]} has no `runbook: {wanted}`")
    if alerts == 0:
        wrong.append(f"{RULES.relative_to(ROOT)} has no alerts")
    sources = [*RULES.glob("*.yml"), *(ROOT / "deploy" / "observe").glob("*.py")]
    for link in sorted({match for path in sources for match in LINK.findall(path.read_text())}):
        document, anchor = link.split("#")
        if not (ROOT / document).exists() or anchor not in anchors(ROOT / document):
            wrong.append(f"{link}: there is no such section")
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
