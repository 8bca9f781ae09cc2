"""The report of `./dev gpu`: what the stages measured, as people read it. gpu.py writes it."""

import json
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
WRONG = ("failed", "what", "error", "allowed")


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "" if share is None else f"{100 * share:.0f} %"


def microseconds(seconds: float | None) -> str:
    """A time as people read it."""
    return "" if seconds is None else f"{seconds * 1e6:.1f}"


def results_of(lines: Iterable[str]) -> Row:
    """What the lines of one run or several tell: {"runs": [...], "clocks": [...], "stages": {name: {"steps": [...]}}}.

    A step has "name", "rows", and "ended", why it did not pass, or nothing. One that runs again replaces what it was.
    """
    results: Row = {"runs": [], "clocks": [], "stages": {}}
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # half a line, the last before a kill
        if "run" in line:
            results["runs"].append(line["run"])
        elif "clocks" in line:
            results["clocks"].append(line["clocks"])
        elif "skipped" in line:
            results["stages"].setdefault(line["stage"], {"steps": []})["skipped"] = line["skipped"]
        elif "step" in line:
            stage = results["stages"].setdefault(line["stage"], {"steps": []})
            steps = {step["name"]: step for step in stage["steps"]}
            if "begin" in line:
                steps[line["step"]] = {"name": line["step"], "rows": [], "ended": "was killed", "tail": ""}
            elif "row" in line:
                steps[line["step"]]["rows"].append(line["row"])
            elif "end" in line:
                steps[line["step"]] |= {"ended": "", **line["end"]}
            stage["steps"] = list(steps.values())
    return results


def all_passed(results: Row) -> bool:
    """Whether every step did."""
    return not any(step["ended"] for stage in results["stages"].values() for step in stage["steps"])


def data_of(results: Row, *stages: str) -> Row | None:
    """What the programs of these stages measured, of those that failed, too.

    Rows that have a group are under "measurements", wrong results under "wrong", all else by its name.
    """
    steps = [step for name in stages for step in results["stages"].get(name, {}).get("steps", [])]
    rows = [row for step in steps if not step["name"].endswith("_before") for row in step["rows"]]
    data: Row = {"measurements": [row for row in rows if "group" in row]}
    data["wrong"] = [row for row in rows if "failed" in row]
    for row in rows:
        if "group" not in row and "failed" not in row:
            data |= row
    return data if rows else None


def told_wrong(row: Row) -> str:
    """What a row says that was not as it should be."""
    return ", ".join(f"{key} {row[key]}" if key != "failed" else row[key] for key in WRONG if key in row)


def failures(stage: Row) -> list[str]:
    """A line for each step of a stage that did not pass, with the first thing that it found wrong."""
    lines = []
    for step in stage["steps"]:
        if not step["ended"]:
            continue
        wrong = next((row for row in step["rows"] if "failed" in row), None)
        told = [line for line in step["tail"].splitlines() if line.strip() and not line.startswith("[")]
        first = told_wrong(wrong) if wrong else next((line for line in told if "rror" in line or "ail" in line), "")
        lines.append(f"- failed: {step['name']}, {step['ended']}" + (f": {first.strip()[:200]}" if first else ""))
    return lines


def late(data: Row) -> list[str]:
    """That the program left measurements out."""
    return ["Its time ended before its measurements did: some are missing.", ""] if data.get("out_of_time") else []


def rows_of(data: Row | None, group: str, **labels: Any) -> list[Row]:
    """The measurements of a group that have these labels."""
    rows = [row for row in (data or {}).get("measurements", []) if row["group"] == group]
    return [row for row in rows if all(row.get(key) == value for key, value in labels.items())]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, with an empty line after it."""
    if not rows:
        return []
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def fla_seconds(fla: Row | None, group: str, **labels: Any) -> float | None:
    """The fastest of fla's ways to do it: by type of its inputs and by clock."""
    return min((row["seconds"] for row in rows_of(fla, group, **labels) if row["seconds"]), default=None)


