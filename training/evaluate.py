"""Measures a checkpoint in bits per byte of a text file.

    python -m training.evaluate --checkpoint checkpoints/books-5m books-valid.txt

The whole file is one sequence: the state is carried from its first token to its last. No bos is added and the first
token is not scored. Bits per byte is the sum of -log2 p over all scored tokens, divided by the bytes of the file.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.export import load_model
from training.model import LanguageModel
from training.text import encode_text, read_text


@torch.inference_mode()
def total_nats(model: LanguageModel, ids: np.ndarray, segment: int = 4096) -> float:
    """Sum of -log p(ids[t+1] | ids[0..t]) over the file."""
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    state, total = model.initial_state(1), 0.0
    for start in range(0, len(ids) - 1, segment):
        targets = tokens[0, start + 1 : start + segment + 1]
        logits, state = model(tokens[:, start : start + len(targets)], state)
        total += F.cross_entropy(logits[0].float(), targets, reduction="sum").item()
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="UTF-8 text file, plain or .xz")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder with tokenizer.model")
    parser.add_argument("--chunk", type=int, default=64, help="chunk length of the mixer; 0 is token by token")
    parser.add_argument("--matmul-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--max-bytes", type=int, default=0, help="only about this much of the file; 0 is all of it")
    parser.add_argument("--threads", type=int, help="default: all cores")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    text = read_text(args.text)
    if args.max_bytes:
        text = text.encode()[: args.max_bytes].decode(errors="ignore")
    ids = encode_text(text, args.checkpoint / "tokenizer.model")
    model = load_model(args.checkpoint, chunk=args.chunk, matmul_dtype=getattr(torch, args.matmul_dtype))
    start = time.monotonic()
    nats, size = total_nats(model, ids), len(text.encode())
    seconds = time.monotonic() - start
    print(
        f"{nats / math.log(2) / size:.4f} bits per byte, {nats / (len(ids) - 1):.4f} nats per token, "
        f"{size} bytes, {len(ids)} tokens, {seconds:.1f} s"
    )


if __name__ == "__main__":
    main()
