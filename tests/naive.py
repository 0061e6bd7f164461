"""The slow, obvious oracle of the kernels: plain Python numbers, one value at a time.

It shares no code with the package. Integers are Python integers, exact values are fractions,
and `f32` stands wherever the format itself demands that a value be rounded to float32.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

Pair = tuple[int, int]


def f32(value: float) -> float:
    """The float32 nearest to a double; infinite where none is near."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


# ------------------------------------------------------------------------------ number format


def round_half_away(value: float) -> int:
    """The nearest integer, halves away from zero, without any rounding on the way."""
    whole = math.floor(abs(Fraction(value)) + Fraction(1, 2))
    return -whole if value < 0 else whole


def limits(bits: int) -> Pair:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize(x: float, scale: float, offset: int, bits: int = 8) -> int:
    low, high = limits(bits)
    steps = f32(x / scale) if math.isfinite(x) else x
    if math.isinf(steps):
        return high if steps > 0 else low
    return min(max(round_half_away(steps) + offset, low), high)


def dequantize(q: int, scale: float, offset: int) -> float:
    return f32((q - offset) * scale)


def requantize(total: int, unit: float, scale: float, offset: int, bits: int = 8) -> int:
    return quantize(f32(f32(total) * unit), scale, offset, bits)


@dataclass(frozen=True)
class Stage:
    """What becomes of a sum of a channel: see `stored`."""

    unit: float
    shift: int = 0
    clamp: tuple[float, float] = (-math.inf, math.inf)
    params: tuple[float, int, int] | None = None  # scale, offset, bits


def stored(total: int, stage: Stage | None) -> float | int:
    """The value that is written for an int32 sum."""
    if stage is None:
        return total
    value = f32(total)
    if stage.shift:
        shifted = round_half_away(f32(value / 2**stage.shift))
        value = f32(min(max(shifted, -32768), 32767) * 2**stage.shift)
    value = min(max(f32(value * stage.unit), f32(stage.clamp[0])), f32(stage.clamp[1]))
    return value if stage.params is None else quantize(value, *stage.params)


# --------------------------------------------------------------------------------- operations