def fla_chunks(fla: Row | None, row: Row) -> float | None:
    """fla's time for the same chunks."""
    labels = {key: row[key] for key in ("rule", "sequences", "tokens", "value_heads")}
    return fla_seconds(fla, "chunks", **labels)


# ------------------------------------------------------------------------------------------------------------- goals


def verdict(values: list[float], least: float, show: Callable[[float], str]) -> str:
    """The smallest and largest value, and whether all reach the goal."""
    if not values:
        return "not measured"
    reached = "reached" if min(values) >= least else "not reached"
    return f"{show(min(values))} to {show(max(values))}: {reached}"


def step_shares(results: Row) -> list[float]:
    """Of copy bandwidth, at batch 64 and up."""
    rows = rows_of(data_of(results, "bench", "core"), "step", states="f32")
    return [row["bound_share"] for row in rows if row["batch"] >= 64 and row["bound_share"]]


def step_against_fla(results: Row) -> list[float]:
    """fla's time over ours, at batch 64 and up."""
    fla = data_of(results, "fla")
    ratios = []
    for row in rows_of(data_of(results, "bench", "core"), "step", states="f32"):
        other = fla_seconds(fla, "step", rule=row["rule"], batch=row["batch"])
        if other and row["seconds"] and row["batch"] >= 64:
            ratios.append(other / row["seconds"])
    return ratios


def chunks_against_fla(results: Row) -> list[float]:
    """fla's time over ours, with factors rounded to tf32, as fla's are to bf16."""
    fla = data_of(results, "fla")
    ratios = []
    for row in rows_of(data_of(results, "bench", "core"), "chunks", products="tf32"):
        other = fla_chunks(fla, row)
        if other and row["seconds"]:
            ratios.append(other / row["seconds"])
    return ratios


def ratio(value: float) -> str:
    """A speed-up as people read it."""
    return f"{value:.2f}x"


def last_rows(results: Row, stage: str) -> dict[str, Row]:
    """What the programs said last, by step: each line has all that was known by then."""
    steps = results["stages"].get(stage, {}).get("steps", [])
    return {step["name"]: step["rows"][-1] for step in steps if step["rows"]}


def models_of(results: Row) -> dict[str, Row]:
    """What model_bench said, by model."""
    return {name: row for name, row in last_rows(results, "models").items() if "parameters" in row}


def large_decode(results: Row) -> list[float]:
    """The time of a step at batch 1 over that of reading the weights."""
    decode = models_of(results).get("1.3b-6-layers", {}).get("decode", [])
    return [1 / row["bytes_share"] for row in decode if row["batch"] == 1]


def engine_shares(results: Row) -> list[float]:
    """Of the bare forward pass's rate, through the engine."""
    return [
        data["engine"]["share_of_forward"]
        for data in models_of(results).values()
        if "share_of_forward" in data.get("engine", {})
    ]


def replay_gain(results: Row) -> list[float]:
    """The plain step's time over the best of the replay form, at batch 64 and up."""
    data = data_of(results, "bench", "core")
    gains = []
    for row in rows_of(data, "step", states="f32"):
        others = rows_of(data, "replay", states="f32", rule=row["rule"], batch=row["batch"])
        if row["batch"] >= 64 and row["seconds"] and others:
            gains.append(row["seconds"] / min(other["seconds"] for other in others))
    return gains


def mixer_gain(results: Row) -> list[float]:
    """The time of a step's ops one by one over that of their fused form."""
    data = data_of(results, "bench", "core")
    gains = []
    for row in rows_of(data, "mixer", form="fused"):
        for other in rows_of(data, "mixer", form="op_by_op", model=row["model"], batch=row["batch"]):
            if row["seconds"] and other["seconds"]:
                gains.append(other["seconds"] / row["seconds"])
    return gains


