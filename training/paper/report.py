"""docs/paper.md: figures, tables and which of the paper's claims held, from the measurements in bench/results/paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from training.paper import published
from training.paper.language import CARRIED, SYSTEMS
from training.paper.synthetic import CAPACITY, UPDATES

Results = dict[str, dict[str, Any]]
Losses = dict[str, dict[int, float]]  # by system and U

LABELS = {
    "softmax": "softmax",
    "linear": "linear (ELU+1)",
    "dpfp1": "DPFP-1",
    "dpfp2": "DPFP-2",
    "dpfp3": "DPFP-3",
    "favor": "FAVOR+",
    "favor64": "FAVOR+ 64",
    "favor128": "FAVOR+ 128",
    "favor512": "FAVOR+ 512",
    "delta-attention-norm": "linear (ELU+1), attention-normalised",
}
LEARNT = 0.01  # a loss below which softmax attention counts as having learnt the task
NONE = "\u2013"  # an empty cell


def label(system: str) -> str:
    """For a figure: "dpfp1-delta" is "DPFP-1 delta"."""
    if system in LABELS:
        return LABELS[system]
    base, _, rule = system.partition("-")
    return f"{LABELS[base]} {rule}"


def load(results: Path, part: str) -> Results:
    """By name; empty if nothing was measured."""
    path = results / f"{part}.json"
    return {item["name"]: item for item in json.loads(path.read_text())} if path.exists() else {}


def losses(results: Results, setting: int, pairs_per_key: int = 1) -> Losses:
    """On sequences of U `pairs_per_key` pairs; the kernels' losses where they were computed."""
    found: Losses = {}
    for item in results.values():
        if item["setting"] == setting:
            by_length = item.get("served_losses", item["losses"])
            value = by_length.get(str(pairs_per_key * item["unique"]))
            if value is not None:
                found.setdefault(item["system"], {})[item["unique"]] = value
    return {system: dict(sorted(found[system].items())) for system in found}


def rank_bound(unique: int, features: int) -> float:
    """No read that is linear in a state of E features does better in setting 1."""
    return 0.5 * max(0.0, 1 - features / unique)


def save(figure: Any, path: Path) -> None:
    """As SVG, the same bytes for the same numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "palimpsest"
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_capacity(measured: Losses, path: Path) -> None:
    """Figure 2: loss over U, with the published points and the rank bound."""
    figure, axes = plt.subplots(figsize=(8.5, 5))
    colours = {system.name: f"C{i}" for i, system in enumerate(CAPACITY)}
    for system in CAPACITY:
        colour = colours[system.name]
        if system.name in measured:
            points = measured[system.name]
            axes.plot(list(points), list(points.values()), "o-", color=colour, ms=4, label=label(system.name))
            known = published.CAPACITY[system.name]
            axes.plot(list(known), list(known.values()), "x", color=colour, ms=7)
            if system.rule == "sum" and system.feature_map != "favor":
                grid = range(20, 601, 5)
                bound = [rank_bound(u, system.feature_count) for u in grid]
                axes.plot(grid, bound, ":", color=colour, lw=1)
    axes.plot([], [], "x", color="grey", label="published")
    axes.plot([], [], ":", color="grey", label="rank bound")
    axes.set(xlabel="unique keys U (pairs in the sequence)", ylabel="loss", ylim=(-0.02, 0.53))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    save(figure, path)


def plot_updates(results: Results, measured: Losses, path: Path) -> None:
    """Figure 3: learning curves at U = 20, and the loss over U."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    for i, system in enumerate(UPDATES):
        colour = f"C{i}"
        run = results.get(f"setting2-{system.name}-u20")
        if run:
            steps = [100 * (n + 1) for n in range(len(run["curve"]))]
            left.plot(steps, run["curve"], "-", color=colour, label=label(system.name))
        known = published.UPDATES[system.name]
        if 20 in known:
            left.axhline(known[20], color=colour, ls=":", lw=1)
        if system.name in measured:
            points = measured[system.name]
            right.plot(list(points), list(points.values()), "o-", color=colour, ms=4, label=label(system.name))
            right.plot(list(known), list(known.values()), "x", color=colour, ms=7)
    left.set(title="U = 20, dotted: last published value", xlabel="steps", ylabel="loss", yscale="log")
    right.set(title="crosses: published", xlabel="unique keys U", ylabel="loss")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    save(figure, path)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def loss_table(measured: Losses, known: Losses, order: list[str]) -> list[str]:
    """Ours, the published number in brackets."""
    columns = sorted({u for points in measured.values() for u in points})
    rows = []
    for system in (s for s in order if s in measured):
        cells = []
        for u in columns:
            ours, theirs = measured[system].get(u), known.get(system, {}).get(u)
            cell = NONE if ours is None else f"{ours:.4f}"
            cells.append(cell + (f" ({theirs:.4g})" if theirs is not None and ours is not None else ""))
        rows.append([label(system), *cells])
    return table(["U", *map(str, columns)], rows)


