"""The second page: slots, sessions, the bytes of their states, batches, and step time against its bound."""

from panels import Page, Panel, Query, Row, average, mean, rate, total

ITERATION = "palimpsest_iteration_seconds"
MACHINE = "docs/operations.md#step-time-and-its-bound"

STATE = Page(
    "state",
    "Palimpsest: state",
    "Slots, sessions, the bytes of their states, batches, and step time against its bound.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Slots free",
                    "count",
                    (Query(total("palimpsest_slots", where='MODEL,condition="free"'), "slots"),),
                    "Room for this many more sequences at once.",
                    "stat",
                ),
                Panel(
                    "Slots used",
                    "ratio",
                    (Query("max(palimpsest:slots:used_ratio)", "of all"),),
                    "Of the fullest model.",
                    "stat",
                ),
                Panel(
                    "Sessions parked",
                    "count",
                    (Query(total("palimpsest_sessions", where='MODEL,condition="idle"'), "sessions"),),
                    "Sessions that nobody uses now: they hold a state and no slot.",
                    "stat",
                ),
                Panel("Snapshots", "count", (Query(total("palimpsest_snapshots"), "snapshots"),), "Held.", "stat"),
                Panel(
                    "States held",
                    "bytes",
                    (Query(total("palimpsest_state_bytes"), "bytes"),),
                    "By sessions and snapshots; forks that have not moved on share one.",
                    "stat",
                ),
                Panel(
                    "Quarantined",
                    "count",
                    (Query(total("palimpsest_quarantined_total"), "sequences"),),
                    "Sequences whose numbers stopped being finite, since the servers started.",
                    "stat",
                ),
                Panel(
                    "Memory",
                    "bytes",
                    (Query('sum(process_resident_memory_bytes{SERVER,job=~".*palimpsest.*"})', "resident"),),
                    "Resident, of all servers.",
                    "stat",
                ),
            ),
        ),
        Row(
            "Slots and sessions",
            (
                Panel(
                    "Slots",
                    "count",
                    (
                        Query(
                            average("palimpsest_slots", "model", where='MODEL,condition="used"'),
                            "{model} used",
                            ("model",),
                        ),
                        Query(
                            average("palimpsest_slots", "model", where='MODEL,condition="free"'),
                            "{model} free",
                            ("model",),
                        ),
                    ),
                    "Means over each window. All are allocated at start; a request that finds none free waits.",
                    "stacked",
                ),
                Panel(
                    "Sessions by condition",
                    "count",
                    (
                        Query(
                            total("palimpsest_sessions", "model", "condition"),
                            "{model} {condition}",
                            ("model", "condition"),
                        ),
                    ),
                    "Idle: parked. Active: a call runs on it. Quarantined: it answers no more.",
                    "stacked",
                ),
                Panel(
                    "Room for sessions and snapshots",
                    "ratio",
                    (
                        Query(
                            f"{total('palimpsest_sessions', where='SERVER')} "
                            f"/ {total('palimpsest_sessions_max', where='SERVER')}",
                            "sessions",
                        ),
                        Query(
                            f"{total('palimpsest_snapshots', where='SERVER')} "
                            f"/ {total('palimpsest_snapshots_max', where='SERVER')}",
                            "snapshots",
                        ),
                    ),
                    "Held, of those that may be held (--max_sessions, --max_snapshots).",
                ),
            ),
        ),
        Row(
            "States",
            (
                Panel(
                    "Bytes of states",
                    "bytes",
                    (
                        Query(total("palimpsest_state_bytes", "model"), "{model} parked", ("model",)),
                        Query(
                            "sum by (model) (palimpsest_slots{MODEL} * on (instance, model) "
                            "group_left () palimpsest_model_state_bytes{MODEL})",
                            "{model} slots",
                            ("model",),
                        ),
                    ),
                    "What sessions and snapshots hold, and what the slots took at start.",
                ),
                Panel(
                    "Context that came with states",
                    "ratio",
                    (
                        Query(
                            f"{rate('palimpsest_cached_tokens_total', 'model')} / "
                            f"({rate('palimpsest_cached_tokens_total', 'model')} + "
                            f"{rate('palimpsest_prompt_tokens_total', 'model')})",
                            "{model}",
                            ("model",),
                        ),
                    ),
                    "Of the tokens that requests stand on when their reply begins, the share that a state brought "
                    "along; the rest were prompts.",
                ),
                Panel(
                    "Sequences quarantined",
                    "count",
                    (
                        Query(
                            "sum by (model) (increase(palimpsest_quarantined_total{MODEL}[WINDOW]))",
                            "{model}",
                            ("model",),
                        ),
                    ),
                    "In each window. Any is worth a look.",
                ),
            ),
        ),
        Row(
            "Batches and steps",
            (
                Panel(
                    "What a batch is made of",
                    "count",
                    (
                        Query(
                            f"{rate('palimpsest_generated_tokens_total', 'model')} / "
                            f"{rate('palimpsest_iterations_total', 'model')}",
                            "{model} tokens generated",
                            ("model",),
                        ),
                        Query(
                            f"({rate('palimpsest_batch_rows_sum', 'model')} - "
                            f"{rate('palimpsest_generated_tokens_total', 'model')}) / "
                            f"{rate('palimpsest_iterations_total', 'model')}",
                            "{model} rows of prompts",
                            ("model",),
                        ),
                        Query(mean("palimpsest_batch_sequences", "model"), "{model} sequences", ("model",)),
                    ),
                    "Means over the engine's iterations.",
                ),
                Panel(
                    "Step time against its bound",
                    "seconds",
                    (
                        Query(mean(ITERATION, "model"), "{model} mean", ("model",)),
                        Query(
                            f"{rate('palimpsest_iteration_minimum_bytes_total', 'model')} / "
                            f"{rate('palimpsest_iterations_total', 'model')} / on () group_left () "
                            "max(palimpsest:machine_bytes_per_second)",
                            "{model} minimum, by memory",
                            ("model",),
                            needs=MACHINE,
                        ),
                        Query(
                            f"{rate('palimpsest_iteration_minimum_flops_total', 'model')} / "
                            f"{rate('palimpsest_iterations_total', 'model')} / on () group_left () "
                            "max(palimpsest:machine_flops_per_second)",
                            "{model} minimum, by arithmetic",
                            ("model",),
                            needs=MACHINE,
                        ),
                    ),
                    "An iteration cannot be faster than moving its bytes or doing its arithmetic takes, whichever is "
                    f"longer. Those two lines need your machine's measured rates: {MACHINE}",
                ),
                Panel(
                    "Share of the bound reached",
                    "ratio",
                    (
                        Query(
                            f"{rate('palimpsest_iteration_minimum_bytes_total', 'model')} / "
                            f"{rate(ITERATION + '_sum', 'model')} / on () group_left () "
                            "max(palimpsest:machine_bytes_per_second)",
                            "{model} memory",
                            ("model",),
                            needs=MACHINE,
                        ),
                        Query(
                            f"{rate('palimpsest_iteration_minimum_flops_total', 'model')} / "
                            f"{rate(ITERATION + '_sum', 'model')} / on () group_left () "
                            "max(palimpsest:machine_flops_per_second)",
                            "{model} arithmetic",
                            ("model",),
                            needs=MACHINE,
                        ),
                    ),
                    "The larger of the two is what holds the step up. Memory can pass 100 % where weights and states "
                    "stay in the processor's caches, arithmetic where products are bf16. "
                    f"Needs your machine's rates: {MACHINE}",
                ),
            ),
        ),
        Row(
            "Rates and process",
            (
                Panel(
                    "Minimum bytes moved",
                    "bytes/s",
                    (
                        Query(
                            f"{rate('palimpsest_iteration_minimum_bytes_total', 'model')} / "
                            f"{rate(ITERATION + '_sum', 'model')}",
                            "{model}",
                            ("model",),
                        ),
                    ),
                    "While the engine computes: the weights once an iteration, each sequence's state in and out.",
                ),
                Panel(
                    "Minimum arithmetic done",
                    "flop/s",
                    (
                        Query(
                            f"{rate('palimpsest_iteration_minimum_flops_total', 'model')} / "
                            f"{rate(ITERATION + '_sum', 'model')}",
                            "{model}",
                            ("model",),
                        ),
                    ),
                    "While the engine computes; a multiply-add counts two.",
                ),
                Panel(
                    "Time that engines compute",
                    "ratio",
                    (
                        Query(
                            f"sum by (model) (rate({ITERATION}_sum{{MODEL}}[WINDOW])) "
                            f"/ count by (model) ({ITERATION}_count{{MODEL}})",
                            "{model} engine",
                            ("model",),
                        ),
                        Query(
                            'sum by (instance) (rate(process_cpu_seconds_total{SERVER,job=~".*palimpsest.*"}[WINDOW]))',
                            "{instance} processors",
                            ("instance",),
                        ),
                    ),
                    "Share of the time in which an engine computes; 100 % is saturated. And processors in use.",
                ),
            ),
        ),
        Row(
            "Builds and models",
            (
                Panel(
                    "Models",
                    "count",
                    (
                        Query(
                            "max by (instance, model, architecture, dtype, backend) (palimpsest_model_info{MODEL})",
                            "{model}",
                            ("instance", "model", "architecture", "dtype", "backend"),
                        ),
                    ),
                    "What each server has loaded.",
                    "table",
                ),
                Panel(
                    "Builds",
                    "count",
                    (
                        Query(
                            "max by (instance, version, commit) (palimpsest_build_info{SERVER})",
                            "{instance}",
                            ("instance", "version", "commit"),
                        ),
                    ),
                    "Of each server.",
                    "table",
                ),
            ),
        ),
    ),
)
