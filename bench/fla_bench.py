#!/usr/bin/env python3
"""flash-linear-attention's Triton kernels at the shapes of device_bench, on the same GPU. A line of JSON for each.

  fla_bench.py [--tiny] [--only REGEX] [--seconds N]

Needs PyTorch, Triton and fla-core. Each kernel is checked against the recurrence in float64 before it is timed. There
are two times: `do_bench`, the median of triton.testing.do_bench, which empties the caches before each call; and
`graph`, the median of runs of a CUDA graph of many calls that take their states in turn from more memory than caches
hold, which is how device_bench measures. `seconds` is the smaller one.

--tiny: small shapes without times, for a test; with TRITON_INTERPRET=1 it needs no GPU.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

MORE_THAN_CACHES = 512 << 20
RUN_SECONDS = 5e-3
RUNS = 25
RULES = ("delta", "gated_delta")

Inputs = dict[str, torch.Tensor]


def reference(rule: str, inputs: Inputs, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [B, T, H, V] and the last state [B, H, K, V] of the recurrence, row by row in float64."""
    q, k, v, beta = (inputs[name].double() for name in ("q", "k", "v", "beta"))
    state = inputs["state"].double().clone()
    outputs = []
    for t in range(q.shape[1]):
        if rule == "gated_delta":
            state = state * inputs["g"].double()[:, t, :, None, None].exp()
        read = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        update = beta[:, t, :, None] * (v[:, t] - read)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], update)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t] * scale))
    return torch.stack(outputs, dim=1), state