GOALS: list[tuple[str, Callable[[Row], str]]] = [
    (
        "step, 16 heads of 128 x 128, float32 states, batch 64 and up: 90 % of measured copy bandwidth",
        lambda results: verdict(step_shares(results), 0.9, percent),
    ),
    (
        "the same step: 1.3 times as fast as fla's fused_recurrent",
        lambda results: verdict(step_against_fla(results), 1.3, ratio),
    ),
    (
        "the replay form at its best interval: 1.4 times as fast as the plain step, batch 64 and up",
        lambda results: verdict(replay_gain(results), 1.4, ratio),
    ),
    (
        "a fused step from projections to output: no batch slower than op by op",
        lambda results: verdict(mixer_gain(results), 1.0, ratio),
    ),
    (
        "chunks: as fast as fla's chunk forms",
        lambda results: verdict(chunks_against_fla(results), 1.0, ratio),
    ),
    (
        "a step of six layers of a 1.3B model at batch 1: 1.25 times the time of reading its weights at most",
        lambda results: verdict([-value for value in large_decode(results)], -1.25, lambda value: ratio(-value)),
    ),
    (
        "the engine: 95 % of the bare forward pass",
        lambda results: verdict(engine_shares(results), 0.95, percent),
    ),
]


# ---------------------------------------------------------------------------------------------------------- sections


def tests_section(results: Row) -> list[str]:
    """Which programs passed: of tests and of sanitizers."""
    lines = []
    for name, title in (("smoke", "Tiny shapes"), ("tests", "Device tests"), ("sanitizers", "compute-sanitizer")):
        stage = results["stages"].get(name)
        if stage is None:
            continue
        lines += [f"## {title}", ""]
        if "skipped" in stage:
            lines += [f"Skipped: {stage['skipped']}.", ""]
            continue
        failed = failures(stage)
        lines += [f"{len(stage['steps']) - len(failed)} of {len(stage['steps'])} programs passed.", ""]
        lines += [*failed, ""] if failed else []
    return lines


def against_float32(data: Row, row: Row) -> str:
    """The time with float32 states over that with these, all else alike; nothing for float32 itself."""
    if row["states"] == "f32":
        return ""
    labels = {key: row[key] for key in ("rule", "batch", "interval") if key in row}
    others = rows_of(data, row["group"], states="f32", **labels)
    return ratio(others[0]["seconds"] / row["seconds"]) if others else ""


def before_lines(results: Row) -> list[str]:
    """What another commit's kernels took in the same run."""
    steps = {step["name"]: step["rows"] for step in results["stages"].get("core", {}).get("steps", [])}
    times = {row["name"]: row["seconds"] for row in steps.get("core_before", []) if row.get("seconds")}
    rows = [
        [
            row["name"],
            microseconds(times[row["name"]]),
            microseconds(row["seconds"]),
            ratio(times[row["name"]] / row["seconds"]),
        ]
        for row in steps.get("core", [])
        if row.get("seconds") and row.get("name") in times
    ]
    if not rows:
        return []
    return ["### Against the commit before, in one run", "", *table(["measurement", "before, us", "us", "gain"], rows)]


# Times that others publish for their own kernels, in microseconds: the shape's measurement here, and who says so.
PUBLISHED = [
    ("mixer/gdn_16_32/fused/batch/1", 3.65, "FlashInfer's decode without convolution and norm, B200, flashinfer#2583"),
    ("mixer/gdn_16_32/fused/batch/64", 43.0, "the same"),
    ("mixer/gdn_16_32/fused/batch/256", 159.0, "the same"),
    ("mixer/gdn_16_32/fused/batch/512", 315.0, "the same"),
    ("chunks/gated_delta/tf32/heads/16x64/tokens/8192/sequences/1", 397.0, "FlashQLA, bf16, H200"),
    ("chunks/gated_delta/tf32/heads/16x64/tokens/8192/sequences/1", 814.0, "fla, bf16, H200, FlashQLA's table"),
    ("chunks/gated_delta/tf32/heads/16x64/tokens/1024/sequences/8", 341.0, "FlashQLA, bf16, H200"),
    ("chunks/gated_delta/tf32/heads/16x64/tokens/1024/sequences/8", 232.0, "FlashInfer, bf16, H200, FlashQLA's table"),
]


