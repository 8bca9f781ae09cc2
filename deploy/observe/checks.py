"""Asks a running Prometheus for everything that we ship to watch a server, and says what has no data."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from panels import Page, Query
from render import GRAFANA_MATCHERS, PAGES, substitute

# What Grafana, and the consoles, put in for the placeholders when nothing has been chosen.
SUBSTITUTIONS = {
    "Grafana": {
        word: text.replace("$instance", ".*").replace("$model", ".*").replace("$__rate_interval", "30s")
        for word, text in GRAFANA_MATCHERS.items()
    },
    "console": {"SERVER": 'instance=~".*"', "MODEL": 'instance=~".*",model=~".*"', "WINDOW": "60s"},
}
# Prometheus runs on this machine, where the environment's proxies are of no use.
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

SELECTOR = re.compile(r"\b((?:palimpsest|process|up)[\w:]*)\s*(\{[^}]*\})?(?![\w(:])")


class Prometheus:
    """Its HTTP API."""

    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Raises ValueError with Prometheus' own words, OSError if nobody answers."""
        url = f"{self.base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with open_url(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error))) from error

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query that are numbers; a scalar is a sample without labels."""
        data = self.get("query", query=expr)
        samples: list[dict[str, Any]] = data["result"] if data["resultType"] == "vector" else []
        return [sample for sample in samples if math.isfinite(float(sample["value"][1]))]


@dataclass
class Report:
    """What was asked for, and what was wrong with it."""

    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        """One more of these was looked at."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def summary(self) -> str:
        """How much was looked at."""
        return "all have data: " + ", ".join(f"{number} {what}" for what, number in self.counts.items())


def selectors(expr: str) -> list[str]:
    """The series that an expression reads, without ranges."""
    # Lists of labels and strings hold no series; a string inside a matcher has to stay.
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expr)
    return sorted({match[1] + (match[2] or "") for match in SELECTOR.finditer(bare)})


def check_query(prometheus: Prometheus, query: Query, where: str, words: dict[str, str], report: Report) -> None:
    """One query of a panel: there is data, and it has the labels that the panel's legend and table rely on."""
    expr = substitute(query.expr, words)
    try:
        samples = prometheus.query(expr)
    except ValueError as error:
        report.problems.append(f"{where}: {error}: {expr}")
        return
    if not samples:
        report.problems.append(f"{where}: no data: {expr}")
    for sample in samples:
        if set(sample["metric"]) != set(query.by):
            report.problems.append(f"{where}: has labels {sorted(sample['metric'])}, not {sorted(query.by)}: {expr}")
            return
    for label in re.findall(r"\{(\w+)\}", query.legend):
        if label not in query.by:
            report.problems.append(f"{where}: the legend wants {label}, which the answer does not have: {expr}")


def check_page(prometheus: Prometheus, page: Page, with_machine: bool, report: Report) -> None:
    """Every panel of a page, as Grafana and as the console ask for it; and the console itself."""
    for kind, words in SUBSTITUTIONS.items():
        for row in page.rows:
            for panel in row.panels:
                for query in panel.queries:
                    if query.needs and not with_machine:
                        continue
                    check_query(prometheus, query, f"{page.name}, {panel.title} ({kind})", words, report)
                    report.count(f"{kind} queries")
    with open_url(f"{prometheus.base}/consoles/{page.name}.html", timeout=10) as answer:
        if page.title.encode() not in answer.read():
            report.problems.append(f"consoles/{page.name}.html is not served as it should be")
    report.count("consoles")


def check_rules(prometheus: Prometheus, report: Report) -> None:
    """Every recording rule has recorded, every alert's series are there, and none fires."""
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            name = f"rule {rule['name']}"
            if rule["health"] != "ok":
                report.problems.append(f"{name}: {rule['health']} {rule.get('lastError', '')}")
            if rule["type"] == "recording":
                report.count("recording rules")
                if not prometheus.query(rule["name"]):
                    report.problems.append(f"{name}: no data: {rule['query']}")
                continue
            report.count("alerts")
            wanted = selectors(rule["query"])
            if not wanted:
                report.problems.append(f"{name}: reads no series of ours: {rule['query']}")
            for selector in wanted:
                if not prometheus.query(selector):
                    report.problems.append(f"{name}: no such series: {selector}")
            # Those that may fire so soon tell of restarts and quarantines, which no load may bring about.
            if rule["state"] == "firing":
                report.problems.append(f"{name} fires: {[alert['annotations'] for alert in rule['alerts']]}")


def check_targets(prometheus: Prometheus, report: Report) -> None:
    """The server is scraped, and the lists that Grafana's variables offer are not empty."""
    targets = prometheus.get("targets")["activeTargets"]
    if [target["health"] for target in targets] != ["up"]:
        report.problems.append(f"targets: {[(target['scrapeUrl'], target['lastError']) for target in targets]}")
    for label, series in (("instance", "palimpsest_build_info"), ("model", "palimpsest_slots")):
        if not prometheus.get(f"label/{label}/values", **{"match[]": series}):
            report.problems.append(f"there is nothing to choose for {label}")
        report.count("variables")


def check_all(prometheus: Prometheus, with_machine: bool) -> Report:
    """Everything."""
    report = Report()
    try:
        check_targets(prometheus, report)
        for page in PAGES:
            check_page(prometheus, page, with_machine, report)
        check_rules(prometheus, report)
    except OSError as error:
        report.problems.append(f"Prometheus does not answer: {error}")
    return report