def verdict(claim: str, held: bool | None, evidence: str, if_not: str = "") -> str:
    """A line of the list of claims. `if_not`: why we believe that it did not hold."""
    word = "Not measured" if held is None else "Held" if held else "Did not hold"
    parts = [f"- **{word}.** {claim}", evidence if held is not None else "", if_not if held is False else ""]
    return " ".join(part for part in parts if part)


def capacity_claims(results: Results, measured: Losses) -> list[str]:
    """What the paper says of setting 1."""
    lines = []
    sums = [s for s in CAPACITY if s.rule == "sum"]
    points = [(s, u, loss) for s in sums for u, loss in measured.get(s.name, {}).items()]
    below = [(s, u, loss) for s, u, loss in points if loss < rank_bound(u, s.feature_count) - 1e-6]
    text = f"{len(points)} points of {len({s.name for s, _, _ in points})} systems, {len(below)} below the bound."
    lines.append(verdict("No linear read beats max(0, 1 - E/U) / 2.", not below if points else None, text))
    plain = [(s, u, loss) for s, u, loss in points if s.feature_map != "favor"]
    inside = [p for p in plain if p[1] <= p[0].feature_count]
    outside = [p for p in plain if p[1] > p[0].feature_count]
    # The criterion is the protocol's own: training ends as solved at a loss of 0.001.
    solved = {(r["system"], r["unique"]) for r in results.values() if r["setting"] == 1 and r["stopped"] == "solved"}
    late = [p for p in inside if (p[0].name, p[1]) not in solved]
    cells = []
    for s, u, loss in late:
        known = published.CAPACITY[s.name].get(u)
        cells.append(f"{label(s.name)} at U={u} ({loss:.3f}{'' if known is None else f', published {known}'})")
    names = ", ".join(cells) or "none"
    text = f"Of {len(inside)} points with U ≤ E these did not come down to 0.001 in training: {names}."
    lines.append(verdict("Linear and DPFP memories are learnt up to U = E.", not late if inside else None, text))
    early = [p for p in outside if (p[0].name, p[1]) in solved]
    text = f"{len(outside)} points, of which {len(early)} came down to 0.001."
    lines.append(verdict("Beyond U = E they are not learnt.", not early if outside else None, text))
    favor = [(s, u, loss) for s, u, loss in points if s.feature_map == "favor" and u >= 60]
    text = "; ".join(f"{label(s.name)} U={u}: {loss:.3f}" for s, u, loss in favor) + "."
    held = all(loss > 0.4 for _, _, loss in favor) if favor else None
    lines.append(verdict("FAVOR+ does not learn the task from U = 60 on (loss above 0.4).", held, text))
    soft = measured.get("softmax", {})
    text = "; ".join(f"U={u}: {loss:.1e}" for u, loss in soft.items()) + "."
    held = all(loss < LEARNT for u, loss in soft.items() if u < 600) if soft else None
    lines.append(verdict("Softmax attention has no such limit (below U = 600).", held, text))
    return lines


def update_claims(measured: Losses, long: Losses) -> list[str]:
    """What the paper says of setting 2."""
    ours, plain = measured.get("dpfp1-delta", {}), measured.get("dpfp1-sum", {})
    common = sorted(set(ours) & set(plain))
    text = "; ".join(f"U={u}: {ours[u]:.4f} against {plain[u]:.4f}" for u in common) + "."
    held = all(ours[u] < plain[u] for u in common) if common else None
    lines = [verdict("With keys that come back, the delta rule beats the sum rule (DPFP-1).", held, text)]
    common = sorted(set(long.get("dpfp1-delta", {})) & set(long.get("dpfp1-sum", {})))
    text = "; ".join(f"U={u}: {long['dpfp1-delta'][u]:.4f} against {long['dpfp1-sum'][u]:.4f}" for u in common) + "."
    held = all(long["dpfp1-delta"][u] < long["dpfp1-sum"][u] for u in common) if common else None
    lines.append(verdict("So it does on sequences of 2 U pairs, as in training.", held, text))
    return lines