def published_lines(data: Row) -> list[str]:
    """Beside what others publish. Their GPUs are others: a B200 copies at 8 TB/s, an H200 at 4.8, an H100 at 3.35."""
    times = {row["name"]: row for row in data["measurements"] if row.get("seconds")}
    rows = [
        [name, microseconds(times[name]["seconds"]), percent(times[name]["bound_share"]), f"{other:.1f}", who]
        for name, other, who in PUBLISHED
        if name in times
    ]
    if not rows:
        return []
    return [
        "### Beside what others publish, on their GPUs",
        "",
        *table(["measurement", "us", "share", "theirs", "who"], rows),
    ]


def bench_section(results: Row) -> list[str]:
    """The ops against the bounds."""
    data = data_of(results, "bench", "core")
    stages = [results["stages"][name] for name in ("bench", "core") if name in results["stages"]]
    failed = [line for stage in stages for line in failures(stage)]
    if data is None or "ceilings" not in data:
        return ["## Ops", "", *failed, ""] if failed else []
    ceilings = data["ceilings"]
    wrong = [f"- wrong: {told_wrong(row)}" for row in data["wrong"]]
    lines = [
        "## Ops",
        "",
        f"Ceilings, measured in the same run: copy {ceilings['copy_bytes_per_second'] / 1e12:.2f} TB/s (bytes read and "
        f"written), products {ceilings['bf16_flops_per_second'] / 1e12:.0f} TFLOP/s in bf16 and "
        f"{ceilings['tf32_flops_per_second'] / 1e12:.0f} in tf32. A share is of what these ceilings allow.",
        "",
        *late(data),
        *([*failed, *wrong, ""] if failed or wrong else []),
        *before_lines(results),
        "### Fast-weight step, 16 heads of 128 x 128",
        "",
    ]
    fla = data_of(results, "fla")
    step_rows = []
    for row in rows_of(data, "step"):
        alike = row["states"] == "f32"  # as fla's are
        other = fla_seconds(fla, "step", rule=row["rule"], batch=row["batch"]) if alike else None
        step_rows.append(
            [
                row["rule"].replace("_", " "),
                row["states"],
                str(row["batch"]),
                microseconds(row["seconds"]),
                f"{row['bytes_per_second'] / 1e9:.0f}",
                percent(row["bound_share"]),
                against_float32(data, row),
                microseconds(other),
                ratio(other / row["seconds"]) if other else "",
            ]
        )
    head = ["rule", "states", "batch", "us", "GB/s", "share", "f32 / bf16", "fla, us", "fla / ours"]
    lines += table(head, step_rows)
    lines += published_lines(data)
    lines += ["### The same step in the replay form", ""]
    lines += table(
        ["rule", "states", "batch", "interval", "us", "share", "f32 / bf16"],
        [
            [
                row["rule"].replace("_", " "),
                row["states"],
                str(row["batch"]),
                str(row["interval"]),
                microseconds(row["seconds"]),
                percent(row["bound_share"]),
                against_float32(data, row),
            ]
            for row in rows_of(data, "replay")
        ],
    )
    lines += ["### A step from projections to output, as models of 1.3B have it", ""]
    lines += table(
        ["model", "batch", "form", "launches", "us", "share"],
        [
            [
                row["model"],
                str(row["batch"]),
                row["form"].replace("_", " "),
                str(row["kernels"]),
                microseconds(row["seconds"]),
                percent(row["bound_share"]),
            ]
            for row in rows_of(data, "mixer")
        ],
    )
    lines += [
        "### Fast-weight chunks, heads of 128 x 128, float32 states",
        "",
        "Channel gated delta and low rank go row by row.",
        "",
    ]
    chunk_rows = []
    for row in rows_of(data, "chunks"):
        other = fla_chunks(fla, row)
        chunk_rows.append(
            [
                row["rule"].replace("_", " "),
                f"{row['heads']}, {row['value_heads']}",
                row["products"],
                f"{row['sequences']} x {row['tokens']}",
                microseconds(row["seconds"]),
                f"{row['flops_per_second'] / 1e12:.1f}",
                percent(row["bound_share"]),
                microseconds(other),
                ratio(other / row["seconds"]) if other else "",
            ]
        )
    head = [
        "rule",
        "heads, of values",
        "products",
        "sequences x tokens",
        "us",
        "TFLOP/s",
        "share",
        "fla, us",
        "fla / ours",
    ]
    lines += table(head, chunk_rows)
    lines += ["### Projections of a 1.3B model", ""]
    lines += table(
        ["matrix", "kind", "rows", "taken as", "us", "GB/s", "TFLOP/s", "share", "bound"],
        [
            [
                row["projection"],
                row["kind"],
                str(row["rows"]),
                "steps" if row["group"] == "linear_steps" else "parts of chunks",
                microseconds(row["seconds"]),
                f"{row['bytes_per_second'] / 1e9:.0f}",
                f"{row['flops_per_second'] / 1e12:.1f}",
                percent(row["bound_share"]),
                row["bound"],
            ]
            for group in ("linear_steps", "linear_chunk")
            for row in rows_of(data, group)
        ],
    )
    lines += ["### The rest of a layer, sampling, launches", ""]
    lines += table(
        ["op", "us", "share of copy bandwidth"],
        [
            [row["name"], microseconds(row["seconds"]), percent(row["bound_share"]) if group == "layer" else ""]
            for group in ("layer", "sample", "launch")
            for row in rows_of(data, group)
        ],
    )
    return lines


