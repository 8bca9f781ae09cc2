"""Random checkpoints: of every family, with activations of a sensible size, and with a tokenizer. Needs NumPy only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.checkpoint import read_tensors, write_checkpoint
from training.families import DEFAULTS, parameter_count
from training.fla_reference import Model
from training.invented_tokenizer import invented_tokenizer, tokenizer_for
from training.random_checkpoint import PRESETS, random_entries

REPOSITORY = Path(__file__).resolve().parent.parent
HF_CONFIG = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 3, "num_heads": 4, "intermediate_size": 96}
HEAD_DIM = {"head_dim": 12, "expand_v": 1.5}
CONFIGS = {
    "delta_net": {},
    "gated_deltanet": HEAD_DIM,
    "gated_deltaproduct": {**HEAD_DIM, "num_householder": 2, "use_forget_gate": True},
    "kda": HEAD_DIM,
    "kda_safe_gate": {**HEAD_DIM, "safe_gate": True, "lower_bound": -5.0},
    "gla": {},
    "gla_relu_grouped": {"feature_map": "relu", "num_kv_heads": 2},
    "linear_attn": {},
    "linear_attn_t2r": {"feature_map": "t2r"},
    "linear_attn_hedgehog_tied": {"feature_map": "hedgehog", "tie_feature_map_qk": True, "norm_feature_map": True},
    "linear_attn_dpfp": {"feature_map": "dpfp"},
}


def _config(name: str) -> dict[str, object]:
    family = next(family for family in DEFAULTS if name.startswith(family))
    return {"model_type": family, **HF_CONFIG, **CONFIGS[name]}


@pytest.mark.parametrize("name", CONFIGS)
def test_activations_keep_their_size_and_the_past_matters(tmp_path: Path, name: str) -> None:
    config = _config(name)
    write_checkpoint(tmp_path, config, random_entries(config, 0, "F32"))
    tokens = np.random.default_rng(0).integers(0, 64, 96)
    log_probs = Model(tmp_path).run(tokens)
    assert np.isfinite(log_probs).all()
    assert 1 < log_probs.std(-1).mean() < 6
    other = np.concatenate([(tokens[:-8] + 1) % 64, tokens[-8:]])  # another past, but for the last 8 tokens
    assert np.abs(Model(tmp_path).run(other)[-1] - log_probs[-1]).max() > 0.3


def test_a_tied_feature_map_is_one() -> None:
    entries = random_entries(_config("linear_attn_hedgehog_tied"), 0, "F32")
    for kind in ("weight", "bias"):
        q, k = (entries[f"model.layers.1.attn.feature_map_{c}.layer.{kind}"].make() for c in "qk")
        np.testing.assert_array_equal(q, k)


def test_presets_have_the_sizes_that_they_are_named_after() -> None:
    for preset, config in PRESETS.items():
        if preset.endswith("layers"):
            continue
        size = preset.split("-")[0]
        wanted = float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]
        assert abs(parameter_count(config) / wanted - 1) < 0.1, preset
    assert {config["model_type"] for preset, config in PRESETS.items() if preset.startswith("125m")} == set(DEFAULTS)


@pytest.mark.parametrize("vocab_size", [64, 1024, 1025])
def test_the_program_writes_what_a_server_needs(tmp_path: Path, vocab_size: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config("kda")))
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'safetensors', 'sentencepiece')))\n"
        "from training.random_checkpoint import main\n"
        f"sys.argv = ['x', '--config', {str(tmp_path / 'config.json')!r}, '--out', {str(tmp_path / 'out')!r},"
        f" '--vocab-size', '{vocab_size}']\n"
        "main()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, capture_output=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**_config("kda"), "vocab_size": vocab_size}
    again = random_entries(config, 0, "BF16")
    for name, values in read_tensors(tmp_path / "out").items():
        assert values.shape == again[name].shape
        np.testing.assert_allclose(values, again[name].make(), rtol=2**-8)
    tokenizer = tmp_path / "out" / "tokenizer.model"
    assert (tokenizer.read_bytes() if tokenizer.exists() else None) == tokenizer_for(vocab_size)
    assert tokenizer.exists() == (vocab_size > 1024)


def test_a_tokenizer_needs_room_for_bytes_and_the_space() -> None:
    assert invented_tokenizer(260)
    with pytest.raises(ValueError, match="259"):
        invented_tokenizer(259)


@pytest.mark.parametrize("vocab_size", [260, 300, 1025, 32000, 50304])
def test_sentencepiece_reads_the_tokenizer_and_any_text_comes_back(vocab_size: int) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=invented_tokenizer(vocab_size))
    assert tokenizer.vocab_size() == vocab_size
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, -1)
    for text in ("It was a dark and stormy night.", "  two\n\n\tlines  ", "Čaj 茶 ☕\0\r", "<s>aa</s><0x41>", ""):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert 0 not in ids
    assert len({tokenizer.id_to_piece(id) for id in range(vocab_size)}) == vocab_size
    assert all(tokenizer.decode([id]) for id in range(3 + 256, vocab_size))
    if vocab_size >= 32000:
        assert len(tokenizer.encode("the same thing with more words than bytes")) < 20