def language_claims(results: Results) -> list[str]:
    """What the paper says of language models, as far as a comparison of ours can say it."""

    def less(claim: str, left: str, right: str, measure: str) -> str:
        a, b = (results.get(name, {}).get(measure) for name in (left, right))
        if a is None or b is None:
            return verdict(claim, None, "")
        return verdict(claim, a < b, f"{a:.4f} against {b:.4f} bits per byte.")

    short, long = "truncated_bits_per_byte", "carried_bits_per_byte"
    lines = [
        less("Delta beats sum, linear.", "linear-delta", "linear-sum", short),
        less("Delta beats sum, DPFP-1.", "dpfp1-delta", "dpfp1-sum", short),
        less("Delta beats sum, FAVOR+.", "favor-delta", "favor-sum", short),
        less("DPFP-1 beats linear under the delta rule.", "dpfp1-delta", "linear-delta", short),
        less("Attention normalisation harms the delta rule.", "linear-delta", "delta-attention-norm", short),
        less("Softmax attention beats the best linear sum rule.", "softmax", "linear-sum", short),
        less("Carried through the text, delta beats sum.", "linear-delta-carried", "linear-sum-carried", long),
    ]
    delta = results.get("linear-delta-carried", {})
    if "carried_bits_per_byte" in delta and "linear-delta" in results:
        a, b = delta[long], results["linear-delta"][short]
        claim = "A delta model that carries its state beats one with truncated context."
        why = "We did not test why; the paper's models had far more training."
        lines.append(verdict(claim, a < b, f"{a:.4f} against {b:.4f} bits per byte.", why))
    total = results.get("linear-sum-carried", {})
    if long in total and "linear-sum" in results:
        a, b = total[long], results["linear-sum"][short]
        claim = "A sum-rule model fails when its state is carried (here: 1.5 times the bits of truncated context)."
        why = "We did not test why; training is short here, and so is the text measured."
        lines.append(verdict(claim, a > 1.5 * b, f"{a:.4f} against {b:.4f} bits per byte.", why))
    return lines


def language_tables(results: Results) -> list[str]:
    """Like tables 2 and 4."""

    def bits(item: dict[str, Any], measure: str) -> str:
        return f"{item[measure]:.4f}" if measure in item else "diverged" if item.get("diverged") else NONE

    truncated, carried = [], []
    for name, settings in SYSTEMS.items():
        if name in results:
            valid, test = published.TRUNCATED[name]
            rule = NONE if settings.mixer == "softmax" else settings.update_rule
            row = [label(name.removesuffix("-sum").removesuffix("-delta")), rule]
            truncated.append([*row, bits(results[name], "truncated_bits_per_byte"), f"{valid} / {test}"])
    for name in (*SYSTEMS, *(f"{name}-carried" for name in CARRIED)):
        if name in results:
            item = results[name]
            trained = "carried" if name.endswith("-carried") else "fresh segments"
            measures = [bits(item, f"{kind}_bits_per_byte") for kind in ("truncated", "carried", "served")]
            size = f"{item['state_floats']:,}" if "state_floats" in item else NONE
            known = published.CARRIED.get(name, NONE)
            carried.append([label(name.removesuffix("-carried")), trained, size, *measures, known])
    head = ["system", "rule", "bits per byte", "published perplexity, valid / test (small, WikiText-103)"]
    lines = ["### Truncated context (the shape of table 2)", "", *table(head, truncated)]
    head = ["system", "trained on", "state, floats", "truncated", "carried", "carried, through the server"]
    lines += ["### Truncated and carried (the shape of table 4)", ""]
    return lines + table([*head, "published perplexity, carried (medium)"], carried)


def synthetic_section(results: Results, pictures: Path, link: str) -> list[str]:
    """Figures, tables and claims of retrieval."""
    first, second, long = losses(results, 1), losses(results, 2), losses(results, 2, 2)
    plot_capacity(first, pictures / "capacity.svg")
    plot_updates(results, second, pictures / "updates.svg")
    stopped: dict[str, int] = {}
    for item in results.values():
        stopped[item["stopped"]] = stopped.get(item["stopped"], 0) + 1
    gaps = [
        abs(item["served_losses"][n] - item["losses"][n])
        for item in results.values()
        for n in item.get("served_losses", {})
    ]
    limited = [item for item in results.values() if "limit" in item["stopped"]]
    late = [f"{label(item['system'])} U={item['unique']} (setting {item['setting']})" for item in limited]
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(stopped.items()))
    lines = [
        "## Retrieval: how much a memory holds",
        "",
        f"{len(results)} models trained; training ended: {reasons}.",
    ]
    if late:
        lines += [f"Stopped by a limit, so they might have gone lower: {', '.join(late)}."]
    if gaps:
        lines += [
            f"Losses are those of the server's kernels (`retrieval_eval`); over {len(gaps)} evaluations they differ "
            f"from PyTorch's by at most {max(gaps):.1e}."
        ]
    lines += [
        "",
        "### Setting 1: capacity (figure 2)",
        "",
        f"![Loss over the number of unique keys]({link}/capacity.svg)",
        "",
        "Published numbers in brackets.",
        "",
        *loss_table(first, published.CAPACITY, [s.name for s in CAPACITY]),
        *capacity_claims(results, first),
        "",
        "### Setting 2: updates (figure 3)",
        "",
        f"![Learning curves and loss over the number of unique keys]({link}/updates.svg)",
        "",
        "On sequences of U pairs, which is how the authors' code evaluates; published numbers in brackets.",
        "",
        *loss_table(second, published.UPDATES, [s.name for s in UPDATES]),
        "On sequences of 2 U pairs, as in training:",
        "",
        *loss_table(long, {}, [s.name for s in UPDATES]),
        *update_claims(second, long),
        "",
    ]
    return lines