def conv(x: Any, w: Any, bias: Any, stride: Pair, pad: Pair, dilation: Pair, group: int) -> list:
    """Sums [n][o][i][j] of nested lists of numbers; outside the image lies 0."""
    channels, height, width = len(x[0]), len(x[0][0]), len(x[0][0][0])
    outs, per, kh, kw = len(w), len(w[0]), len(w[0][0]), len(w[0][0][0])
    rows = (height + 2 * pad[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + 2 * pad[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    assert per * group == channels

    def at(image: Any, o: int, i: int, j: int) -> Any:
        total = bias[o]
        for c, u, v in itertools.product(range(per), range(kh), range(kw)):
            row = i * stride[0] - pad[0] + u * dilation[0]
            column = j * stride[1] - pad[1] + v * dilation[1]
            if 0 <= row < height and 0 <= column < width:
                total += image[o // (outs // group) * per + c][row][column] * w[o][c][u][v]
        return total

    return [
        [[[at(image, o, i, j) for j in range(columns)] for i in range(rows)] for o in range(outs)]
        for image in x
    ]


def deconv(x: Any, w: Any, bias: Any, stride: Pair, pad: Pair, dilation: Pair, group: int) -> list:
    """Sums [n][o][i][j]: every input value is spread over the window it starts."""
    channels, height, width = len(x[0]), len(x[0][0]), len(x[0][0][0])
    per, kh, kw = len(w[0]), len(w[0][0]), len(w[0][0][0])
    rows = stride[0] * (height - 1) + dilation[0] * (kh - 1) + 1 - 2 * pad[0]
    columns = stride[1] * (width - 1) + dilation[1] * (kw - 1) + 1 - 2 * pad[1]
    out = [[[[b] * columns for _ in range(rows)] for b in bias] for _ in x]
    spots = itertools.product(range(len(x)), range(channels), range(height), range(width))
    for n, c, i, j in spots:
        for o, u, v in itertools.product(range(per), range(kh), range(kw)):
            row = i * stride[0] - pad[0] + u * dilation[0]
            column = j * stride[1] - pad[1] + v * dilation[1]
            if 0 <= row < rows and 0 <= column < columns:
                to = c // (channels // group) * per + o
                out[n][to][row][column] += x[n][c][i][j] * w[c][o][u][v]
    return out


def inner_product(x: Any, w: Any, bias: Any) -> list:
    """Sums [m][n]."""
    return [
        [
            sum(a * b for a, b in zip(row, weights, strict=True)) + start
            for weights, start in zip(w, bias, strict=True)
        ]
        for row in x
    ]


def pool_sizes(size: Pair, kernel: Pair, stride: Pair, pad: Pair, ceil_mode: bool) -> Pair:
    """Output sizes of pooling: on both axes a window beyond the image goes if either is padded."""
    out = []
    for s, k, t, p in zip(size, kernel, stride, pad, strict=True):
        span = Fraction(s + 2 * p - k, t)
        count = (math.ceil(span) if ceil_mode else math.floor(span)) + 1
        if any(pad) and (count - 1) * t >= s + p:
            count -= 1
        out.append(count)
    return out[0], out[1]


def windows(size: Pair, kernel: Pair, stride: Pair, pad: Pair, ceil_mode: bool) -> list:
    """For each output position (positions inside the image, positions that count)."""
    rows, columns = pool_sizes(size, kernel, stride, pad, ceil_mode)
    grid = []
    for i in range(rows):
        line = []
        for j in range(columns):
            down = range(i * stride[0] - pad[0], i * stride[0] - pad[0] + kernel[0])
            right = range(j * stride[1] - pad[1], j * stride[1] - pad[1] + kernel[1])
            spots = list(itertools.product(down, right))
            inside = [(r, c) for r, c in spots if 0 <= r < size[0] and 0 <= c < size[1]]
            counted = [(r, c) for r, c in spots if r < size[0] + pad[0] and c < size[1] + pad[1]]
            line.append((inside, len(counted)))
        grid.append(line)
    return grid


def average(plane: Any, window: tuple[list[Pair], int]) -> float:
    """The mean of a window, padding counted as zeros."""
    return math.fsum(plane[r][c] for r, c in window[0]) / window[1]


def average_int8(plane: Any, zero: int, window: tuple[list[Pair], int], stage: Stage) -> float:
    """What is written for a window of int8 values: the divisor goes into the unit."""
    total = sum(plane[r][c] - zero for r, c in window[0])
    return stored(total, replace(stage, unit=f32(stage.unit / window[1])))


# ---------------------------------------------------------------------------------- observing


def histogram_exponent(values: list[float], half: int) -> int:
    """The least exponent, from -126, at which ``half`` bins a side hold every magnitude."""
    top = max(abs(Fraction(v)) for v in values)
    return next(e for e in range(-126, 129) if top < half * Fraction(2) ** e)


def histogram_bin(value: float, exponent: int, half: int) -> int:
    """The place of a value among ``2 * half`` bins; zeros belong to the positive side."""
    index = math.floor(abs(Fraction(value)) / Fraction(2) ** exponent)
    return half - 1 - index if value < 0 else half + index


def kth_largest(values: list[float], k: int) -> float:
    return sorted(values, reverse=True)[k - 1]


def kth_smallest(values: list[float], k: int) -> float:
    return sorted(values)[k - 1]


def mse(values: list[float], scale: float, offset: int, bits: int = 8) -> float:
    """Mean squared error of quantizing, by doing it to every value."""
    errors = (dequantize(quantize(v, scale, offset, bits), scale, offset) - v for v in values)
    return math.fsum(e * e for e in errors) / len(values)


# ---------------------------------------------------------------------------------- searching


@dataclass(frozen=True)
class Found:
    """What a search tried and chose."""

    scale: float
    offset: int
    index: int
    losses: list[float]


def tail_rank(total: int, percentile: float) -> int:
    reached = math.floor(f32(f32(percentile) * f32(total)))
    return min(max(total - reached, 1), total)


def ratios(start: float, end: float, step: float) -> list[float]:
    """Factors ``start + i * step``, each operation rounded to float32."""
    start, end, step = f32(start), f32(end), f32(step)
    count = int(f32(f32(f32(end - start) / step) + 1))
    return [f32(start + f32(i * step)) for i in range(count)]


def guarded(scale: float) -> float:
    return 1.0 if scale < f32(1.1920929e-7) else scale


def ifmr(
    values: list[float],
    search: tuple[float, float, float] = (0.7, 1.3, 0.01),
    percentiles: tuple[float, float] = (0.999999, 0.999999),
    asymmetric: bool = True,
    bits: int = 8,
) -> Found:
    """IFMR as specified: (largest, smallest) percentile, candidates, losses, first minimum."""
    total = len(values)
    high = max(kth_largest(values, tail_rank(total, percentiles[0])), 0.0)
    low = min(kth_smallest(values, tail_rank(total, percentiles[1])), 0.0)
    bottom, top = limits(bits)
    tried: list[tuple[float, float, float]] = []
    for r in ratios(*search):
        if asymmetric:
            end = f32(r * high)
            tried.append((low, end, guarded(f32(f32(end - low) / (2**bits - 1)))))
        else:
            end = f32(r * max(high, -low))
            limit = top if high > -low else -bottom
            tried.append((-end, end, guarded(f32(end / limit))))
    losses = []
    for first, last, scale in tried:
        errors = []
        for v in values:
            steps = round_half_away(f32(min(max(v, first), last) / scale))
            errors.append(f32(f32(steps * scale) - v) ** 2)
        losses.append(math.fsum(errors))
    best = losses.index(min(losses))
    first, _, scale = tried[best]
    offset = bottom - round_half_away(f32(first / scale)) if asymmetric else 0
    return Found(scale, min(max(offset, bottom), top), best, losses)


def arq(values: list[float], bits: int = 8) -> float:
    """The scale of one channel of weights."""
    low, high = min(values), max(values)
    bottom, top = limits(bits)
    return guarded(f32(high / top) if high > -low else f32(low / bottom))


def hfmg_candidates(counts: list[int]) -> list[Pair]:
    """First and last bin of each range tried, by counting in from both ends."""
    step = max(1, math.ceil(Fraction(sum(counts), 100_000)))
    left, right, found = 0, len(counts) - 1, []
    while right - left > math.ceil(len(counts) / 4):
        from_left, seen = left, 0
        while seen < step:
            seen += counts[from_left]
            from_left += 1
        from_right, seen = right, 0
        while seen < step:
            seen += counts[from_right]
            from_right -= 1
        if from_left - left > right - from_right:
            left = from_left
        else:
            right = from_right
        if right < left:
            break
        found.append((left, right))
    return found


def hfmg_loss(counts: list[int], left: int, right: int, width: float, levels: int) -> float:
    """Expected squared error, each source bin cut where the destination bins meet."""
    part = Fraction(width) * (right - left + 1) / levels
    start = Fraction(width) * left
    inner_ends = [start + part * i for i in range(1, levels)]
    total = Fraction(0)
    for b, count in enumerate(counts):
        begin, end = Fraction(width) * b, Fraction(width) * (b + 1)
        cuts = [begin, *(c for c in inner_ends if begin < c < end), end]
        for a, z in itertools.pairwise(cuts):
            place = math.floor(((a + z) / 2 - start) / part)
            centre = start + part * (min(max(place, 0), levels - 1) + Fraction(1, 2))
            total += count / Fraction(width) * ((z - centre) ** 3 - (a - centre) ** 3) / 3
    return float(total)


def range_params(low: float, high: float, asymmetric: bool, bits: int, least: float) -> tuple:
    """(scale, offset) that cover a range widened to hold zero, in double precision."""
    low, high = min(low, 0.0), max(high, 0.0)
    bottom, top = limits(bits)
    if not asymmetric:
        scale = high / top if high > -low else low / bottom
        return (scale if scale >= least else 1.0), 0
    scale = (high - low) / (2**bits - 1)
    scale = scale if scale >= least else 1.0
    return scale, min(max(bottom - round_half_away(low / scale), bottom), top)


def nested(values: np.ndarray) -> Any:
    """An array as nested lists of Python numbers."""
    return values.tolist()


def ulq(x: float, g: float, high: float, low: float, bits: int = 8) -> tuple[float, ...]:
    """One value through ULQ: y, dx, and what it adds to the gradients of clip_max and clip_min."""
    levels = 2**bits - 1
    scale = guarded(f32(f32(high - low) / levels))
    zero = round_half_away(f32(low / scale))
    bottom, top = f32(scale * zero), f32(scale * (zero + levels))
    y = f32(round(f32(min(max(x, bottom), top) / scale)) * scale)  # round: halves to even
    if bottom <= x <= top:
        v = f32(x / scale)
        d = f32(f32(round_half_away(v) - v) / levels)
        return y, g, f32(g * d), f32(g * -d)
    v = f32(high / scale)
    d = f32(f32(round_half_away(v) - v) / levels)
    if x > top:
        return y, 0.0, f32(g * f32(d + 1)), f32(g * -d)
    return y, 0.0, f32(g * d), f32(g * f32(1 - d))


def channel_sums(x: Any, y: Any) -> list[list[float]]:
    """Sums of x, y, x², y², x·y of each channel of nested lists (N, C, P)."""
    sums = []
    for c in range(len(x[0])):
        pairs = [(a, b) for n in range(len(x)) for a, b in zip(x[n][c], y[n][c], strict=True)]
        sums.append(
            [
                math.fsum(a for a, _ in pairs),
                math.fsum(b for _, b in pairs),
                math.fsum(a * a for a, _ in pairs),
                math.fsum(b * b for _, b in pairs),
                math.fsum(a * b for a, b in pairs),
            ]
        )
    return sums


def column(
    x: Any, n: int, i: int, j: int, channels: range, kernel: Pair, stride: Pair, pad: Pair,
    dilation: Pair, zero: int,
) -> list[int]:  # fmt: skip
    """What a convolution multiplies with its weights at one output position."""
    values = []
    for c in channels:
        for u in range(kernel[0]):
            for v in range(kernel[1]):
                row = i * stride[0] - pad[0] + u * dilation[0]
                col = j * stride[1] - pad[1] + v * dilation[1]
                inside = 0 <= row < len(x[n][c]) and 0 <= col < len(x[n][c][0])
                values.append(x[n][c][row][col] - zero if inside else 0)
    return values


def gptq(
    w: np.ndarray, scale: float, h: np.ndarray, damping: float, table: list[int] | None = None
) -> list[int]:
    """Round one row by GPTQ as it is published: errors go on by the factor of the inverse.

    `table`, if given, holds the level that stands for each integer from -128 on.
    """
    h = h + damping * np.eye(len(h))
    order = sorted(range(len(h)), key=lambda k: (-h[k, k], -k))
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    left = [float(w[k]) for k in order]
    q = [0] * len(h)
    for a, k in enumerate(order):
        q[k] = min(max(round_half_away(left[a] / scale), -128), 127)
        q[k] = q[k] if table is None else table[q[k] + 128]
        error = (left[a] - scale * q[k]) / upper[a, a]
        for b in range(a + 1, len(h)):
            left[b] -= error * upper[a, b]
    return q
