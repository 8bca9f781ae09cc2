"""Writes the golden models of tests/golden: small random checkpoints with the log-probabilities they must give.

    python -m training.make_goldens --out tests/golden

The expected values come from the recurrent form in float64, run on the weights as the files hold them.
The format is described in tests/golden/README.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import weights_file
from training.checkpoint import write_checkpoint
from training.export import load_model
from training.families import CLASSES
from training.random_checkpoint import random_entries

TOKENS = 512
ROWS = (0, 1, 63, 64, 200, 511)  # positions whose whole distribution is stored


@dataclass(frozen=True)
class Case:
    """One folder of tests/golden."""

    name: str
    dtype: str
    config: dict[str, Any] = field(repr=False)
    shards: int = 1


def _model(model_type: str, **keys: Any) -> dict[str, Any]:
    base = {
        "model_type": model_type,
        "vocab_size": 97,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "intermediate_size": 80,
        "hidden_act": "swish",
        "norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {**base, **keys}


def _gated(**keys: Any) -> dict[str, Any]:
    return _model("gated_deltanet", head_dim=16, expand_v=2.0, **keys)


CASES = (
    Case("gated_base", "F32", _gated(tie_word_embeddings=False)),
    Case("gated_tied_bf16", "BF16", _gated(tie_word_embeddings=True, norm_eps=1e-5)),
    Case(  # HV = 2H and odd head sizes: K 24, V 40
        "gated_grouped_values",
        "F32",
        _model("gated_deltanet", head_dim=24, expand_v=5 / 3, num_v_heads=4, hidden_size=40, tie_word_embeddings=True),
    ),
    Case(
        "gated_no_conv_sharded",
        "F16",
        _gated(use_short_conv=False, use_gate=False, num_hidden_layers=3, vocab_size=61, tie_word_embeddings=False),
        shards=3,
    ),
    Case("gated_negative_conv2", "BF16", _gated(allow_neg_eigval=True, conv_size=2, tie_word_embeddings=True)),
    Case("delta_base", "BF16", _model("delta_net", expand_k=1.0, expand_v=1.0, tie_word_embeddings=False)),
    Case(
        "delta_sum_elu_no_conv",
        "F32",
        _model(
            "delta_net",
            qk_norm="sum",
            qk_activation="elu",
            use_short_conv=False,
            expand_k=0.5,
            hidden_size=64,
            num_heads=4,
            vocab_size=61,
            tie_word_embeddings=True,
        ),
    ),
    Case(
        "delta_sum_elu_conv", "BF16", _model("delta_net", qk_norm="sum", qk_activation="elu", tie_word_embeddings=True)
    ),
    Case(  # K 24, V 40
        "delta_gate_negative_relu",
        "F32",
        _model(
            "delta_net",
            use_gate=True,
            allow_neg_eigval=True,
            qk_activation="relu",
            expand_v=1.6667,
            conv_size=3,
            tie_word_embeddings=True,
        ),
    ),
    Case(  # intermediate_size by fla's rule: 256
        "delta_identity_no_beta_sharded",
        "F16",
        _model(
            "delta_net",
            use_beta=False,
            qk_activation="identity",
            hidden_size=32,
            intermediate_size=None,
            num_hidden_layers=3,
            tie_word_embeddings=False,
        ),
        shards=2,
    ),
)


def _hf_config(case: Case) -> dict[str, Any]:
    return {"architectures": [CLASSES[case.config["model_type"]] + "ForCausalLM"], **case.config}


def expected_log_probabilities(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float64 [T, R]: the distribution after each of `tokens`, without a bos in front."""
    model = load_model(folder, chunk=0, dtype=torch.float64)
    logits, _ = model(torch.from_numpy(tokens.astype(np.int64))[None], model.initial_state(1))
    return torch.log_softmax(logits[0], -1).numpy()


def write_case(case: Case, folder: Path, seed: int) -> None:
    """Writes the checkpoint, then what it must give."""
    hf_config = _hf_config(case)
    write_checkpoint(folder, hf_config, random_entries(hf_config, seed, case.dtype), shards=case.shards)
    vocab = case.config["vocab_size"]
    tokens = np.random.default_rng((seed, 1 << 20)).integers(0, vocab, TOKENS).astype(np.int32)
    log_probs = expected_log_probabilities(folder, tokens)
    golden = {
        "tokens": weights_file.entry(tokens, "I32"),
        "next_logprob": weights_file.entry(log_probs[np.arange(TOKENS - 1), tokens[1:]], "F32"),
        "rows": weights_file.entry(np.array(ROWS, dtype=np.int32), "I32"),
        "row_logprobs": weights_file.entry(log_probs[list(ROWS)], "F32"),
    }
    weights_file.write(folder / "golden.safetensors", golden)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write one folder per case into")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this case")
    args = parser.parse_args()
    for seed, case in enumerate(CASES):
        if args.case is None or case.name in args.case:
            write_case(case, args.out / case.name, seed)
            print(case.name)


if __name__ == "__main__":
    main()