def models_section(results: Row) -> list[str]:
    """Whole models."""
    stage = results["stages"].get("models")
    if stage is None:
        return []
    if "skipped" in stage:
        return ["## Models", "", f"Skipped: {stage['skipped']}.", ""]
    lines = ["## Models", ""]
    lines += [*failures(stage), ""]
    for name, data in models_of(results).items():
        lines += [
            f"### {name}: {data['parameters'] / 1e6:.0f}M parameters, {data['weight_dtype']}, products {data['math']}",
            "",
            f"Shares are of the time that the bytes of weights and states take at "
            f"{data['machine']['read_gb_per_second']:.0f} GB/s, the rate of a copy on this device.",
            "",
        ]
        lines += table(
            ["batch", "step, us", "tokens/s", "share"],
            [
                [
                    str(r["batch"]),
                    microseconds(r["seconds"]),
                    f"{r['tokens_per_second']:.0f}",
                    percent(r["bytes_share"]),
                ]
                for r in data.get("decode", [])
            ],
        )
        lines += [f"- prefill of {r['tokens']}: {r['tokens_per_second']:.0f} tokens/s" for r in data.get("prefill", [])]
        if "position" in data:
            far = data["position"]
            lines.append(f"- step at position {far['far_position']} over step at 100: {far['far_over_near']:.3f}")
        if "share_of_forward" in data.get("engine", {}):
            engine = data["engine"]
            lines.append(
                f"- engine, {engine['streams']} streams: {percent(engine['share_of_forward'])} of the bare forward"
            )
        lines.append("")
    return lines


def milliseconds(seconds: float) -> str:
    """A time as people read it."""
    return f"{seconds * 1e3:.2f}"


def text_lines(data: Row) -> list[str]:
    """How far the servers on the device and on the processor say the same."""
    if not data.get("replies"):
        return []
    rows = [(f'reply to "{row["prompt"]}"', row) for row in data.get("replies", [])]
    rows += [
        (f"session of the {row['begun_on']}, continued on the {row['continued_on']}", row)
        for row in data.get("sessions", [])
    ]
    same = sum(row["alike"] == row["tokens"] for _, row in rows)
    return [
        "### The same text from both",
        "",
        f"Greedy, float32 products, a server on the device and one on the processor: {same} of {len(rows)} texts are "
        "the same. The difference is the largest up to where two part; the margin is by how much the one that is "
        "compared with preferred its token there to the next.",
        "",
        *table(
            ["text", "tokens alike", "difference of log-probabilities", "margin"],
            [
                [
                    name,
                    f"{row['alike']} of {row['tokens']}",
                    f"{row['logprob_difference']:.1e}",
                    f"{row['margin']:.1e}" if "margin" in row else "",
                ]
                for name, row in rows
            ],
        ),
    ]


