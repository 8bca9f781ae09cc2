"""Reads and writes safetensors files with NumPy alone.

bfloat16, which NumPy lacks, is rounded from float32 on writing (to nearest, ties to even) and widened on reading.
Layout: header length u64 | JSON header | tensor bytes, little endian, each tensor at the offsets the header gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_ALIGNMENT = 64  # of the first tensor in the file, so that a mapped file can be used in place


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 `values`, rounded to nearest even. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _encode(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return to_bfloat16_bits(values)
    return np.ascontiguousarray(values, dtype=_NUMPY[dtype])


class Entry:
    """One tensor to be written: type and shape now, values when asked, so that big files need little memory."""

    def __init__(self, dtype: str, shape: Iterable[int], make: Callable[[], np.ndarray]) -> None:
        self.dtype, self.shape, self.make = dtype, tuple(shape), make
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(_NUMPY[dtype]).itemsize


def entry(values: np.ndarray, dtype: str) -> Entry:
    """Wraps values that are already there."""
    return Entry(dtype, values.shape, lambda: values)


def write(path: Path, tensors: dict[str, Entry], metadata: dict[str, str] | None = None) -> None:
    """Writes one file, tensors in the order given. `metadata` is what the header says about the file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, item in tensors.items():
        header[name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [offset, offset + item.bytes]}
        offset += item.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, item in tensors.items():
            data = _encode(item.make(), item.dtype)
            if data.shape != item.shape:
                raise ValueError(f"{name}: values have shape {data.shape}, expected {item.shape}")
            data.tofile(file)


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of one file; bfloat16 comes back as float32."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, item in header.items():
        start, stop = (8 + size + offset for offset in item["data_offsets"])
        values = np.frombuffer(raw[start:stop], dtype=_NUMPY[item["dtype"]])
        if item["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        tensors[name] = values.reshape(item["shape"])
    return tensors
