"""The first page: traffic, errors, latency, tokens and the queue."""

from dataclasses import replace

from panels import Page, Panel, Query, Row, average, quantiles, rate, short, total

USUAL = (0.5, 0.9, 0.99)
FAULTS = 'code=~"INTERNAL|UNKNOWN|UNAVAILABLE"'
REQUESTS = "palimpsest_requests_total"

SERVICE = Page(
    "service",
    "Palimpsest: service",
    "Traffic, errors, latency, tokens and the queue.",
    (
        Row(
            "Now",
            (
                Panel(
                    "Ready",
                    "count",
                    (Query(total("palimpsest_ready", where="SERVER"), "servers"),),
                    "Servers that accept requests.",
                    "stat",
                ),
                Panel(
                    "Alerts firing",
                    "count",
                    (Query('count(ALERTS{alertname=~"Palimpsest.+",alertstate="firing"}) or vector(0)', "alerts"),),
                    "What each means and what to do: docs/operations.md.",
                    "stat",
                ),
                Panel("Calls", "per second", (Query(rate(REQUESTS, where="SERVER"), "calls"),), "All calls.", "stat"),
                Panel(
                    "Failing",
                    "ratio",
                    (
                        Query(
                            f"({rate(REQUESTS, where=f'SERVER,{FAULTS}')} or vector(0)) "
                            f"/ {rate(REQUESTS, where='SERVER')}",
                            "calls",
                        ),
                    ),
                    "Share of calls that fail by the server's own doing.",
                    "stat",
                ),
                Panel(
                    "First token, p95",
                    "seconds",
                    (
                        Query(
                            f"histogram_quantile(0.95, {rate('palimpsest_time_to_first_token_seconds_bucket', 'le')})",
                            "p95",
                        ),
                    ),
                    "From a request's arrival to its first token.",
                    "stat",
                ),
                Panel(
                    "Tokens",
                    "per second",
                    (Query(rate("palimpsest_generated_tokens_total"), "generated"),),
                    "Tokens generated.",
                    "stat",
                ),
                Panel(
                    "Waiting",
                    "count",
                    (Query(total("palimpsest_requests_waiting"), "requests"),),
                    "Requests that wait for a slot.",
                    "stat",
                ),
            ),
        ),
        Row(
            "Traffic and errors",
            (
                Panel(
                    "Calls by method",
                    "per second",
                    (Query(short(rate(REQUESTS, "method", where="SERVER")), "{method}", ("method",)),),
                    "Calls that ended.",
                    "stacked",
                ),
                Panel(
                    "Calls that were not OK",
                    "per second",
                    (Query(rate(REQUESTS, "code", where='SERVER,code!="OK"'), "{code}", ("code",)),),
                    "By status code. INTERNAL, UNKNOWN and UNAVAILABLE are the server's doing, RESOURCE_EXHAUSTED is a "
                    "full limit, the others are the callers'.",
                ),
                Panel(
                    "Requests by how they ended",
                    "per second",
                    (
                        Query(
                            f"{rate('palimpsest_finished_total', 'reason')} > 0",
                            "{reason}",
                            ("reason",),
                        ),
                    ),
                    "As the engine ended them; prompt: prefilled or scored, with nothing generated.",
                    "stacked",
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token",
                    "seconds",
                    quantiles("palimpsest_time_to_first_token_seconds", USUAL, "model"),
                    "From a request's arrival to its first token: queue, prompt and one step.",
                ),
                Panel(
                    "Time between tokens",
                    "seconds",
                    quantiles("palimpsest_time_per_output_token_seconds", USUAL, "model"),
                    "Between two tokens of one sequence, as the engine makes them.",
                ),
                Panel(
                    "Calls from arrival to end",
                    "seconds",
                    tuple(
                        replace(query, expr=short(query.expr))
                        for query in quantiles("palimpsest_request_duration_seconds", (0.95,), "method", where="SERVER")
                    ),
                    "By method, p95. A call that streams ends with its last message.",
                ),
            ),
        ),
        Row(
            "Objectives",
            (
                Panel(
                    "First tokens later than 0.5 s",
                    "ratio",
                    (
                        Query(
                            "max by (model) (palimpsest:first_token_late:ratio_rate5m)", "{model}, 5 min", ("model",)
                        ),
                        Query("max by (model) (palimpsest:first_token_late:ratio_rate1h)", "{model}, 1 h", ("model",)),
                    ),
                    "The objective allows 1 %. Above 14.4 % in both windows somebody is paged.",
                ),
                Panel(
                    "Tokens later than 0.1 s",
                    "ratio",
                    (
                        Query("max by (model) (palimpsest:token_late:ratio_rate5m)", "{model}, 5 min", ("model",)),
                        Query("max by (model) (palimpsest:token_late:ratio_rate1h)", "{model}, 1 h", ("model",)),
                    ),
                    "The objective allows 1 %. Above 14.4 % in both windows somebody is paged.",
                ),
                Panel(
                    "Failing and refused calls",
                    "ratio",
                    (
                        Query("max(palimpsest:errors:ratio_rate5m)", "failing"),
                        Query("max(palimpsest:refused:ratio_rate5m)", "refused"),
                    ),
                    "Of all calls, in five minutes. Alerts: 1 % failing, 5 % refused.",
                ),
            ),
        ),
        Row(
            "Tokens and queue",
            (
                Panel(
                    "Tokens per second",
                    "per second",
                    (
                        Query(rate("palimpsest_generated_tokens_total"), "generated"),
                        Query(rate("palimpsest_prompt_tokens_total"), "of prompts"),
                        Query(rate("palimpsest_cached_tokens_total"), "brought along by states"),
                        Query(rate("palimpsest_wasted_tokens_total"), "wasted"),
                    ),
                    "Tokens brought along are context that a session's state has, so that nothing was processed again. "
                    "Wasted: processed for requests that ended before their first token.",
                ),
                Panel(
                    "Queue",
                    "count",
                    (
                        Query(average("palimpsest_requests_waiting", "model"), "{model} waiting", ("model",)),
                        Query(average("palimpsest_requests_running", "model"), "{model} running", ("model",)),
                        Query(
                            average("palimpsest_requests_paused", "model"), "{model} paused, slow readers", ("model",)
                        ),
                    ),
                    "Means over each window: requests that wait for a slot, that have one, and that have one but are "
                    "paused because their caller does not read.",
                ),
                Panel(
                    "Time in the queue",
                    "seconds",
                    (
                        *quantiles("palimpsest_queue_time_seconds", (0.5, 0.99), "model"),
                        Query(
                            "max by (model) (palimpsest_queue_oldest_seconds{MODEL})", "{model} oldest now", ("model",)
                        ),
                    ),
                    "Of those that got a slot or gave up; and how long the oldest of those that still wait has waited.",
                ),
            ),
        ),
    ),
)
