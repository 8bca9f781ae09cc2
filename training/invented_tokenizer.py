"""A SentencePiece tokenizer.model of any size, made of nothing: for checkpoints with random weights.

BPE with byte fallback and no normalisation, as make_tokenizer.py trains: unk, bos, eos, the 256 bytes, then all strings
of spaces and letters, short ones first. Any text can be encoded and comes back as it was. Needs nothing but Python.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

BYTES_UP_TO = 1024  # without a tokenizer, the server takes the ids of so small a vocabulary for bytes

_SPACE = "\u2581"
_LETTERS = _SPACE + "etaoinshrdlcumwfgypbvkjxqz"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _string(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _pieces() -> Iterator[tuple[str, int]]:
    yield from (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))
    yield from ((f"<0x{byte:02X}>", _BYTE) for byte in range(256))
    for length in itertools.count(1):
        yield from (("".join(letters), _NORMAL) for letters in itertools.product(_LETTERS, repeat=length))


def invented_tokenizer(vocab_size: int) -> bytes:
    """The bytes of a tokenizer.model with exactly `vocab_size` pieces, 260 or more: a serialised ModelProto."""
    if vocab_size < 260:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for unk, bos, eos, 256 bytes and the space")
    parts = []
    for rank, (text, kind) in enumerate(itertools.islice(_pieces(), vocab_size)):
        score = -float(rank) if kind == _NORMAL else 0.0  # the first pieces are joined first
        parts.append(_string(1, _string(1, text.encode()) + _float(2, score) + _integer(3, kind)))
    model = b"".join(parts)
    ids = _integer(40, 0) + _integer(41, 1) + _integer(42, 2) + _integer(43, -1)  # unk, bos, eos, pad
    model += _string(2, _integer(3, _BPE) + _integer(4, vocab_size) + _integer(35, True) + ids)
    # No dummy prefix, and white space as it is.
    return model + _string(3, _string(1, b"identity") + _integer(3, False) + _integer(4, False))


def tokenizer_for(vocab_size: int) -> bytes | None:
    """The tokenizer.model that a checkpoint of this vocabulary needs; None where its ids may be bytes."""
    return invented_tokenizer(vocab_size) if vocab_size > BYTES_UP_TO else None