def draw(
    batch: int, tokens: int, heads: int, dim: int, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """Random inputs: keys of length about one, strengths of a half, mild decays."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    unit = 1 / math.sqrt(dim)
    return {
        "q": (normal(batch, tokens, heads, dim) * unit).to(dtype),
        "k": (normal(batch, tokens, heads, dim) * unit).to(dtype),
        "v": normal(batch, tokens, heads, dim).to(dtype),
        "beta": torch.full((batch, tokens, heads), 0.5, device=device, dtype=dtype),
        "g": torch.full((batch, tokens, heads), -0.05, device=device),
        "state": normal(batch, heads, dim, dim),
    }


def kernel(form: str, rule: str) -> Callable[[Inputs, float], tuple[torch.Tensor, torch.Tensor]]:
    """fla's function for one form of one rule."""
    from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    functions = {
        ("step", "delta"): fused_recurrent_delta_rule,
        ("step", "gated_delta"): fused_recurrent_gated_delta_rule,
        ("chunks", "delta"): chunk_delta_rule,
        ("chunks", "gated_delta"): chunk_gated_delta_rule,
    }
    function = functions[form, rule]

    def call(inputs: Inputs, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        gate = {"g": inputs["g"]} if rule == "gated_delta" else {}
        result: tuple[torch.Tensor, torch.Tensor] = function(
            q=inputs["q"],
            k=inputs["k"],
            v=inputs["v"],
            beta=inputs["beta"],
            scale=scale,
            initial_state=inputs["state"],
            output_final_state=True,
            **gate,
        )
        return result[0], result[1]

    return call


def check(what: str, values: torch.Tensor, expected: torch.Tensor, tolerance: float) -> float:
    """The error by norms. One beyond the tolerance is told."""
    error = float((values.double() - expected).norm() / expected.norm())
    if not error <= tolerance:
        print(json.dumps({"failed": what, "error": error, "allowed": tolerance}), flush=True)
    return error


def time_by_graph(call: Callable[[int], Any], bytes_of_one: float) -> float:
    """Seconds of one call: the median over runs of a graph of many calls."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def between(work: Callable[[], Any]) -> float:
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return max(begin.elapsed_time(end) * 1e-3, 1e-9)

    for i in range(3):
        call(i)
    once = between(lambda: call(0))
    calls = int(min(max(RUN_SECONDS / once, MORE_THAN_CACHES / bytes_of_one, 4), 1000))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)
    between(graph.replay)
    return statistics.median(between(graph.replay) / calls for _ in range(RUNS))


def measure(
    form: str,
    rule: str,
    dtype: torch.dtype,
    batch: int,
    tokens: int,
    value_heads: int,
    args: argparse.Namespace,
    device: str,
) -> dict[str, Any]:
    """One row of the results. Where values have more heads, q and k are repeated to as many, as fla's layer does."""
    heads, dim = (2, 32) if args.tiny else (value_heads, 128)
    scale = 1.0
    generator = torch.Generator(device=device).manual_seed(1)
    call = kernel(form, rule)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
    # Of the lengths that a loop in Python can do in a moment; a step's own.
    checked = draw(min(batch, 64), min(tokens, 130), heads, dim, dtype, device, generator)
    expected = reference(rule, checked, scale)
    values = call(checked, scale)
    errors = [
        check(f"{form} {rule} {name}", *pair, tolerance)
        for name, *pair in zip(("output", "state"), values, expected, strict=True)
    ]
    row: dict[str, Any] = {
        "group": form,
        "rule": rule,
        "dtype": str(dtype).removeprefix("torch."),
        "batch" if form == "step" else "sequences": batch,
        "tokens": tokens,
        "value_heads": heads,
        "error": max(errors),
        "seconds": None,
    }
    if not args.tiny:
        from triton.testing import do_bench

        state_bytes = 4.0 * batch * heads * dim * dim
        inputs = draw(batch, tokens, heads, dim, dtype, device, generator)
        count = int(min(max(MORE_THAN_CACHES / (2 * state_bytes), 2), 256))
        sets = [{**inputs, "state": inputs["state"].clone()} for _ in range(count)]
        row["do_bench"] = do_bench(lambda: call(inputs, scale), warmup=10, rep=50, return_mode="median") * 1e-3
        row["graph"] = time_by_graph(lambda i: call(sets[i % count], scale), 2 * state_bytes)
        row["seconds"] = min(row["do_bench"], row["graph"])
    print(f"{form} {rule} {row['dtype']} {batch} x {tokens}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes without times")
    parser.add_argument("--only", default=".", help="which forms and rules, a regular expression; default all")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no measurement begins later than that")
    args = parser.parse_args()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted and not args.tiny:
        parser.error("TRITON_INTERPRET=1 goes with --tiny only")
    if not interpreted and not torch.cuda.is_available():
        raise SystemExit("fla_bench: PyTorch sees no GPU (with TRITON_INTERPRET=1, --tiny needs none)")
    device = "cpu" if interpreted else "cuda"
    if not interpreted:
        # Measurements are of the GPU, not of the tuning before them: fla chooses launch shapes at a first call.
        torch.backends.cuda.matmul.allow_tf32 = False

    import triton
    from fla import __version__ as fla_version

    batches = [1, 3] if args.tiny else [1, 64, 256, 512]
    lengths = [(2, 66)] if args.tiny else [(1, 8192), (8, 1024), (32, 1024), (1, 1024), (32, 64), (1, 64)]
    f32, bf16 = torch.float32, torch.bfloat16
    # What is published most comes first. A step in both types of inputs; the chunk forms take no float32.
    plan = [("chunks", "gated_delta", bf16, s, t, 64) for s, t in lengths[:2]]
    plan += [("step", rule, f32, b, 1, 16) for rule in reversed(RULES) for b in batches]
    plan += [("chunks", rule, bf16, s, t, 16) for rule in reversed(RULES) for s, t in lengths]
    plan += [("step", rule, bf16, b, 1, 16) for rule in reversed(RULES) for b in batches]
    plan = [case for case in plan if re.search(args.only, f"{case[0]}/{case[1]}")]
    end = time.monotonic() + args.seconds
    name = "interpreter" if interpreted else torch.cuda.get_device_name()
    versions = {"fla": fla_version, "torch": torch.__version__, "triton": triton.__version__}
    print(json.dumps({"device": name, "versions": versions}), flush=True)
    with torch.no_grad():
        for case in plan:
            if time.monotonic() >= end:
                print(json.dumps({"out_of_time": True}), flush=True)
                break
            print(json.dumps(measure(*case, args, device)), flush=True)


if __name__ == "__main__":
    main()
