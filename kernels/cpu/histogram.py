"""Observing on all cores: every thread counts privately, then the counts are added."""

from __future__ import annotations

import math

import numba
import numpy as np

from kernels.cpu.jit import jit, parallel_entry, parallel_jit, prange

__all__ = ["collect", "count", "extremes", "hits"]

_CHUNK = 1 << 15
_BLOCK = 1 << 10
_TURNS = 16


@jit
def _extreme_keys(bits):
    """Return the least and greatest key of float32 bits.

    Keys are integers in the order of the floats. They have no NaN, so the comparison is a
    vector instruction; a NaN's key lies beyond that of infinity.
    """
    low, high = np.int32(2147483647), np.int32(-2147483648)
    for i in range(bits.size):
        b = bits[i]
        key = b if b >= 0 else np.int32(b ^ np.int32(0x7FFFFFFF))
        low, high = np.int32(min(low, key)), np.int32(max(high, key))
    return low, high


@parallel_jit
def _chunk_keys(bits, lows, highs):
    for chunk in prange(lows.size):
        c = np.int64(chunk)
        lows[c], highs[c] = _extreme_keys(bits[c * _CHUNK : (c + 1) * _CHUNK])


def _value(key: np.int32) -> float:
    """Return the float32 that a key stands for."""
    bits = key if key >= 0 else key ^ np.int32(0x7FFFFFFF)
    return float(np.array(bits, np.int32).view(np.float32))


def extremes(x: np.ndarray) -> tuple[float, float, int, int]:
    """See `kernels.reference.histogram.extremes`."""
    lows, highs = np.empty((2, -(-x.size // _CHUNK)), np.int32)
    with parallel_entry():
        _chunk_keys(x.view(np.int32), lows, highs)
    low, high = _value(lows.min()), _value(highs.max())
    if math.isfinite(low) and math.isfinite(high):
        return low, high, 0, 0
    return low, high, int(np.isnan(x).sum()), int(np.isinf(x).sum())


@jit
def _places(x, factor, half, place):
    """Fill in where each value is counted.

    Zeros, which may be half of the data, take turns in places behind the bins: one counter
    incremented again and again would have to wait for itself.
    """
    middle, below, behind = np.int32(half), np.int32(half - 1), np.int32(2 * half)
    for i in range(x.size):
        v = x[i]
        index = np.int32(abs(v) * factor)
        signed = np.int32(below - index) if v < 0 else np.int32(middle + index)
        turn = np.int32(behind + np.int32(i & (_TURNS - 1)))
        place[i] = turn if v == 0 else signed


@jit
def _increment(counts, place):
    for i in range(place.size):
        counts[place[i]] += 1


@parallel_jit
def _count(x, factor, half, counts):
    """Count in blocks: places by vector instructions, then one increment after the other."""
    threads = counts.shape[0]
    share = (x.size + threads - 1) // threads
    for thread in prange(threads):
        t = np.int64(thread)
        place = np.empty(_BLOCK, np.int32)
        last = min(x.size, (t + 1) * share)
        for start in range(t * share, last, _BLOCK):
            end = min(start + _BLOCK, last)
            _places(x[start:end], factor, half, place)
            _increment(counts[t], place[: end - start])


def count(x: np.ndarray, exponent: int, half: int) -> tuple[np.ndarray, int]:
    """See `kernels.reference.histogram.count`: a float32 product truncates to the same bin."""
    counts = np.zeros((numba.get_num_threads(), 2 * half + _TURNS), np.int64)
    with parallel_entry():
        _count(x, np.float32(2.0**-exponent), half, counts)
    total = counts.sum(axis=0)
    zeros = int(total[2 * half :].sum())
    bins = total[: 2 * half]
    bins[half] += zeros
    return bins, zeros


@jit
def _hits(x, sign, threshold):
    """Return how many values of ``sign * x`` are at least `threshold`."""
    found = 0
    for i in range(x.size):
        found += sign * x[i] >= threshold
    return found


@parallel_jit
def _count_hits(x, sign, threshold, hits):
    for chunk in prange(hits.size):
        c = np.int64(chunk)
        hits[c] = _hits(x[c * _CHUNK : (c + 1) * _CHUNK], sign, threshold)


@jit
def _fill(x, sign, threshold, out):
    """Copy those values; blocks without any, nearly all of them, are only counted."""
    n = 0
    for start in range(0, x.size, _BLOCK // 4):
        block = x[start : start + _BLOCK // 4]
        if _hits(block, sign, threshold):
            for v in block:
                if sign * v >= threshold:
                    out[n] = sign * v
                    n += 1


@parallel_jit
def _collect(x, sign, threshold, ends, out):
    for chunk in prange(ends.size):
        c = np.int64(chunk)
        begin = ends[c - 1] if c else 0
        if ends[c] > begin:
            values = x[c * _CHUNK : (c + 1) * _CHUNK]
            _fill(values, sign, threshold, out[begin : ends[c]])


def hits(x: np.ndarray, sign: np.float32, threshold: np.float32) -> int:
    """See `kernels.reference.histogram.hits`."""
    found = np.empty(-(-x.size // _CHUNK), np.int64)
    with parallel_entry():
        _count_hits(x, sign, threshold, found)
    return int(found.sum())


def collect(x: np.ndarray, sign: np.float32, threshold: np.float32) -> np.ndarray:
    """See `kernels.reference.histogram.collect`."""
    hits = np.empty(-(-x.size // _CHUNK), np.int64)
    with parallel_entry():
        _count_hits(x, sign, threshold, hits)
        ends = np.cumsum(hits)
        out = np.empty(ends[-1], np.float32)
        _collect(x, sign, threshold, ends, out)
    return out