def load_lines(name: str, data: Row) -> list[str]:
    """A server under load, by number of streams."""
    if not data.get("streams"):
        return []
    rows = []
    for row in data["streams"]:
        wait = row.get("device_wait_share")
        rows.append(
            [
                str(row["streams"]),
                f"{row['tokens_per_second']:.0f}",
                *(milliseconds(row["first_token_seconds"][q]) for q in ("p50", "p99")),
                *(milliseconds(row["per_token_seconds"][q]) for q in ("p50", "p99")),
                f"{row['sequences']:.1f}",
                milliseconds(row["iteration_seconds"]),
                percent(None if wait is None else 1 - wait),
                percent(row["between_iterations_share"]),
                percent(row.get("recorded_share")),
            ]
        )
    head = ["streams", "tokens/s", "first token p50, ms", "p99", "token p50, ms", "p99", "sequences", "iteration, ms"]
    head += ["not waiting", "between", "graphs"]
    return [f"### {name}: {data['parameters'] / 1e6:.0f}M parameters, {data['backend']}", "", *table(head, rows)]


def serve_section(results: Row) -> list[str]:
    """The served system. What was measured before a step failed counts."""
    stage = results["stages"].get("serve")
    if stage is None:
        return []
    lines = ["## Served", ""]
    failed = failures(stage)
    lines += [*failed, ""] if failed else []
    data = last_rows(results, "serve")
    lines += text_lines(data.get("text", {}))
    loads = [line for name, load in data.items() for line in load_lines(name, load)]
    if loads:
        lines += [
            "`palimpsest bench` on the same machine: closed loop, prompts of 32 to 128 tokens, replies of 256. An "
            "iteration runs from handing its work to the device until the results are there. *Not waiting* is the part "
            "of it in which the engine's thread did not wait for the device, *between* the part of all time outside of "
            "iterations: both are the engine's overhead. *Graphs* is the part of forward passes that a CUDA graph ran.",
            "",
            *loads,
        ]
    ends = [(name, *end) for name, row in data.items() for end in row.get("exit_statuses", {}).items()]
    told = ", ".join(f"{name}, {server}: {status}" for name, server, status in ends)
    return [*lines, f"Exit statuses of the servers after SIGTERM: {told}.", ""] if told else lines


def fla_section(results: Row) -> list[str]:
    """What fla ran with, or why it did not."""
    stage = results["stages"].get("fla")
    if stage is None:
        return []
    if "skipped" in stage:
        return ["## fla", "", f"Skipped: {stage['skipped']}.", ""]
    data = data_of(results, "fla")
    if data is None or "versions" not in data:
        return ["## fla", "", *failures(stage), ""]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return [
        "## fla",
        "",
        f"{versions}. Its figure is its fastest: of float32 and bf16 inputs for a step (bf16 for chunks), and of "
        "triton.testing.do_bench and a graph of many calls. It writes each state to a new array, which at small "
        "batches stays in the cache; ours are updated in place, in turn, from more memory than caches hold.",
        "",
        *late(data),
    ]


def profiles_section(results: Row) -> list[str]:
    """What Nsight Compute counted."""
    stage = results["stages"].get("profiles")
    if stage is None:
        return []
    if "skipped" in stage:
        return ["## Profiles", "", f"Skipped: {stage['skipped']}.", ""]
    wanted = [
        "Duration",
        "DRAM Throughput",
        "L2 Cache Throughput",
        "L1/TEX Cache Throughput",
        "Compute (SM) Throughput",
    ]
    wanted += ["Achieved Occupancy", "Registers Per Thread"]
    rows = []
    for step in stage["steps"]:
        told = {row["metric"]: f"{row['value']} {row['unit']}".strip() for row in step["rows"] if "metric" in row}
        if told:
            rows.append([step["name"], *(told.get(metric, "") for metric in wanted)])
    return ["## Profiles", "", *failures(stage), "", *table(["measurement", *wanted], rows)]


