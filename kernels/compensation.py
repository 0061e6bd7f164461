"""Rounding weights so that their errors cancel in the layer's output.

Rounding each weight to the nearest level is best for the weight, not for the sum it enters. With
H the second moment of a layer's input columns (centred: a constant error is the bias's matter),
a rounding error e of one output's weights costs ``e' H e``. Weights are rounded one after the
other, and each takes over what those before it have left: with ``H = A' A``, A upper triangular,

    q[j] = round((w[j] + sum over k > j of A[j,k] / A[j,j] * (w[k] - scale * q[k])) / scale)

from the last to the first. That is Babai's nearest plane, which is GPTQ (Frantar et al., 2022)
without its inverse. The input that carries most is rounded first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kernels.checks import Array, as_array, check_array, check_bits, check_integer
from kernels.conv import ConvGeometry
from kernels.dispatch import Device, backend, check_device
from kernels.levels import level_table

__all__ = ["ColumnMoments", "column_moments", "compensated_rounding"]

#: Bytes of columns gathered at a time.
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class ColumnMoments:
    """Moments of the columns that a layer multiplies with its weights.

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    count : int
        Columns seen of each group.
    sums : float64 array (G, K)
        Exact for integers, in whatever order they are added.
    products : float64 array (G, K, K)
        Sums of the products of any two; likewise.
    """

    count: int
    sums: np.ndarray
    products: np.ndarray

    def __add__(self, other: ColumnMoments) -> ColumnMoments:
        """Return the moments of both sets of columns."""
        return ColumnMoments(
            self.count + other.count, self.sums + other.sums, self.products + other.products
        )

    def covariance(self) -> np.ndarray:
        """Return the second moment of the centred columns, float64 (G, K, K)."""
        # the difference is one of integers, exact: columns that never vary give exactly zero
        squares = self.sums[:, :, None] * self.sums[:, None, :]
        return (self.count * self.products - squares) / float(self.count) ** 2


def column_moments(
    x: Array,
    x_offset: int,
    geometry: ConvGeometry,
    positions: Array,
    *,
    transposed: bool = False,
) -> ColumnMoments:
    """Return the moments of a convolution's columns at some of its output positions.

    Parameters
    ----------
    x : int8 or float32 array (N, C, H, W)
        The input, quantized or as it is: moments of integers are exact, those of floats rounded.
    x_offset : int
        What stands for zero; padding is zero. 0 for float32.
    geometry : ConvGeometry
    positions : int64 array (P,)
        Indices into (N, H', W'), flat.
    transposed : bool
        Of a deconvolution, whose group is 1.

    Returns
    -------
    ColumnMoments
        Of G groups; K counts channels of a group, then rows, then columns of the kernel.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong.
    """
    x = as_array("x", x, np.float32)
    floats = getattr(x, "dtype", None) == np.float32
    x = check_array("x", x, np.float32 if floats else np.int8, 4, "cpu")
    positions = check_array("positions", positions, None, None, "cpu")
    check_integer("x_offset", x_offset, *((0, 0) if floats else (-128, 127)))
    n, channels = x.shape[:2]
    places = n * geometry.out_size[0] * geometry.out_size[1]
    if not positions.size or positions.min() < 0 or positions.max() >= places:
        raise ValueError(f"positions must be some of 0..{places - 1}")
    taps = geometry.kernel[0] * geometry.kernel[1]
    group, size = geometry.group, channels // geometry.group * taps
    sums, products = np.zeros((group, size)), np.zeros((group, size, size))
    step = max(1, _CHUNK_BYTES // (8 * group * size))
    for first in range(0, positions.size, step):
        chosen = positions[first : first + step]
        rows = _columns(x, x_offset, geometry, chosen, transposed)
        columns = rows.reshape(chosen.size, group, size).transpose(1, 0, 2).astype(np.float64)
        sums += columns.sum(axis=1)
        products += np.matmul(columns.transpose(0, 2, 1), columns)
    return ColumnMoments(positions.size, sums, products)


def _columns(
    x: np.ndarray, x_offset: int, g: ConvGeometry, positions: np.ndarray, transposed: bool
) -> np.ndarray:
    """Return the inputs of some output positions less the offset, (P, C, kh*kw).

    Integers as int16, floats as float32.
    """
    n, i, j = np.unravel_index(positions, (len(x), *g.out_size))
    kind = np.int16 if x.dtype == np.int8 else np.float32
    columns = np.zeros((positions.size, x.shape[1], g.kernel[0] * g.kernel[1]), kind)
    for tap, ((rows, rows_in), (cols, cols_in)) in enumerate(_taps(x, g, i, j, transposed)):
        inside = rows_in & cols_in
        taken = x[n[inside], :, rows[inside], cols[inside]]
        columns[inside, :, tap] = np.subtract(taken, x_offset, dtype=kind)
    return columns


Axis = tuple[np.ndarray, np.ndarray]


def _taps(
    x: np.ndarray, g: ConvGeometry, i: np.ndarray, j: np.ndarray, transposed: bool
) -> Iterator[tuple[Axis, Axis]]:
    """Return, for each tap, the rows and columns read, and whether they are in the image."""

    def axis(at: np.ndarray, tap: int, k: int) -> Axis:
        size, stride, pad, dilation = x.shape[2 + k], g.stride[k], g.pad[k], g.dilation[k]
        if not transposed:
            index = at * stride - pad + tap * dilation
            return index, (index >= 0) & (index < size)
        index, rest = np.divmod(at + pad - tap * dilation, stride)
        return index, (rest == 0) & (index >= 0) & (index < size)

    for u in range(g.kernel[0]):
        for v in range(g.kernel[1]):
            yield axis(i, u, 0), axis(j, v, 1)


def compensated_rounding(
    w: Array,
    scales: Array,
    moments: ColumnMoments,
    *,
    damping: float = 0.01,
    bits: int = 8,
    levels: Array | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Round weights to integers so that their errors cancel for the inputs seen.

    Parameters
    ----------
    w : float32 array (G, O, K)
        O outputs of each of G groups.
    scales : float32 array (G, O)
    moments : ColumnMoments
        Of the inputs, (G, K, K).
    damping : float
        Share of the mean diagonal that is added to it; K / count is added to the share, as few
        columns say little.
    bits : int
        2..8.
    levels : int8 array (n,), optional
        The only integers to round to; by default all.
    device : str

    Returns
    -------
    int8 array (G, O, K)

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or ranges do not fit.

    Notes
    -----
    Sums and the factors of H are float64 and do not depend on the number of threads. On a CUDA
    device a sum may round otherwise, and a weight at a tie fall to the other side.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import compensated_rounding
    >>> from kernels.compensation import ColumnMoments
    >>> x = np.array([[3.0, 3.0], [-2.0, -2.0], [-1.0, -1.0]])  # two inputs, always alike
    >>> moments = ColumnMoments(3, x.sum(axis=0)[None], (x.T @ x)[None])
    >>> w, scales = np.full((1, 1, 2), 0.4, np.float32), np.ones((1, 1), np.float32)
    >>> compensated_rounding(w, scales, moments)  # 1 + 0 is nearer to 0.8 than 0 + 0
    array([[[1, 0]]], dtype=int8)
    """
    check_device(device)
    half = 1 << (check_bits(bits) - 1)
    w = check_array("w", w, np.float32, 3, "cpu")
    scales = check_array("scales", scales, np.float32, 2, "cpu")
    group, outs, size = w.shape
    if scales.shape != (group, outs) or moments.products.shape != (group, size, size):
        raise ValueError(
            f"w is {w.shape}, so scales must be ({group}, {outs}) and moments of ({group}, {size}, "
            f"{size}), not {scales.shape} and {moments.products.shape}"
        )
    order, sorted_h = _sorted(moments, damping)
    upper = np.ascontiguousarray(np.linalg.cholesky(sorted_h).transpose(0, 2, 1))
    places = order[:, None, :]
    sorted_w = np.take_along_axis(w, places, axis=2).astype(np.float64)
    every = np.arange(-128, 128).astype(np.int8)
    table = level_table(every if levels is None else levels)
    code = backend(device, "compensation")
    q = code.round_rows(sorted_w, scales.astype(np.float64), upper, half, table)
    out = np.empty_like(q)
    np.put_along_axis(out, np.broadcast_to(places, q.shape), q, axis=2)
    return out


def _sorted(moments: ColumnMoments, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the inputs, the greatest last, and H in it, damped."""
    h = moments.covariance()
    diagonal = np.einsum("gkk->gk", h)
    mean = diagonal.mean(axis=1, keepdims=True)
    # inputs that never vary leave nothing to compensate: any damping will do
    diagonal += (damping + h.shape[1] / moments.count) * np.where(mean > 0, mean, 1.0)
    order = np.argsort(diagonal, axis=1, kind="stable")
    rows = np.take_along_axis(h, order[:, :, None], axis=1)
    return order, np.take_along_axis(rows, order[:, None, :], axis=2)
