"""Configs and random checkpoints of them. Needs NumPy only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.checkpoint import read_tensors, write_checkpoint
from training.config import from_hf
from training.families import parameter_count
from training.random_checkpoint import PRESETS, random_entries

REPOSITORY = Path(__file__).parent.parent
HF_CONFIG = {
    "model_type": "gated_deltanet", "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 2,
    "num_v_heads": 4, "head_dim": 8, "expand_v": 1.5, "intermediate_size": 40, "tie_word_embeddings": False,
}  # fmt: skip


def test_tensors_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    entries = random_entries(HF_CONFIG, 0, "F32")
    with pytest.raises(ValueError, match="lm_head"):
        write_checkpoint(tmp_path, {**HF_CONFIG, "tie_word_embeddings": True}, entries)


def test_known_parameter_counts() -> None:
    for preset, millions in (("30m", 30), ("125m", 125), ("350m", 350)):
        assert abs(parameter_count(PRESETS[preset]) / 1e6 / millions - 1) < 0.1


@pytest.mark.parametrize(("key", "value"), [("model_type", "kda"), ("attn", {"layers": [0]}), ("hidden_act", "powlu")])
def test_configs_we_cannot_train_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        from_hf({**HF_CONFIG, key: value})


def test_random_checkpoint_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None\n"
        "from training.random_checkpoint import main\n"
        f"sys.argv = ['x', '--config', '{tmp_path / 'config.json'}', '--out', '{tmp_path / 'out'}']\n"
        "main()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, capture_output=True)
    again = random_entries(HF_CONFIG, 0, "BF16")
    for name, values in read_tensors(tmp_path / "out").items():
        assert values.shape == again[name].shape
        np.testing.assert_allclose(values, again[name].make(), rtol=2**-8)