def clock_range(results: Row) -> str:
    """The clock of the multiprocessors while it ran, and the reasons that held it down."""
    clocks = [int(row["clocks.sm"]) for row in results["clocks"] if row.get("clocks.sm", "").isdigit()]
    reasons = {row.get("clocks_event_reasons.active", "") for row in results["clocks"]}
    return f"{min(clocks)} to {max(clocks)} MHz, event reasons {', '.join(sorted(reasons))}" if clocks else "not read"


def head_lines(results: Row) -> list[str]:
    """Where the figures come from, and the goals. A rehearsal has none."""
    run = results["runs"][-1]
    gpu = run["gpu"]
    commands = "; ".join(f"`{r['command']}` at {r['commit']}" for r in results["runs"])
    if not gpu:
        return [
            f"# Rehearsal without a GPU, {run['date']}",
            "",
            "No GPU was used: ops ran on the emulator, what is called the device is a second server on the processor. "
            f"{commands}.",
            "",
        ]
    return [
        f"# {gpu['name']}, {run['date']}",
        "",
        f"Driver {gpu['driver_version']}, {gpu['memory.total']}, at most {gpu['clocks.max.sm']} (memory "
        f"{gpu['clocks.max.memory']}), {gpu['power.limit']}; while it ran {clock_range(results)}. Ran: {commands}. "
        "Times are medians. Raw numbers: the lines of JSON beside.",
        "",
        "## Goals",
        "",
        *table(["goal", "here"], [[goal, reach(results)] for goal, reach in GOALS]),
    ]


def report(results: Row) -> str:
    """The whole report, in Markdown."""
    lines = head_lines(results)
    for section in (tests_section, bench_section, profiles_section, models_section, serve_section, fla_section):
        lines += section(results)
    return "\n".join(lines).rstrip() + "\n"


# What the table at the end tells, by the name of a measurement.
FIGURES = [
    "mixer/gdn_16_32/fused/batch/1",
    "mixer/gdn_16_32/fused/batch/64",
    "mixer/gdn_16_32/fused/batch/256",
    "step/gated_delta/batch/256",
    "replay/8/gated_delta/batch/256",
    "chunks/gated_delta/tf32/heads/16x64/tokens/8192/sequences/1",
    "linear/qkv/bf16/steps/1",
    "linear/qkv/bf16/steps/64",
    "linear/qkv/bf16/steps/256",
    "layer/short_conv/tokens/8192/sequences/1",
    "sample/top_p_0.9/vocabulary/32000/rows/64",
]


def summary(results: Row) -> list[str]:
    """A table of fifteen lines, for who reads only the end."""
    lines = []
    for name in ("smoke", "tests", "sanitizers"):
        stage = results["stages"].get(name)
        if stage is not None and "skipped" not in stage:
            failed = failures(stage)
            first = f", first {failed[0][2:]}" if failed else ""
            lines.append(f"{name}: {len(stage['steps']) - len(failed)} of {len(stage['steps'])} passed{first}")
    data = data_of(results, "bench", "core") or {"measurements": []}
    if ceilings := data.get("ceilings"):
        told = ", ".join(f"{key.split('_')[0]} {value / 1e12:.2f}" for key, value in ceilings.items() if value)
        lines.append(f"ceilings, T a second: {told or 'none on the emulator'}")
    rows = {row["name"]: row for row in data["measurements"] if row.get("seconds")}
    for name in FIGURES:
        if name in rows:
            lines.append(f"{microseconds(rows[name]['seconds']):>9} us {percent(rows[name]['bound_share']):>6}  {name}")
    for name, model in models_of(results).items():
        steps = "  ".join(f"{r['batch']}: {1e6 * r['seconds']:.0f} us" for r in model.get("decode", []))
        lines.append(f"{name} decode {steps}")
    return lines
