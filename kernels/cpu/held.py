"""Planes copied with their padding, so that windows side by side read values side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.jit import jit

__all__ = ["Held", "address"]

#: Machine code grows with the stride.
_MOST_STRIDE = 4


@jit
def address(array):
    """Return where an array begins, as machine code takes it."""
    return np.int64(array.ctypes.data)


@dataclass(frozen=True)
class Held:
    """A plane with its padding: (rows, stride, pitch), column j at [j % stride, j // stride].

    Attributes
    ----------
    rows : int
        Rows that windows read.
    row : int
        Values of one.
    first, count : int
        Those of them that the image has.
    parts : int64 array (stride, 4)
        The table by which ``spread`` (`kernels.cpu.codegen.planes`) copies a row of the image.
    room : int
        Values that may be written behind the last row, and read behind the image.
    taps : int64 array (T,)
        What a window reads, in values from its begin; the next window is a value further.
    """

    rows: int
    row: int
    first: int
    count: int
    parts: np.ndarray
    room: int
    taps: np.ndarray

    @classmethod
    def of(cls, g: ConvGeometry, size: tuple[int, int], lanes: int) -> Held | None:
        """Lay out planes of a size for a geometry; None where they do not fit the scheme.

        Parameters
        ----------
        g : ConvGeometry
        size : (int, int)
            Height and width of the image.
        lanes : int
            Values of a vector.
        """
        (height, width), step, pad = size, g.stride[1], g.pad
        if step > _MOST_STRIDE or min(*size, *g.out_size) < 1:
            return None
        rows, columns = (
            (g.out_size[a] - 1) * g.stride[a] + (g.kernel[a] - 1) * g.dilation[a] + 1
            for a in (0, 1)
        )
        pitch, count = -(-columns // step), min(rows - pad[0], height)
        # the columns q * step + part - pad of the image
        first = [max(0, -(-(pad[1] - part) // step)) for part in range(step)]
        last = [min(pitch, -(-(width + pad[1] - part) // step)) for part in range(step)]
        if count < 1 or any(a >= b for a, b in zip(first, last, strict=True)):
            return None
        begins = [part * pitch + q for part, q in enumerate(first)]
        ends = [part * pitch + q for part, q in enumerate(last)]
        gaps = [b - a for a, b in zip(ends, [*begins[1:], step * pitch + begins[0]], strict=True)]
        sources = [q * step + part - pad[1] for part, q in enumerate(first)]
        counts = [b - a for a, b in zip(begins, ends, strict=True)]
        parts = np.array([sources, begins, counts, np.maximum(gaps, lanes)], np.int64).T
        u = np.arange(g.kernel[0])[:, None] * g.dilation[0]
        v = np.arange(g.kernel[1]) * g.dilation[1]
        taps = (u * step * pitch + v % step * pitch + v // step).reshape(-1)
        room = max(gaps) + (step + 2) * lanes
        return cls(
            rows, step * pitch, pad[0], count, np.ascontiguousarray(parts), room,
            taps.astype(np.int64),
        )  # fmt: skip
