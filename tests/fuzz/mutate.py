"""Mutations: of bytes, of the numbers in them, of text and its numbers, and of two files together."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable

__all__ = ["mutated"]

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_NUMBERS = (
    b"0", b"-1", b"1e999", b"nan", b"-inf", b"2147483648", b"9" * 25, b"9" * 5000, b"1e-320",
    b"0.5", b"true", b"''", b"1048577", b"[]",
)  # fmt: skip

Mutation = Callable[[bytes, bytes, random.Random], bytes]


def _bits(data: bytes, other: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _numbers(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Put an extreme integer of 1 to 8 bytes somewhere, near the head more often."""
    form = rng.choice("BHIQ")
    size = struct.calcsize(form)
    end = max(1, min(len(data), rng.choice((64, 512, len(data)))) - size)
    at, value = rng.randrange(end), rng.choice(_EXTREMES) & ((1 << 8 * size) - 1)
    return data[:at] + struct.pack(rng.choice("<>") + form, value) + data[at + size :]


def _cut(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _slices(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Leave a slice out, or have it twice, or many times."""
    a = rng.randrange(len(data))
    b = min(len(data), a + rng.choice((1, 4, 16, 256)))
    return data[:a] + data[a:b] * rng.choice((0, 2, 2, 300)) + data[b:]


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _text_number(data: bytes, other: bytes, rng: random.Random) -> bytes:
    places = [*_NUMBER.finditer(data[: 1 << 16])]
    if not places:
        return _bits(data, other, rng)
    found = rng.choice(places)
    return data[: found.start()] + rng.choice(_NUMBERS) + data[found.end() :]


def _words(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Exchange two words of a text, or put one in the place of another."""
    words = [*re.finditer(rb"[A-Za-z_][\w./]*", data[: 1 << 16])]
    if len(words) < 2:
        return _bits(data, other, rng)
    a, b = sorted(rng.sample(words, 2), key=lambda m: m.start())
    first = rng.choice((a[0], b[0], b"x" * 300, b"\x00\xff\xfe"))
    return data[: a.start()] + b[0] + data[a.end() : b.start()] + first + data[b.end() :]


def _nesting(data: bytes, other: bytes, rng: random.Random) -> bytes:
    at, sign = rng.randrange(len(data)), rng.choice((b"{", b"[", b"a{", b"a.", b"(", b"\n"))
    return data[:at] + sign * rng.choice((1, 50, 20_000)) + data[at:]


_MUTATIONS: tuple[Mutation, ...] = (
    _bits, _numbers, _numbers, _cut, _slices, _splice, _text_number, _text_number, _words, _nesting,
)  # fmt: skip


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return an input with one mutation, or a few."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            return data
        data = rng.choice(_MUTATIONS)(data, other or data, rng)[: 1 << 20]
    return data
