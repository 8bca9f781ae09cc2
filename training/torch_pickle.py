"""Reads files of torch.save without torch, and without running anything that is in them.

A pickle is a program: it names functions and classes and calls them. Here the names that stand for tensors and plain
containers are answered by functions of this file, the classes of modules by empty placeholders that only keep what is
put into them, and any other name is refused. Both forms are read: the zip archive (torch 1.6 and later), and what
torch wrote before.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
# Classes of these modules become placeholders: torch's building blocks, and the files of the toolkit.
_PLACEHOLDER_PACKAGES = ("torch.nn.modules", "utils")
_PLACEHOLDER_MODULES = ("model_main", "mem_transformer", "data_utils", "vocabulary")


class UnsafePickleError(ValueError):
    """The file names something that a saved model has no use for."""


@dataclass(frozen=True)
class _StorageType:
    dtype: str


class _Sealed:
    """What a pickle may make through the functions here, but not change afterwards."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError(f"the file sets the state of a {type(self).__name__.strip('_').lower()}")


@dataclass
class _Storage(_Sealed):
    dtype: str
    count: int
    data: bytes = b""  # legacy files have them at their end

    def values(self) -> np.ndarray:
        if self.dtype == "bfloat16":
            return (np.frombuffer(self.data, "<u2", self.count).astype("<u4") << 16).view("<f4")
        return np.frombuffer(self.data, self.dtype, self.count)


@dataclass
class Tensor(_Sealed):
    """A tensor of the file; `numpy` reads its values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """The values, bfloat16 as float32. Raises ValueError if they are not all in the file."""
        if len(self.shape) != len(self.strides) or min((self.offset, *self.shape, *self.strides)) < 0:
            raise ValueError("the file is damaged: a tensor has an impossible shape")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.storage.values().dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if last >= self.storage.count:
            raise ValueError("the file is damaged: a tensor reaches beyond its storage")
        values = self.storage.values()[self.offset :]
        strides = [stride * values.itemsize for stride in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, self.shape, strides))


class Placeholder:
    """An object of a class that is not loaded: the attributes that were saved with it."""

    def __init__(self, *arguments: Any) -> None:
        self.__dict__["constructor_arguments"] = arguments

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError(f"the file is damaged: the state of a {type(self).__name__} is no dictionary")
        self.__dict__.update({str(key): value for key, value in state.items()})

    @classmethod
    def named(cls, module: str, name: str) -> type[Placeholder]:
        """A class of its own for each name, so that messages and readers can tell them apart."""
        return type(name, (cls,), {"__module__": module})


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("the file is damaged: a tensor has no storage")
    return Tensor(storage, int(offset), tuple(int(n) for n in shape), tuple(int(n) for n in strides))


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _device(*_: Any) -> None:
    return None


class _Function(_Sealed):
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"the file sets {name} of a function")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_parameter),
    ("torch", "Size"): _Function(tuple),
    ("torch", "device"): _Function(_device),
    ("torch.serialization", "_get_layout"): _Function(_device),
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("builtins", "set"): _Function(set),
    ("__builtin__", "set"): _Function(set),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


def _is_placeholder(module: str) -> bool:
    packages = (f"{package}." for package in _PLACEHOLDER_PACKAGES)
    return module in _PLACEHOLDER_MODULES or module.startswith(tuple(packages))


@dataclass
class _Found:
    storages: dict[str, _Storage] = field(default_factory=dict)
    classes: dict[tuple[str, str], type[Placeholder]] = field(default_factory=dict)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, found: _Found, storage_bytes: Callable[[str], bytes] | None) -> None:
        super().__init__(file, encoding="utf-8")
        self._found, self._storage_bytes = found, storage_bytes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if _is_placeholder(module) and name.isidentifier():
            key = (module, name)
            if key not in self._found.classes:
                self._found.classes[key] = Placeholder.named(module, name)
            return self._found.classes[key]
        raise UnsafePickleError(
            f"the file wants {module}.{name}, which no model of the toolkit needs; nothing was run. "
            "If the file is known to be good, save its state_dict instead"
        )

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 2 and pid[0] == "module":
            return pid[1]  # a class, together with its source code, which is not looked at
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)):
            raise ValueError(f"the file is damaged or of another kind: it refers to {str(pid)[:80]}")
        kind, key, count = pid[1], str(pid[2]), int(pid[4])
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("the file holds views of storages, as torch before 0.4 wrote; save it with a later one")
        if key not in self._found.storages:
            data = self._storage_bytes(key) if self._storage_bytes else b""
            self._found.storages[key] = _Storage(kind.dtype, count, data)
        return self._found.storages[key]


def load(path: Path) -> Any:
    """What was saved: dictionaries, lists and numbers as they are, tensors as Tensor, modules as Placeholder.

    Raises UnsafePickleError for anything else in the file, ValueError for a file that is damaged or no torch file.
    """
    damage = (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile)
    try:
        return _load_zip(path) if zipfile.is_zipfile(path) else _load_legacy(path)
    except UnsafePickleError as why:
        raise UnsafePickleError(f"{path}: {why}") from why
    except damage as why:
        raise ValueError(f"{path}: no file of torch.save, or a damaged one: {why}") from why


def _load_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: a zip archive, but not of torch.save: it has {len(pickles)} files data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError(f"{path}: was saved on a big-endian machine; save it again on a little-endian one")
        program = io.BytesIO(archive.read(pickles[0]))
        return _Unpickler(program, _Found(), lambda key: archive.read(f"{folder}data/{key}")).load()


def _load_legacy(path: Path) -> Any:
    found = _Found()
    with path.open("rb") as file:
        if _Unpickler(file, found, None).load() != _LEGACY_MAGIC:
            raise ValueError(f"{path}: no file of torch.save")
        _Unpickler(file, found, None).load()  # version of the form
        system = _Unpickler(file, found, None).load()
        if not system.get("little_endian", True):
            raise ValueError(f"{path}: was saved on a big-endian machine; save it again on a little-endian one")
        result = _Unpickler(file, found, None).load()
        for key in _Unpickler(file, found, None).load():
            storage = found.storages[str(key)]
            count = int.from_bytes(file.read(8), "little")
            size = 2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize
            storage.data = file.read(count * size)
            if count != storage.count or len(storage.data) != count * size:
                raise ValueError(f"{path}: is cut short: the values of storage {key} are not all there")
    return result