def language_section(results: Results) -> list[str]:
    """Tables and claims of language models."""
    any_run = next(item for item in results.values() if not item.get("diverged"))
    shape, tokens = any_run["shape"], sorted({item["tokens"] for item in results.values()})
    gaps = [
        abs(item["served_bits_per_byte"] - item["carried_bits_per_byte"])
        for item in results.values()
        if "served_bits_per_byte" in item
    ]
    served = (
        f" Through the server (`palimpsest score`) {len(gaps)} models measure the same within {max(gaps):.1e}."
        if gaps
        else ""
    )
    return [
        "## Language models at a small scale",
        "",
        f"{len(results)} models of {shape['layers']} layers, width {shape['hidden_size']}, {shape['heads']} heads of "
        f"{shape['head_dim']}, about {any_run['parameters'] / 1e6:.1f} M parameters, each trained on "
        f"{' or '.join(f'{n:,}' for n in tokens)} tokens in segments of {shape['segment_length']} tokens, "
        f"the same ones in the same order; measured on {any_run['valid_bytes']:,} bytes of another text. "
        f"The paper trained on 103 M tokens for many epochs: only the order of systems can be compared.{served}",
        "",
        *language_tables(results),
        'One seed each, so "held" means no more than that the order is the same here.',
        "",
        *language_claims(results),
        "",
    ]


DIFFERENCES = """## What is different here

- **The earlier rules** (fwm, with tanh or DPFP-1 keys) of setting 2 were not built: no model that is served uses them.
  FAVOR+ with the delta rule is left out of setting 2 as in the paper, where it became NaN.
- **Evaluation of retrieval** averages over every query of a sequence. The authors' code takes the first 200 keys and
  averages splits of 32 without weights, which is why some of its points lie a little below the rank bound.
- **FAVOR+** adds 1e-4 to its features, as the language models and the server's op do; the authors' retrieval code does
  not. One projection is kept with an exported model, whereas the authors draw one for each evaluation too.
- **One seed**, as in the paper's retrieval. How far another would move a number was not measured, neither for losses
  between zero and the bound nor for language models, where a hundredth of a bit is no more than a hint.
- **Random numbers and initial values** of layers that the paper does not describe (biases, β) are PyTorch's own.
- **Language models** are far smaller, have no positions, and read another corpus with sub-word tokens. Softmax
  attention sees a window of one segment that slides when the state is carried. FAVOR+ draws a projection for each step
  of training on fresh segments and keeps the last one.
- **The learning rate, batch and warm-up** of language models come from a few short trials: the linear delta model at
  2e-3 and 4e-3 was looked at on the beginning of the measured text, and softmax attention did not learn at 3e-3 with a
  short warm-up, so all systems got 1.5e-3 with a longer one. None was tuned for itself.
- DPFP-1 under the sum rule divides its reads by z·q + ε as form B of the toolkit does (the paper's model can only have
  been form A); so does the linear sum rule.

## How to repeat it

`./dev paper` takes hours on two cores, and minutes with `--quick`; see `./dev paper --help`. Models and results stay in
`build/paper/`; finished runs are not repeated. The measurements behind this page are in `bench/results/paper/`.
"""


def write(results: Path, page: Path, pictures: Path) -> None:
    """The page and its figures."""
    lines = [
        "# The paper's experiments, repeated",
        "",
        "What *Linear Transformers Are Secretly Fast Weight Programmers* (Schlag, Irie, Schmidhuber, 2021, arXiv",
        "2102.11174) reports, measured again with this repository's code. Written by `./dev paper --part report` from",
        "measurements; what was not run is left out.",
        "",
    ]
    sections: list[tuple[str, Callable[[Results], list[str]]]] = [
        ("synthetic", lambda found: synthetic_section(found, pictures, pictures.name)),
        ("language", language_section),
    ]
    for part, section in sections:
        found = load(results, part)
        lines += section(found) if found else [f"No results of the {part} part are here: it was not run.", ""]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n" + DIFFERENCES)
