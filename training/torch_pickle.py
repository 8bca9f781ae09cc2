"""Reads what `torch.save` wrote, a tensor or an object, without PyTorch and without running anything from the file.

A pickle names functions and classes to call. Here the few that rebuild tensors and plain containers are known, classes
of the expected modules become `Record`s, which only hold attributes, and every other name is refused. Both of
PyTorch's formats are read: the zip archive (since 1.6) and the older sequence of pickles.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class RefusedPickleError(ValueError):
    """The file asks for something that is not read here, or is no such file."""


class Record:
    """An object of a class that is not looked at: its attributes, and the name of its class."""

    class_name = ""

    def __new__(cls, *_args: Any) -> Record:
        """Whatever the class wanted to be made from is not needed."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update(part)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; a child, parameter or buffer of an nn.Module is one, too."""
        for table in ("_modules", "_parameters", "_buffers"):
            found = self.__dict__.get(table) or {}
            if name in found:
                return found[name]
        return self.__dict__.get(name, default)

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """What `state_dict` of an nn.Module gives: parameters and buffers by path."""
        found = {}
        for table in ("_parameters", "_buffers"):
            for name, value in (self.__dict__.get(table) or {}).items():
                if isinstance(value, np.ndarray):
                    found[prefix + name] = value
        for name, child in (self.__dict__.get("_modules") or {}).items():
            if isinstance(child, Record):
                found.update(child.tensors(f"{prefix}{name}."))
        return found


class _Storage:
    """The bytes of a storage, perhaps not read yet."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.values = dtype, np.zeros(0, dtype)


def _rebuild_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_rest: Any) -> Any:
    if not isinstance(storage, _Storage):
        raise RefusedPickleError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


class _Tensor:
    """A view of a storage, made when all storages have been read."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __setstate__(self, _state: Any) -> None:
        """A parameter's flags do not matter."""

    def array(self) -> np.ndarray:
        values = self.storage.values
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if 0 in self.size:
            return np.zeros(self.size, values.dtype)
        if self.offset < 0 or min(self.stride, default=0) < 0 or last >= values.size:
            raise RefusedPickleError(
                f"a tensor of shape {self.size} reaches beyond its storage of {values.size} values"
            )
        item = values.dtype.itemsize
        strides = [s * item for s in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.size, strides).copy()


def _nothing(*_args: Any) -> None:
    return None


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_rest: data,
    ("torch", "device"): _nothing,
    ("torch", "Size"): tuple,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, modules: Sequence[str], load: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self._modules, self._load = tuple(modules), load

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if any(module == allowed or module.startswith(allowed + ".") for allowed in self._modules):
            return type(name, (Record,), {"class_name": f"{module}.{name}"})
        raise RefusedPickleError(f"the file asks for {module}.{name}, which is not needed for a model: it is not read")

    def persistent_load(self, pid: Any) -> Any:
        return self._load(pid)


def _resolved(value: Any, seen: dict[int, Any]) -> Any:
    """`value` with tensors as arrays, in place where it is a container."""
    if isinstance(value, _Tensor):
        return value.array()
    if id(value) in seen:
        return value
    if isinstance(value, dict):
        seen[id(value)] = value
        for key in list(value):
            value[key] = _resolved(value[key], seen)
    elif isinstance(value, list):
        seen[id(value)] = value
        value[:] = [_resolved(item, seen) for item in value]
    elif isinstance(value, tuple):
        return tuple(_resolved(item, seen) for item in value)
    elif isinstance(value, Record):
        seen[id(value)] = value
        _resolved(value.__dict__, seen)
    return value


def _read_zip(file: BinaryIO, modules: Sequence[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise RefusedPickleError("no data.pkl in the archive: not written by torch.save")
        folder = names[0].removesuffix("data.pkl")
        storages: dict[str, _Storage] = {}

        def load(pid: Any) -> _Storage:
            kind, dtype, key = pid[0], pid[1], str(pid[2])
            if kind != "storage" or not isinstance(dtype, str):
                raise RefusedPickleError(f"a persistent object of kind {kind!r}")
            if key not in storages:
                storages[key] = _Storage(dtype)
                storages[key].values = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(names[0])), modules, load).load()


def _read_legacy(file: BinaryIO, modules: Sequence[str]) -> Any:
    storages: dict[str, _Storage] = {}

    def load(pid: Any) -> Any:
        if pid[0] == "module":  # with the source text of its class
            return pid[1]
        if pid[0] != "storage" or not isinstance(pid[1], str) or pid[5] is not None:
            raise RefusedPickleError(f"a persistent object of kind {pid[0]!r}")
        return storages.setdefault(str(pid[2]), _Storage(pid[1]))

    def next_pickle() -> Any:
        return _Unpickler(file, modules, load).load()

    if next_pickle() != _LEGACY_MAGIC:
        raise RefusedPickleError("not written by torch.save")
    next_pickle()  # protocol
    next_pickle()  # sizes of integers
    value = next_pickle()
    for key in next_pickle():
        storage = storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        data = file.read(count * np.dtype(storage.dtype).itemsize)
        storage.values = np.frombuffer(data, storage.dtype)
        if storage.values.size != count:
            raise RefusedPickleError("the file is truncated")
    return value


def load(path: Path, modules: Sequence[str]) -> Any:
    """What the file holds: arrays for tensors, `Record`s for objects of `modules` and of torch.nn.

    Raises RefusedPickleError, naming what it is, for everything else.
    """
    allowed = [*modules, "torch.nn"]
    try:
        with path.open("rb") as file:
            value = _read_zip(file, allowed) if zipfile.is_zipfile(path) else _read_legacy(file, allowed)
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        UnicodeDecodeError,
    ) as error:
        raise RefusedPickleError(f"{path}: damaged, or not written by torch.save: {error}") from error
    except RefusedPickleError as error:
        raise RefusedPickleError(f"{path}: {error}") from error
    return _resolved(value, {})
