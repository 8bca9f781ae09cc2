"""Repeats the paper's experiments and writes docs/paper.md from what was measured.

    ./dev paper --quick --train books.txt --valid other.txt   # minutes: a few points and a little training
    ./dev paper --train books.txt --valid other.txt           # hours: everything
    ./dev paper --part synthetic --only dpfp1-sum,linear-sum --unique 100,200

Every finished run stays in the work folder and is not repeated: stop at any time, start again to go on. Measurements
are gathered in bench/results/paper/*.json, from which `--part report` draws the figures and writes the tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training.paper.runs import collect, say

PARTS = ("synthetic", "language", "report")


def numbers(text: str) -> tuple[int, ...]:
    """'20,60' as numbers."""
    return tuple(int(item) for item in text.split(","))


def run_synthetic(args: argparse.Namespace) -> None:
    """Part 1: retrieval."""
    from training.paper import synthetic

    capacity = (20, 60, 80, 100, 140, 200, 260, 300, 400, 600)
    updates = (20, 60, 80, 100, 140, 200)
    if args.quick:
        capacity, updates = (20, 60, 100), (20,)  # type: ignore[assignment]
    grids = {1: args.unique or capacity, 2: args.unique or updates}
    if args.setting:
        grids = {args.setting: grids[args.setting]}
    budget = synthetic.Budget(minutes=args.minutes_per_run)
    program = args.bin / "retrieval_eval" if args.bin else None
    synthetic.run(synthetic.tasks(grids, args.only), args.work, budget, program)


def run_language(args: argparse.Namespace) -> None:
    """Part 2: language models."""
    from training.paper import language

    tokens, valid_bytes = (50_000, 50_000) if args.quick else (2_500_000, 200_000)
    tokens = args.tokens or tokens
    texts = language.Texts(args.train, args.valid, args.work, args.tokenizer, 5 * tokens, valid_bytes)
    names = [name for name in language.NAMES if args.only is None or name in args.only]
    protocol = language.Protocol(tokens=tokens)
    language.run(names, args.work, texts, language.Shape(texts.vocabulary), protocol, args.bin)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./dev paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--part", choices=PARTS, action="append", help="only this part; may be given several times")
    add("--quick", action="store_true", help="a small version of each part, in a work folder of its own")
    add("--only", type=lambda text: set(text.split(",")), metavar="NAME,...", help="only these systems")
    add("--setting", type=int, choices=(1, 2), help="synthetic: only this setting")
    add("--unique", type=numbers, metavar="U,...", help="synthetic: numbers of unique keys")
    add("--minutes-per-run", type=float, default=10.0, help="synthetic: stop a run after this (default %(default)g)")
    add("--tokens", type=int, help="language: training tokens of each system (default 2500000)")
    add("--train", type=Path, help="language: UTF-8 text to train on, plain or .xz; its beginning is used")
    add("--valid", type=Path, help="language: text to measure on; its beginning is used")
    add("--tokenizer", type=Path, default=Path("checkpoints/books-5m/tokenizer.model"))
    add("--bin", type=Path, help="folder with retrieval_eval, palimpsest-server and palimpsest: measure with them too")
    add("--work", type=Path, help="folder of the runs (default build/paper, or build/paper-quick)")
    add("--threads", type=int, default=1, help="of PyTorch (default %(default)s: small models gain little from more)")
    args = parser.parse_args()
    args.work = args.work or Path("build/paper-quick" if args.quick else "build/paper")
    torch.set_num_threads(args.threads)
    results = args.work / "results" if args.quick else Path("bench/results/paper")
    parts = args.part or PARTS
    if "language" in parts and not (args.train and args.valid):
        parser.error("the language part needs texts: name them with --train and --valid, or choose others with --part")
    if "synthetic" in parts:
        run_synthetic(args)
        collect(args.work, results, "synthetic")
    if "language" in parts:
        run_language(args)
        collect(args.work, results, "language")
    if "report" in parts:
        from training.paper import report

        page = args.work / "paper.md" if args.quick else Path("docs/paper.md")
        report.write(results, page, page.with_suffix(""))
        say(f"wrote {page}")
    say("done")


if __name__ == "__main__":
    main()
