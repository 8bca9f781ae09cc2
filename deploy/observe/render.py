"""Makes Grafana's dashboards and Prometheus' consoles of the pages; --check: are the committed ones those?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from page_service import SERVICE
from page_state import STATE
from panels import Page, Panel, Query

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parent
PAGES = (SERVICE, STATE)

GRAFANA_UNITS = {
    "seconds": "s",
    "bytes": "bytes",
    "bytes/s": "Bps",
    "flop/s": "flops",
    "ratio": "percentunit",
    "per second": "short",
    "count": "short",
}
GRAFANA_MATCHERS = {
    "MODEL": 'instance=~"$instance",model=~"$model"',
    "SERVER": 'instance=~"$instance"',
    "WINDOW": "$__rate_interval",
}
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID_WIDTH = 24


def substitute(expr: str, words: dict[str, str]) -> str:
    """The expression with its placeholders replaced."""
    return re.sub(r"\b(MODEL|SERVER|WINDOW)\b", lambda match: words[match[0]], expr)


def grafana_target(query: Query, index: int, instant: bool) -> dict[str, Any]:
    """One query as Grafana writes it."""
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATA_SOURCE,
        "expr": substitute(query.expr, GRAFANA_MATCHERS),
        "legendFormat": re.sub(r"\{(\w+)\}", r"{{\1}}", query.legend),
        "format": "table" if instant else "time_series",
        "instant": instant,
        "range": not instant,
    }


def grafana_panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    """One panel as Grafana writes it."""
    table = panel.kind == "table"
    made: dict[str, Any] = {
        "id": number,
        "type": {"stat": "stat", "table": "table"}.get(panel.kind, "timeseries"),
        "title": panel.title,
        "description": panel.about,
        "datasource": DATA_SOURCE,
        "gridPos": at,
        "targets": [grafana_target(query, i, table) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": {"unit": GRAFANA_UNITS[panel.unit], "min": 0}, "overrides": []},
    }
    if panel.kind == "stat":
        made["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "none",
            "graphMode": "area",
            "textMode": "value",
        }
    elif table:
        made["transformations"] = [
            {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}},
        ]
    else:
        made["fieldConfig"]["defaults"]["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.kind == "stacked" else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.kind == "stacked" else "none", "group": "A"},
        }
        made["options"] = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return made


def grafana_variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice at the top of the page whose values are a label's."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATA_SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def grafana_dashboard(page: Page) -> dict[str, Any]:
    """A page as Grafana reads it from a file."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in page.rows:
        place = {"x": 0, "y": y, "w": GRID_WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": place})
        y += 1
        height = 4 if row.panels[0].kind == "stat" else 8
        # Columns share the width; the last takes what is left over.
        for i, panel in enumerate(row.panels):
            x = GRID_WIDTH * i // len(row.panels)
            width = GRID_WIDTH * (i + 1) // len(row.panels) - x
            panels.append(grafana_panel(panel, len(panels) + 1, {"x": x, "y": y, "w": width, "h": height}))
        y += height
    return {
        "uid": f"palimpsest-{page.name}",
        "title": page.title,
        "description": page.about,
        "tags": ["palimpsest"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "Palimpsest", "tags": ["palimpsest"], "keepTime": True}],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                grafana_variable("instance", "Server", "label_values(palimpsest_build_info, instance)"),
                grafana_variable("model", "Model", "label_values(palimpsest_slots, model)"),
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


def console(page: Page) -> str:
    """A page as a Prometheus console: one file that needs nothing but Prometheus' own API."""
    text = (HERE / "console.html").read_text()
    links = [{"name": other.name, "title": other.title.split(": ")[1].capitalize()} for other in PAGES]
    data = json.dumps(
        {"name": page.name, "title": page.title, "pages": links, "rows": dataclasses.asdict(page)["rows"]}
    )
    text = text.replace("PAGE_TITLE", page.title).replace("PAGE_DATA", data.replace("</", "<\\/"))
    if "{{" in text:
        raise ValueError(f"{page.name}: the console would be taken for a template")
    return text


def rendered() -> dict[Path, str]:
    """Every generated file and its text."""
    files = {}
    for page in PAGES:
        dashboard = json.dumps(grafana_dashboard(page), indent=2) + "\n"
        files[DEPLOY / "grafana" / "dashboards" / f"{page.name}.json"] = dashboard
        files[DEPLOY / "prometheus" / "consoles" / f"{page.name}.html"] = console(page)
    return files


def main() -> int:
    """Writes, or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it should be")
    arguments = parser.parse_args()
    stale = 0
    for path, text in rendered().items():
        if arguments.check:
            if not path.exists() or path.read_text() != text:
                print(f"{path.relative_to(DEPLOY.parent)} is not what deploy/observe/render.py makes; run it")
                stale += 1
        else:
            path.write_text(text)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
