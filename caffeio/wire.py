"""The wire format of protobuf, just enough to read and write weights at memory speed.

Weights are hundreds of megabytes of packed floats; through message objects each number becomes
a Python object. Here a packed field is a slice of the file. The format is described in
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

__all__ = ["FIXED32", "FIXED64", "LENGTH", "VARINT", "Field", "Piece", "WireError", "fields",
           "pack_varints", "put", "put_pieces", "put_varint", "unpack_varints"]  # fmt: skip

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)
_MAX_VARINT = 10

#: Some bytes of a message that is written piece by piece.
Piece: TypeAlias = bytes | memoryview


class WireError(ValueError):
    """The bytes are not a protobuf message; `at` is the offset of the first bad one."""

    def __init__(self, message: str, at: int) -> None:
        self.at = at
        super().__init__(message)


class Field(NamedTuple):
    """One field of a message.

    Attributes
    ----------
    number : int
    wire : int
        The wire type: VARINT, FIXED64, LENGTH or FIXED32.
    value : int
        Of a varint, else 0.
    start, end : int
        Where the payload lies in the buffer.
    """

    number: int
    wire: int
    value: int
    start: int
    end: int


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(_MAX_VARINT):
        if at + i >= end:
            raise WireError("the data ends within a number", at)
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise WireError("a number is longer than ten bytes", at)


def fields(data: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in ``data[start:end]``.

    Raises
    ------
    WireError
        If the bytes are not a message or end too early.
    """
    end = len(data) if end is None else end
    at = start
    while at < end:
        tag_at = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise WireError("a field has the number 0", tag_at)
        value = 0
        if wire == VARINT:
            first = at
            value, at = _varint(data, at, end)
        elif wire in {FIXED32, FIXED64}:
            first = at
            at += 4 if wire == FIXED32 else 8
        elif wire == LENGTH:
            size, first = _varint(data, at, end)
            at = first + size
        else:
            raise WireError(f"field {number} has the wire type {wire}", tag_at)
        if at > end:
            raise WireError(f"field {number} needs {at - end} bytes more than there are", tag_at)
        yield Field(number, wire, value, first, at)


def unpack_varints(data: memoryview) -> np.ndarray:
    """Return the packed varints in `data` as uint64 (reinterpret as int64 for signed ones)."""
    raw = np.frombuffer(data, np.uint8)
    if raw.size == 0:
        return np.zeros(0, np.uint64)
    last = raw < 0x80
    if not last[-1]:
        raise WireError("the data ends within a number", len(data))
    ends = np.flatnonzero(last)
    begins = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(raw.size) - np.repeat(begins, ends - begins + 1)
    if place.max() >= _MAX_VARINT:
        raise WireError("a number is longer than ten bytes", int(np.argmax(place)))
    bits = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(bits, begins)


def put_varint(value: int) -> bytes:
    """Return a number as a varint; a negative one takes ten bytes, as protobuf wants it."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack_varints(values: Iterable[int]) -> bytes:
    """Return numbers as a packed field's payload."""
    return b"".join(put_varint(int(value)) for value in values)


def put(number: int, payload: bytes) -> bytes:
    """Return a LENGTH field: bytes, text, a message or packed numbers."""
    return put_varint(number << 3 | LENGTH) + put_varint(len(payload)) + payload


def put_pieces(number: int, payload: Iterable[Piece]) -> list[Piece]:
    """Return a LENGTH field in pieces, one after the other, of which none is copied."""
    pieces = [*payload]
    return [put_varint(number << 3 | LENGTH), put_varint(sum(map(len, pieces))), *pieces]
