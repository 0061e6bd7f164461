"""Geometry as byte offsets: where each output's window begins, and what it reads from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.engine.image import Image
from kernels.pool import PoolGeometry

__all__ = [
    "Grid", "Phase", "conv_border", "conv_grid", "deconv_border", "deconv_phases", "pool_border",
    "pool_table",
]  # fmt: skip

Pair = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """Windows over an image, for every output position.

    Attributes
    ----------
    bases : int64 array (P,)
        Where windows begin, in bytes from the origin of the image.
    taps : int64 array (T,)
        What a window reads, in bytes from there.
    where : tuple of three arrays (P,)
        Image, row and column of each output position.
    """

    bases: np.ndarray
    taps: np.ndarray
    where: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Phase:
    """The outputs of a deconvolution that the same taps reach: a convolution of its own."""

    grid: Grid
    rows: tuple[int, ...]  # of the kernel
    columns: tuple[int, ...]


def _positions(batch: int, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
    grid = np.meshgrid(np.arange(batch), rows, columns, indexing="ij")
    return tuple(np.ascontiguousarray(a.reshape(-1)) for a in grid)


def _border(size: int, reads: Iterator[int]) -> int:
    """Return how far beyond an axis of that size the positions read lie."""
    places = list(reads)
    return max(0, -min(places), max(places) - size + 1)


def conv_border(g: ConvGeometry, size: Pair) -> Pair:
    """Return the border that a convolution needs around an image of that size."""

    def axis(a: int) -> int:
        last = (g.out_size[a] - 1) * g.stride[a] - g.pad[a] + (g.kernel[a] - 1) * g.dilation[a]
        return max(g.pad[a], last - size[a] + 1, 0)

    return axis(0), axis(1)


def conv_grid(source: Image, g: ConvGeometry, joined: bool) -> Grid:
    """Return the windows of a convolution; `joined` taps span a row of the kernel."""
    n, i, j = _positions(source.batch, np.arange(g.out_size[0]), np.arange(g.out_size[1]))
    bases = source.byte_offset(n, i * g.stride[0] - g.pad[0], j * g.stride[1] - g.pad[1])
    u = np.arange(g.kernel[0])[:, None] * g.dilation[0]
    v = np.arange(1 if joined else g.kernel[1]) * g.dilation[1]
    return Grid(bases, source.byte_offset(0, u, v).reshape(-1), (n, i, j))


def _phase_taps(g: ConvGeometry, axis: int, phase: int) -> tuple[tuple[int, ...], list[int]]:
    """Return the taps that reach outputs of a phase, and the input they read for the first."""
    reach = [
        (u, (phase + g.pad[axis] - u * g.dilation[axis]) // g.stride[axis])
        for u in range(g.kernel[axis])
        if (phase + g.pad[axis] - u * g.dilation[axis]) % g.stride[axis] == 0
    ]
    return tuple(u for u, _ in reach), [at for _, at in reach]


def deconv_border(g: ConvGeometry, size: Pair) -> Pair:
    """Return the border that a deconvolution needs around an image of that size."""

    def reads(axis: int) -> Iterator[int]:
        yield 0
        for phase in range(min(g.stride[axis], g.out_size[axis])):
            last = (g.out_size[axis] - 1 - phase) // g.stride[axis]
            for at in _phase_taps(g, axis, phase)[1]:
                yield at
                yield at + last

    return _border(size[0], reads(0)), _border(size[1], reads(1))


def deconv_phases(source: Image, g: ConvGeometry) -> Iterator[Phase]:
    """Yield the phases of a deconvolution: stride by stride of them."""
    for a in range(min(g.stride[0], g.out_size[0])):
        rows, row_at = _phase_taps(g, 0, a)
        for b in range(min(g.stride[1], g.out_size[1])):
            columns, column_at = _phase_taps(g, 1, b)
            n, i, j = _positions(
                source.batch,
                np.arange(a, g.out_size[0], g.stride[0]),
                np.arange(b, g.out_size[1], g.stride[1]),
            )
            bases = source.byte_offset(n, i // g.stride[0], j // g.stride[1])
            at = np.array(row_at, np.int64)[:, None], np.array(column_at, np.int64)
            taps = source.byte_offset(0, *at).reshape(-1)
            yield Phase(Grid(bases, taps, (n, i, j)), rows, columns)


def _windows(size: int, g: PoolGeometry, axis: int) -> list[range]:
    """Return the positions of the image in each window."""
    starts = [i * g.stride[axis] - g.pad[axis] for i in range(g.out_size[axis])]
    return [range(max(s, 0), min(s + g.kernel[axis], size)) for s in starts]


def pool_table(source: Image, g: PoolGeometry) -> np.ndarray:
    """Return what each window reads, int64 (P, T): a window cut off reads its last tap again."""
    axes = []
    for axis, size in enumerate((source.height, source.width)):
        windows = _windows(size, g, axis)
        longest = max(len(w) for w in windows)
        axes.append(np.array([[w[min(t, len(w) - 1)] for t in range(longest)] for w in windows]))
    i, j = axes[0][:, None, :, None], axes[1][None, :, None, :]
    n = np.arange(source.batch).reshape(-1, 1, 1, 1, 1)
    table = source.byte_offset(n, i, j)
    return np.ascontiguousarray(table.reshape(-1, axes[0].shape[1] * axes[1].shape[1]))


def pool_border(g: PoolGeometry, size: Pair) -> Pair:
    """Return the border that average pooling needs around an image of that size."""

    def axis(a: int) -> int:
        last = (g.out_size[a] - 1) * g.stride[a] - g.pad[a] + g.kernel[a] - 1
        return max(g.pad[a], last - size[a] + 1, 0)

    return axis(0), axis(1)
