"""Reads the header of a GGUF file: every length is checked against the file before it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Value = bool | int | float | str | list[bytes] | npt.NDArray[Any]

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}

# ggml's tensor types: number -> (weights per block, bytes per block).
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
    42: (64, 18),  # Q2_0
}

_LONGEST_HEADER = 1 << 27  # bytes; a vocabulary of 262,144 tokens with its merges takes 15 million
_MAX_DIMENSIONS = 4
_POINTER_ALIGNMENT = 32  # ggml asserts it of the mapped data
_MAX_NAME = 64  # of a tensor, with its final NUL


class BrokenGgufError(Exception):
    """What is wrong with the file, in words that follow its name."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry: shape with the row length first, offset in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def size(self) -> int | None:
        """Return the bytes of its data, None for a type that this table does not know yet."""
        if self.kind not in _BLOCKS:
            return None
        block, size = _BLOCKS[self.kind]
        if self.shape[0] % block:
            raise BrokenGgufError(f"tensor {self.name!r} has rows of {self.shape[0]}, not of whole blocks of {block}")
        return prod(self.shape) // block * size


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Gguf:
    """A file's header."""

    metadata: dict[str, Value]
    kinds: dict[str, int]  # GGUF's type of each metadata value
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> Gguf:
    """Return the header of a file whose tensors all lie within it. Raises: OSError, BrokenGgufError."""
    with path.open("rb") as file:
        if not file.read(1):
            raise BrokenGgufError("the file is empty")
        size = os.fstat(file.fileno()).st_size
        with _mapped(file.fileno(), size) as data:
            return _Reader(data, size).gguf()


def _mapped(file: int, size: int) -> mmap.mmap:
    """Map a file; where the address space is limited, as much of it as any header takes."""
    try:
        return mmap.mmap(file, size, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno != errno.ENOMEM or size <= _LONGEST_HEADER:
            raise
        return mmap.mmap(file, _LONGEST_HEADER, access=mmap.ACCESS_READ)


class _Reader:
    def __init__(self, data: mmap.mmap, size: int) -> None:
        """data: the file, or its beginning. size: bytes of the file."""
        self._data = data
        self._size = size
        self._at = 0

    def gguf(self) -> Gguf:
        n_tensors, n_values = self._start()
        metadata: dict[str, Value] = {}
        kinds: dict[str, int] = {}
        for _ in range(n_values):
            key = self._name("a key")
            if key in metadata:
                raise BrokenGgufError(f"the key {key!r} occurs twice")
            kinds[key] = self._number("<I")
            metadata[key] = self._value(key, kinds[key])
        tensors: dict[str, Tensor] = {}
        for _ in range(n_tensors):
            tensor = self._tensor()
            if tensor.name in tensors:
                raise BrokenGgufError(f"the tensor {tensor.name!r} occurs twice")
            tensors[tensor.name] = tensor
        self._check_data(tensors, metadata.get("general.alignment", 32))
        return Gguf(metadata, kinds, tensors)

    def _start(self) -> tuple[int, int]:
        if self._data[:4] != b"GGUF":
            raise BrokenGgufError(f"it begins with {self._data[:4]!r}, not with b'GGUF'")
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise BrokenGgufError(f"GGUF version {version} is not supported, only 2 and 3 (little-endian)")
        n_tensors, n_values = self._number("<Q"), self._number("<Q")
        # An entry of either kind has at least a length, a name of one byte, and a type.
        if (n_tensors + n_values) * 13 > self._left():
            raise BrokenGgufError(f"{n_values} keys and {n_tensors} tensors do not fit into the file")
        return n_tensors, n_values

    def _left(self) -> int:
        return len(self._data) - self._at

    def _take(self, size: int) -> bytes:
        if size > self._left():
            raise BrokenGgufError(f"it ends within its header: {size} bytes wanted, {self._left()} left")
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def _number(self, code: str) -> int:
        value: int = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _name(self, what: str) -> str:
        name = self._take(self._number("<Q"))
        if not name or b"\0" in name:
            raise BrokenGgufError(f"{what} has the name {name[:40]!r}")
        return name.decode("utf-8", "backslashreplace")

    def _value(self, key: str, kind: int) -> Value:
        if kind == _STRING:
            return self._take(self._number("<Q")).decode("utf-8", "backslashreplace")
        if kind == _ARRAY:
            return self._array(key, self._number("<I"), self._number("<Q"))
        dtype = self._scalar(key, kind)
        value: bool | int | float = np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()
        return value

    def _array(self, key: str, kind: int, count: int) -> Value:
        if kind == _STRING:
            return self._strings(count)
        dtype = self._scalar(key, kind)
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _scalar(self, key: str, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise BrokenGgufError(f"the key {key!r} has the unknown type {kind}")
        return _SCALARS[kind]

    def _strings(self, count: int) -> list[bytes]:
        """Read an array of strings; a loop over plain locals, for vocabularies have hundreds of thousands."""
        data, at, end = self._data, self._at, len(self._data)
        length_at = struct.Struct("<Q").unpack_from
        strings = []
        if count > self._left() // 8:
            raise BrokenGgufError(f"an array of {count} strings does not fit into the file")
        for _ in range(count):
            if at + 8 > end:
                break
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > end:
                break
            strings.append(data[start:at])
        if len(strings) < count:
            raise BrokenGgufError(f"it ends within an array of {count} strings")
        self._at = at
        return strings

    def _tensor(self) -> Tensor:
        name = self._name("a tensor")
        if len(name.encode()) >= _MAX_NAME:
            raise BrokenGgufError(f"a tensor's name is longer than {_MAX_NAME - 1} bytes: {name[:80]!r}")
        n_dimensions = self._number("<I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise BrokenGgufError(f"tensor {name!r} has {n_dimensions} dimensions")
        shape = struct.unpack(f"<{n_dimensions}q", self._take(8 * n_dimensions))
        if min(shape) < 1 or prod(shape) >= 1 << 63:
            raise BrokenGgufError(f"tensor {name!r} has the shape {shape}")
        return Tensor(name, shape, self._number("<I"), self._number("<Q"))

    def _check_data(self, tensors: dict[str, Tensor], alignment: Value) -> None:
        """Tensors follow one another, each aligned, and end within the file."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise BrokenGgufError(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self._at // alignment) * alignment
        if tensors and start % _POINTER_ALIGNMENT:
            raise BrokenGgufError(f"its data begins at {start}, not at a multiple of {_POINTER_ALIGNMENT}")
        expected: int | None = 0
        for tensor in tensors.values():
            size = tensor.size()
            if tensor.offset % alignment or expected not in (None, tensor.offset):
                raise BrokenGgufError(f"tensor {tensor.name!r} lies at {tensor.offset}, not at {expected}")
            if start + tensor.offset + (size or 0) > self._size:
                raise BrokenGgufError(f"it is cut off: {self._size} bytes end within tensor {tensor.name!r}")
            expected = None if size is None else -(-(tensor.offset + size) // alignment) * alignment
