"""Checkpoint files: what is written comes back, and other readers agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from training import weights_file
from training.config import from_hf
from training.export import export_checkpoint, load_model
from training.families import tensor_shapes
from training.make_goldens import CASES, expected_log_probabilities
from training.model import LanguageModel

REPOSITORY = Path(__file__).parent.parent
HF_CONFIG = {
    "model_type": "gated_deltanet", "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 2,
    "num_v_heads": 4, "head_dim": 8, "expand_v": 1.5, "intermediate_size": 40, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize("shards", [1, 3])
def test_export_then_load_gives_the_same_model(tmp_path: Path, shards: int) -> None:
    model = LanguageModel(from_hf(HF_CONFIG), chunk=16)
    model.initialise(0)
    export_checkpoint(model.state_dict(), HF_CONFIG, None, tmp_path, dtype="F32", shards=shards)
    loaded = load_model(tmp_path, chunk=16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded(tokens, loaded.initial_state(1))[0], model(tokens, model.initial_state(1))[0])


def test_bfloat16_rounding_and_layout_are_those_of_the_safetensors_library(tmp_path: Path) -> None:
    values = np.concatenate([np.random.default_rng(0).standard_normal(999) * 1e3, [0.0, -0.0, np.inf, 1e-40]])
    values = values.astype(np.float32)
    file = tmp_path / "x.safetensors"
    weights_file.write(
        file,
        {
            "bf16": weights_file.entry(values, "BF16"),
            "f16": weights_file.entry(values[:4], "F16"),
            "i32": weights_file.entry(np.arange(6, dtype=np.int32).reshape(2, 3), "I32"),
        },
    )
    theirs = safetensors.torch.load_file(file)
    assert torch.equal(theirs["bf16"], torch.from_numpy(values).bfloat16())
    assert torch.equal(theirs["f16"], torch.from_numpy(values[:4]).half())
    assert theirs["i32"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.array_equal(weights_file.read(file)["bf16"], theirs["bf16"].float().numpy())


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_parameters_of_the_model_are_the_tensors_of_its_config(case) -> None:
    model = LanguageModel(from_hf(case.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == tensor_shapes(case.config)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_committed_goldens_are_what_the_model_gives(case) -> None:
    folder = REPOSITORY / "tests" / "golden" / case.name
    golden = weights_file.read(folder / "golden.safetensors")
    head = 65
    log_probs = expected_log_probabilities(folder, golden["tokens"][:head])
    after = log_probs[np.arange(head - 1), golden["tokens"][1:head]]
    np.testing.assert_allclose(after, golden["next_logprob"][: head - 1], rtol=0, atol=2e-6)
