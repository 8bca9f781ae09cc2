"""The trainer end to end on a tiny text, and the laws its data order must keep."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training import evaluate, make_tokenizer, train
from training.export import load_model
from training.text import encode_text, load_tokenizer

TEXT = "".join(f"On day {i} the fox said: “no”.\n\nThen  it slept\u00e9.\n\n\n" for i in range(400))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(make_tokenizer.train_tokenizer([TEXT], 320, 100_000))
    return path


@pytest.mark.parametrize("text", [TEXT, " lead", "trail \n", "\n", "", "漢字\ttab\r\n\u200d🦊", "a\n\n\n\nb"])
def test_tokenizer_gives_back_every_byte(tokenizer: Path, text: str) -> None:
    processor = load_tokenizer(tokenizer)
    assert processor.decode(encode_text(text, tokenizer).tolist()) == text


def test_tokenizer_special_ids(tokenizer: Path) -> None:
    processor = load_tokenizer(tokenizer)
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)


def test_streams_are_contiguous_within_a_block_and_never_overlap() -> None:
    streams = train.Streams(np.arange(1 + 4 * 8 * 12, dtype=np.uint16), batch=3, segment=4, segments=8, seed=0)
    seen: list[int] = []
    previous = streams.tokens(0)
    for step in range(1, 17):
        current = streams.tokens(step)
        for stream in range(3):
            if (step + stream * 8 // 3) % 8:
                assert current[stream, 0] == previous[stream, -1]
        seen += current[:, 0].tolist()
        previous = current
    assert len(set(seen)) == len(seen)


def test_learning_rate_rises_stays_and_ends_at_zero() -> None:
    factors = [train.learning_rate_factor(p, step, 10, 0.5) for p, step in ((0, 0), (0.3, 50), (0.75, 80), (1, 99))]
    assert factors == pytest.approx([0.1, 1.0, 0.5, 0.0])


def run_trainer(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    train.main()


def test_training_learns_resumes_and_exports(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, config = tmp_path / "text.txt", tmp_path / "config.json"
    text.write_text(TEXT)
    hf_config = {
        "model_type": "gated_deltanet", "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2,
        "head_dim": 16, "expand_v": 1.0, "intermediate_size": 32, "tie_word_embeddings": True,
    }  # fmt: skip
    config.write_text(json.dumps(hf_config))
    common = (
        text, "--config", config, "--tokenizer", tokenizer, "--work", tmp_path / "work", "--valid", text, "--minutes",
        5, "--batch", 4, "--segment", 32, "--block-segments", 4, "--chunk", 16, "--warmup-steps", 5, "--threads", 1,
        "--matmul-dtype", "float32", "--export", tmp_path / "out",
    )  # fmt: skip
    run_trainer(monkeypatch, *common, "--max-steps", 30)
    run_trainer(monkeypatch, *common, "--max-steps", 60, "--resume")
    assert "finished: 60 steps" in (tmp_path / "work" / "progress.log").read_text()
    saved = torch.load(tmp_path / "work" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 60
    ids = encode_text(TEXT, tokenizer)
    nats = evaluate.total_nats(load_model(tmp_path / "out", chunk=16), ids) / (len(ids) - 1)
    assert nats < 2.0  # from log(320) = 5.8
    assert evaluate.total_nats(load_model(tmp_path / "out", chunk=0), ids[:300], segment=77) == pytest.approx(
        evaluate.total_nats(load_model(tmp_path / "out", chunk=16), ids[:300], segment=64), rel=1e-5
    )
