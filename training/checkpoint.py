"""Checkpoint folders in Hugging Face form: config.json, safetensors (a file, or shards with an index), tokenizer.model.

Needs NumPy only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from training import weights_file
from training.config import ModelConfig, from_hf
from training.families import tensor_shapes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` the way Hugging Face files look."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(
    folder: Path,
    hf_config: dict[str, Any],
    tensors: dict[str, weights_file.Entry],
    *,
    tokenizer: bytes | None = None,
    shards: int = 1,
) -> None:
    """Writes the folder; `tokenizer` is the contents of a tokenizer.model.

    Raises ValueError unless `tensors` are exactly those the config asks for.
    """
    shapes = tensor_shapes(hf_config)
    found = {name: item.shape for name, item in tensors.items()}
    if found != shapes:
        differing = [name for name in {**shapes, **found} if shapes.get(name) != found.get(name)]
        raise ValueError(f"tensors do not fit the config: {differing[:5]}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", hf_config)
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": hf_config.get("bos_token_id", 1), "eos_token_id": hf_config.get("eos_token_id", 2)},
    )
    if tokenizer is not None:
        (folder / "tokenizer.model").write_bytes(tokenizer)
    if shards == 1:
        weights_file.write(folder / SINGLE, {name: tensors[name] for name in shapes})
        return
    weight_map = {}
    for shard, names in enumerate(np.array_split(np.array(list(shapes)), shards), start=1):
        file = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        weights_file.write(folder / file, {str(name): tensors[str(name)] for name in names})
        weight_map.update({str(name): file for name in names})
    total = sum(item.bytes for item in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def read_config(folder: Path) -> ModelConfig:
    """The model a checkpoint folder describes."""
    return from_hf(json.loads((folder / "config.json").read_text()))


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All weights of a folder, one file or shards; bfloat16 comes back as float32."""
    index = folder / INDEX
    if not index.exists():
        return weights_file.read(folder / SINGLE)
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        tensors.update(weights_file.read(folder / file))
    return tensors
