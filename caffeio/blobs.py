"""One blob of a caffemodel: its bytes to an array, and back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from caffeio import wire

__all__ = ["FileBlob", "decode_blob", "encode_blob"]

#: kMaxBlobAxes of Caffe.
_MOST_AXES = 32
_DATA, _DIFF, _SHAPE, _DOUBLE, _DOUBLE_DIFF = 5, 6, 7, 8, 9
_INT8, _INT32, _UINT64, _RAW_DIFF = 10, 11, 12, 13
#: NVCaffe's `Type` for raw_data, see its caffe.proto.
_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}


@dataclass(frozen=True)
class FileBlob:
    """A blob as a file holds it.

    Attributes
    ----------
    array : ndarray
        float32, or int8, int32 or uint64 in a deploy model. C-contiguous, its own memory.
    legacy : bool
        The shape was written as num, channels, height, width.
    unknown : tuple of int
        Numbers of the fields that the schema does not know.
    """

    array: np.ndarray
    legacy: bool = False
    unknown: tuple[int, ...] = ()


def _numbers(data: memoryview, fields: list[wire.Field], dtype: str) -> np.ndarray:
    """Return the numbers of a repeated field, packed or not."""
    parts = []
    for field in fields:
        if (field.end - field.start) % np.dtype(dtype).itemsize:
            raise wire.WireError("the numbers end within one", field.start)
        parts.append(np.frombuffer(data[field.start : field.end], dtype))
    return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)


def _varints(data: memoryview, fields: list[wire.Field]) -> np.ndarray:
    parts = [
        wire.unpack_varints(data[field.start : field.end])
        if field.wire == wire.LENGTH else np.array([field.value], np.uint64)
        for field in fields
    ]  # fmt: skip
    return np.concatenate(parts)


def _shape(data: memoryview, by_number: dict[int, list[wire.Field]]) -> tuple[int, ...] | None:
    if _SHAPE in by_number:
        dims: list[int] = []
        for outer in by_number[_SHAPE]:
            inner = [f for f in wire.fields(data, outer.start, outer.end) if f.number == 1]
            if inner:
                dims += _varints(data, inner).view(np.int64).tolist()
        return tuple(dims)
    if any(n in by_number for n in (1, 2, 3, 4)):
        return tuple(by_number[n][-1].value if n in by_number else 0 for n in (1, 2, 3, 4))
    return None


def _values(data: memoryview, by_number: dict[int, list[wire.Field]]) -> np.ndarray:
    raw_type = [f.value for f in by_number.get(_INT8, []) if f.wire == wire.VARINT]
    if raw_type:
        if raw_type[-1] not in _RAW_TYPES:
            raise wire.WireError(
                f"raw data of type {raw_type[-1]} is not known", by_number[_INT8][-1].start
            )
        values = _numbers(data, by_number.get(_UINT64, []) or _empty(), _RAW_TYPES[raw_type[-1]])
    elif _DOUBLE in by_number:  # before data, as Caffe's Blob::FromProto
        values = _numbers(data, by_number[_DOUBLE], "<f8")
    elif _DATA in by_number:
        values = _numbers(data, by_number[_DATA], "<f4")
    elif _INT8 in by_number:
        return _numbers(data, by_number[_INT8], "i1")
    elif _INT32 in by_number:
        return _varints(data, by_number[_INT32]).view(np.int64).astype(np.int32)
    elif _UINT64 in by_number:
        return _varints(data, by_number[_UINT64])
    else:
        values = np.zeros(0, np.float32)
    if values.dtype == np.float32:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _empty() -> list[wire.Field]:
    return [wire.Field(_UINT64, wire.LENGTH, 0, 0, 0)]


def decode_blob(data: memoryview, start: int, end: int) -> FileBlob:
    """Read the BlobProto in ``data[start:end]``.

    Read are float, double (narrowed to float32), NVCaffe's raw data (half, float or double,
    to float32) and the int8, int32 and uint64 data of deploy models.

    Raises
    ------
    WireError
        If the bytes are no BlobProto, or the count of values is not that of the shape.
    """
    by_number: dict[int, list[wire.Field]] = {}
    for field in wire.fields(data, start, end):
        by_number.setdefault(field.number, []).append(field)
    array = _values(data, by_number)
    shape = _shape(data, by_number)
    if shape is None:
        shape = (array.size,)
    if len(shape) > _MOST_AXES:
        raise wire.WireError(f"a shape has {len(shape)} axes; Caffe allows {_MOST_AXES}", start)
    if min(shape, default=0) < 0 or math.prod(shape) != array.size:
        raise wire.WireError(f"the shape {shape} does not fit the {array.size} values", start)
    raw = any(f.wire == wire.VARINT for f in by_number.get(_INT8, []))
    known_numbers = set(range(1, _UINT64 + 1)) | ({_RAW_DIFF} if raw else set())
    return FileBlob(
        array.reshape(shape),
        legacy=_SHAPE not in by_number and bool(by_number.keys() & {1, 2, 3, 4}),
        unknown=tuple(sorted(by_number.keys() - known_numbers)),
    )


def encode_blob(array: np.ndarray) -> Iterator[wire.Piece]:
    """Yield the pieces of a BlobProto: the shape, and the values with every bit kept.

    Floats and int8 are views of the array, so that large weights are not held twice.

    Parameters
    ----------
    array : ndarray
        float32, or int8, int32 or uint64 for a deploy model.

    Raises
    ------
    TypeError
        For any other dtype.
    """
    payload: wire.Piece
    yield wire.put(_SHAPE, wire.put(1, wire.pack_varints(array.shape)) if array.ndim else b"")
    if array.dtype == np.float32:
        number, payload = _DATA, _bytes(array.astype("<f4", copy=False))
    elif array.dtype == np.int8:
        number, payload = _INT8, _bytes(array)
    elif array.dtype in {np.dtype(np.int32), np.dtype(np.uint64)}:
        number = _INT32 if array.dtype == np.int32 else _UINT64
        payload = wire.pack_varints(array.ravel().tolist())
    else:
        raise TypeError(
            f"a blob of {array.dtype} cannot be written; float32, int8, int32 and uint64 can"
        )
    if payload:
        yield from wire.put_pieces(number, [payload])


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
