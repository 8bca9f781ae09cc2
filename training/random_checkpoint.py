"""Writes a checkpoint folder with random weights, for benchmarks and tests. Needs NumPy only.

    python -m training.random_checkpoint --preset 125m --out work/random-125m
    python -m training.random_checkpoint --config my_config.json --dtype F32 --seed 7 --out work/random

The weights are scaled so that activations keep their size through the layers, logits are of order one to ten and the
state matters to them: a benchmark then sees no denormals and a test no saturated softmax.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from training import weights_file
from training.checkpoint import write_checkpoint
from training.families import parameter_count, tensor_shapes

_LOGIT_SIZE = 3.0


def _gated_deltanet(hidden: int, layers: int, heads: int, head_dim: int, inner: int) -> dict[str, Any]:
    return {
        "architectures": ["GatedDeltaNetForCausalLM"],
        "model_type": "gated_deltanet",
        "vocab_size": 32000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_heads": heads,
        "head_dim": head_dim,
        "expand_v": 1.0,
        "use_gate": True,
        "use_short_conv": True,
        "conv_size": 4,
        "intermediate_size": inner,
        "hidden_act": "swish",
        "norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


# Shapes of the sizes at which small language models are usually compared.
PRESETS: dict[str, dict[str, Any]] = {
    "30m": _gated_deltanet(hidden=384, layers=8, heads=6, head_dim=64, inner=1024),
    "125m": _gated_deltanet(hidden=768, layers=14, heads=6, head_dim=128, inner=2048),
    "350m": _gated_deltanet(hidden=1024, layers=28, heads=8, head_dim=128, inner=2048),
    "1.3b": _gated_deltanet(hidden=2048, layers=22, heads=16, head_dim=128, inner=5632),
    "1.3b-6-layers": _gated_deltanet(hidden=2048, layers=6, heads=16, head_dim=128, inner=5632),
}


def random_tensor(name: str, shape: tuple[int, ...], seed: int, index: int) -> np.ndarray:
    """Values of one tensor in float32: a pure function of its name, shape, the seed and its place in the file."""
    rng = np.random.default_rng((seed, index))
    if name.endswith("A_log"):
        return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
    if name.endswith("dt_bias"):
        step = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), shape))
        return (step + np.log(-np.expm1(-step))).astype(np.float32)  # the inverse of softplus
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:  # norm weights
        return 1 + 0.1 * values
    if name.endswith(("embeddings.weight", "lm_head.weight")):
        return values * np.float32(_LOGIT_SIZE / math.sqrt(shape[-1]))
    return values * np.float32(1 / math.sqrt(math.prod(shape[1:])))  # fan-in; for a convolution that is its width


def random_entries(hf_config: dict[str, Any], seed: int, dtype: str) -> dict[str, weights_file.Entry]:
    """Tensors of `hf_config`, made one at a time while they are written."""
    shapes = tensor_shapes(hf_config)
    return {
        name: weights_file.Entry(
            dtype, shape, lambda name=name, shape=shape, index=index: random_tensor(name, shape, seed, index)
        )
        for index, (name, shape) in enumerate(shapes.items())
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--preset", choices=sorted(PRESETS), help="a gated_deltanet of about this many parameters")
    shape.add_argument("--config", type=Path, help="a config.json of the wanted shape")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    parser.add_argument("--shards", type=int, default=1, help="weight files to spread the tensors over")
    parser.add_argument("--vocab-size", type=int, help="instead of the preset's or config's")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model to copy in; its size becomes the vocabulary's")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hf_config = dict(PRESETS[args.preset] if args.preset else json.loads(args.config.read_text()))
    if args.vocab_size:
        hf_config["vocab_size"] = args.vocab_size
    if args.tokenizer:
        from training.text import load_tokenizer

        hf_config["vocab_size"] = load_tokenizer(args.tokenizer).vocab_size()
    entries = random_entries(hf_config, args.seed, args.dtype)
    write_checkpoint(args.out, hf_config, entries, tokenizer=args.tokenizer, shards=args.shards)
    print(f"{parameter_count(hf_config) / 1e6:.1f} million parameters in {args.out}")


if __name__ == "__main__":
    main()
