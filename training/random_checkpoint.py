"""Writes a checkpoint folder with random weights, for benchmarks and tests. Needs NumPy only.

    python -m training.random_checkpoint --preset 125m --out work/random-125m
    python -m training.random_checkpoint --preset 125m-kda --out work/random-125m-kda
    python -m training.random_checkpoint --config my_config.json --dtype F32 --seed 7 --out work/random

The weights are scaled so that activations keep their size through the layers, logits are of order one to ten and the
state matters to them: a benchmark then sees no denormals and a test no saturated softmax. A vocabulary of more than
1024, which is no longer taken for bytes, gets a tokenizer.model of that size (invented_tokenizer.py).
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
from training.families import CLASSES, parameter_count, tensor_shapes, with_defaults
from training.invented_tokenizer import tokenizer_for

_LOGIT_SIZE = 3.0


def _model(family: str, hidden: int, layers: int, inner: int, **keys: Any) -> dict[str, Any]:
    return {
        "architectures": [CLASSES[family] + "ForCausalLM"],
        "model_type": family,
        "vocab_size": 32000,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        **keys,
        "intermediate_size": inner,
        "hidden_act": "swish",
        "norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


_CONVOLVED = {"use_short_conv": True, "conv_size": 4}
_GATED = {"expand_v": 1.0, "use_gate": True, **_CONVOLVED}
_PRODUCT = {"expand_v": 1.0, "use_output_gate": True, "use_forget_gate": True, **_CONVOLVED}

# Shapes of the sizes at which small language models are usually compared.
PRESETS: dict[str, dict[str, Any]] = {
    "30m": _model("gated_deltanet", 384, 8, 1024, num_heads=6, head_dim=64, **_GATED),
    "125m": _model("gated_deltanet", 768, 14, 2048, num_heads=6, head_dim=128, **_GATED),
    "350m": _model("gated_deltanet", 1024, 28, 2048, num_heads=8, head_dim=128, **_GATED),
    "1.3b": _model("gated_deltanet", 2048, 22, 5632, num_heads=16, head_dim=128, **_GATED),
    "1.3b-6-layers": _model("gated_deltanet", 2048, 6, 5632, num_heads=16, head_dim=128, **_GATED),
    "125m-deltanet": _model("delta_net", 768, 14, 2048, num_heads=6, **_CONVOLVED),
    "125m-deltaproduct": _model(
        "gated_deltaproduct", 768, 11, 2048, num_heads=6, head_dim=128, num_householder=2, **_PRODUCT
    ),
    "125m-kda": _model("kda", 768, 13, 2048, num_heads=6, head_dim=128, expand_v=1.0, **_CONVOLVED),
    "125m-gla": _model("gla", 768, 14, 2048, num_heads=4, expand_k=0.5, expand_v=1.0),
    "125m-linear": _model("linear_attn", 768, 14, 2048, num_heads=6, feature_map="elementwise_product"),
}


def random_tensor(name: str, shape: tuple[int, ...], seed: int, index: int) -> np.ndarray:
    """Values of one tensor in float32: a pure function of its name, shape, the seed and its place in the file."""
    rng = np.random.default_rng((seed, index))
    if name.endswith("A_log"):
        return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
    if name.endswith("dt_bias"):
        step = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), shape))
        return (step + np.log(-np.expm1(-step))).astype(np.float32)  # the inverse of softplus
    if name.endswith("gk_proj.1.bias"):  # a channel forgets within some twenty to some thousand tokens
        return rng.uniform(0, 6, shape).astype(np.float32)
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith(".bias"):
        return np.float32(0.1) * values
    if len(shape) == 1:  # norm weights
        return 1 + 0.1 * values
    if name.endswith(("embeddings.weight", "lm_head.weight")):
        return values * np.float32(_LOGIT_SIZE / math.sqrt(shape[-1]))
    return values * np.float32(1 / math.sqrt(math.prod(shape[1:])))  # fan-in; for a convolution that is its width


def random_entries(hf_config: dict[str, Any], seed: int, dtype: str) -> dict[str, weights_file.Entry]:
    """Tensors of `hf_config`, made one at a time while they are written."""
    config = with_defaults(hf_config)
    shapes = tensor_shapes(hf_config)
    place = {name: index for index, name in enumerate(shapes)}
    if config.get("tie_feature_map_qk"):  # one map, which is in the file twice
        place = {name: place[name.replace(".feature_map_k.", ".feature_map_q.")] for name in place}

    def values(name: str) -> np.ndarray:
        if name.endswith("A_log") and config.get("safe_gate"):
            return np.zeros(shapes[name], np.float32)  # as fla has it before training
        return random_tensor(name, shapes[name], seed, place[name])

    return {name: weights_file.Entry(dtype, shape, lambda name=name: values(name)) for name, shape in shapes.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="a model of about this many parameters; a gated_deltanet where no other is named",
    )
    shape.add_argument("--config", type=Path, help="a config.json of the wanted shape")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    parser.add_argument("--shards", type=int, default=1, help="weight files to spread the tensors over")
    parser.add_argument("--vocab-size", type=int, help="instead of the preset's or config's")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="tokenizer.model to copy in instead of an invented one; its size becomes the vocabulary's",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hf_config = dict(PRESETS[args.preset] if args.preset else json.loads(args.config.read_text()))
    if args.vocab_size:
        hf_config["vocab_size"] = args.vocab_size
    if args.tokenizer:
        from training.text import load_tokenizer

        hf_config["vocab_size"] = load_tokenizer(args.tokenizer).vocab_size()
        tokenizer = args.tokenizer.read_bytes()
    else:
        tokenizer = tokenizer_for(int(with_defaults(hf_config)["vocab_size"]))
    entries = random_entries(hf_config, args.seed, args.dtype)
    write_checkpoint(args.out, hf_config, entries, tokenizer=tokenizer, shards=args.shards)
    print(f"{parameter_count(hf_config) / 1e6:.1f} million parameters in {args.out}")


if __name__ == "__main__":
    main()
