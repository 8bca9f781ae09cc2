"""What is not a config that the trainer takes, or not a checkpoint of its config. Needs NumPy only."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.checkpoint import write_checkpoint
from training.config import from_hf
from training.random_checkpoint import random_entries

HF_CONFIG = {
    "model_type": "gated_deltanet", "vocab_size": 31, "hidden_size": 24, "num_hidden_layers": 2, "num_heads": 2,
    "num_v_heads": 4, "head_dim": 8, "expand_v": 1.5, "intermediate_size": 40, "tie_word_embeddings": False,
}  # fmt: skip


def test_tensors_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    entries = random_entries(HF_CONFIG, 0, "F32")
    with pytest.raises(ValueError, match="lm_head"):
        write_checkpoint(tmp_path, {**HF_CONFIG, "tie_word_embeddings": True}, entries)


@pytest.mark.parametrize(("key", "value"), [("model_type", "kda"), ("attn", {"layers": [0]}), ("hidden_act", "powlu")])
def test_configs_we_cannot_train_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        from_hf({**HF_CONFIG, key: value})
