"""What the importer does without a file of torch.save: vocabularies from texts, projections that it draws.

Needs NumPy only.
"""

from __future__ import annotations

import numpy as np
import pytest

from training.import_lmtool import ImportRefusedError, draw_projection, read_vocabulary


def test_drawn_projections_are_orthogonal_in_blocks() -> None:
    rows = draw_projection(np.random.default_rng(0), 7, 3)
    assert rows.shape == (7, 3)
    block = rows[3:6] / np.linalg.norm(rows[3:6], axis=1, keepdims=True)
    np.testing.assert_allclose(block @ block.T, np.eye(3), atol=1e-6)
    assert len({round(float(length), 3) for length in np.linalg.norm(rows, axis=1)}) == 7


def test_vocabulary_counted_from_wikitext(tmp_path) -> None:
    train = tmp_path / "train.txt"
    # Ties by first occurrence; no-break and ideographic spaces cut words; an empty line adds none; \r\n ends a line.
    train.write_bytes(" b a b\u00a0c\u3000c \r\n\n a <unk> \n".encode())
    assert read_vocabulary([train], "auto", 5).symbols == ["<eos>", "b", "a", "c", "<unk>"]


def test_vocabulary_counted_from_bytes(tmp_path) -> None:
    for name, text in (("train", "101 32 101"), ("valid", "\n32 32\n"), ("test", "65 101")):
        (tmp_path / f"{name}.txt").write_text(text)
    paths = [tmp_path / f"{name}.txt" for name in ("train", "valid", "test")]
    vocabulary = read_vocabulary(paths, "auto", 3)
    assert vocabulary.symbols == ["101", "32", "65"]
    assert vocabulary.rules() == {"kind": "character", "unk": None, "eos": None, "lowercase": False}


def test_vocabulary_from_a_list(tmp_path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("b\na\nc\n")
    assert read_vocabulary([path], "auto", 3).symbols == ["b", "a", "c"]
    path.write_text("101\n32\n")
    assert read_vocabulary([path], "auto", 2).kind == "character"
    path.write_text("a\nb\na\n")
    with pytest.raises(ImportRefusedError, match="twice"):
        read_vocabulary([path], "list", 3)
    path.write_text("300\na\n")
    with pytest.raises(ImportRefusedError, match="'300' is no decimal value of a byte"):
        read_vocabulary([path], "enwik8", 2)
