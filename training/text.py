"""Text files and tokenizers: reading, encoding a whole corpus, caching the ids."""

from __future__ import annotations

import lzma
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import sentencepiece

_PIECE_CHARS = 1 << 20  # texts are encoded in slices of about this size, cut at paragraph breaks


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, unpacking it when the name ends in .xz. Newlines are kept as they are."""
    data = path.read_bytes()
    return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Loads a tokenizer.model."""
    return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())


def _slices(text: str) -> list[str]:
    """Cuts `text` after newlines into slices of about a million characters; joined they are `text` again."""
    cuts, start = [], 0
    while start < len(text):
        newline = text.find("\n\n", start + _PIECE_CHARS)
        stop = len(text) if newline < 0 else newline + 2
        while stop < len(text) and text[stop] == "\n":
            stop += 1
        cuts.append(text[start:stop])
        start = stop
    return cuts


def _encode_slice(job: tuple[bytes, str]) -> np.ndarray:
    model, text = job
    return np.asarray(sentencepiece.SentencePieceProcessor(model_proto=model).encode(text), dtype=np.uint16)


def encode_text(text: str, tokenizer_path: Path, workers: int = 2) -> np.ndarray:
    """Ids of `text` as uint16. No bos or eos is added."""
    model = tokenizer_path.read_bytes()
    jobs = [(model, piece) for piece in _slices(text)]
    if len(jobs) < 4 or workers == 1:
        parts = [_encode_slice(job) for job in jobs]
    else:
        with Pool(workers) as pool:
            parts = pool.map(_encode_slice, jobs, chunksize=4)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)
