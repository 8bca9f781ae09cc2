"""Turns a training checkpoint into a folder in fla's Hugging Face form, and loads such folders into PyTorch.

    python -m training.export --config training/configs/books-5m.json --tokenizer work/tokenizer.model \\
        --training-checkpoint work/books-5m/checkpoint.pt --out checkpoints/books-5m
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import weights_file
from training.checkpoint import read_config, read_tensors, write_checkpoint
from training.model import LanguageModel


def export_checkpoint(
    weights: dict[str, Tensor],
    hf_config: dict[str, Any],
    tokenizer: Path | None,
    folder: Path,
    *,
    dtype: str = "BF16",
    shards: int = 1,
) -> None:
    """Writes `weights` (a LanguageModel's state dict) to `folder`. The scalars of the decay stay in float32."""
    tensors = {}
    for name, tensor in weights.items():
        exact = name.endswith(("A_log", "dt_bias")) and dtype == "BF16"
        tensors[name] = weights_file.entry(tensor.detach().float().numpy(), "F32" if exact else dtype)
    hf_config = {**hf_config, "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]}
    model = tokenizer.read_bytes() if tokenizer else None
    write_checkpoint(folder, hf_config, tensors, tokenizer=model, shards=shards)


def load_model(
    folder: Path, *, chunk: int = 64, dtype: torch.dtype = torch.float32, matmul_dtype: torch.dtype | None = None
) -> LanguageModel:
    """Loads a checkpoint folder; parameters are held in `dtype`."""
    model = LanguageModel(read_config(folder), chunk=chunk, matmul_dtype=matmul_dtype)
    tensors = read_tensors(folder)
    model.load_state_dict({name: torch.from_numpy(values.astype(np.float32)) for name, values in tensors.items()})
    return model.to(dtype).requires_grad_(False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--training-checkpoint", type=Path, required=True, help="checkpoint.pt of the trainer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    args = parser.parse_args()
    saved = torch.load(args.training_checkpoint, weights_only=True)
    hf_config = json.loads(args.config.read_text())
    export_checkpoint(saved["model"], hf_config, args.tokenizer, args.out, dtype=args.dtype)


if __name__ == "__main__":
    main()
