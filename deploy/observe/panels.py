"""What a dashboard is made of. The pages are in page_service.py and page_state.py, each panel once; render.py makes
Grafana's dashboards and Prometheus' consoles of them.

In an expression `MODEL` stands for the matchers of series that tell of a model, `SERVER` for those of series that do
not, and `WINDOW` for the range of rates. A legend's `{label}` is the label's value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["seconds", "bytes", "bytes/s", "flop/s", "ratio", "per second", "count"]


@dataclass(frozen=True)
class Query:
    """One expression of a panel; its answer has exactly the labels `by`."""

    expr: str
    legend: str
    by: tuple[str, ...] = ()
    # What the operator has to add: without it the panel lacks these lines and is right all the same.
    needs: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart. `stat` shows the last value large, `stacked` adds its lines up, `table` shows labels as columns."""

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    about: str
    kind: Literal["lines", "stacked", "stat", "table"] = "lines"


@dataclass(frozen=True)
class Row:
    """Panels side by side under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Page:
    """One dashboard."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]


def total(metric: str, *by: str, where: str = "MODEL") -> str:
    """The sum of a gauge over the servers."""
    return f"sum by ({', '.join(by)}) ({metric}{{{where}}})" if by else f"sum({metric}{{{where}}})"


def average(metric: str, *by: str, where: str = "MODEL") -> str:
    """The sum over the servers of a gauge's mean in the window: what it is now tells little where it jumps."""
    inner = f"avg_over_time({metric}{{{where}}}[WINDOW])"
    return f"sum by ({', '.join(by)}) ({inner})" if by else f"sum({inner})"


def rate(metric: str, *by: str, where: str = "MODEL") -> str:
    """The sum of a counter's rates over the servers."""
    inner = f"rate({metric}{{{where}}}[WINDOW])"
    return f"sum by ({', '.join(by)}) ({inner})" if by else f"sum({inner})"


def short(expr: str) -> str:
    """The expression with methods without their package."""
    return f'label_replace({expr}, "method", "$1", "method", "palimpsest.v1.(.+)")'


def mean(metric: str, *by: str) -> str:
    """The mean of what a histogram observed."""
    return f"{rate(metric + '_sum', *by)} / {rate(metric + '_count', *by)}"


def quantiles(metric: str, shares: tuple[float, ...], *by: str, where: str = "MODEL") -> tuple[Query, ...]:
    """Percentiles of a histogram."""
    prefix = "".join(f"{{{label}}} " for label in by)
    buckets = rate(metric + "_bucket", *by, "le", where=where)
    return tuple(Query(f"histogram_quantile({share}, {buckets})", f"{prefix}p{share * 100:g}", by) for share in shares)
