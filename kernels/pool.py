"""The windows of 2-D pooling: sizes and checks that average and maximum share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.checks import check_integer, check_not_empty, check_pair

__all__ = ["PoolGeometry", "divisors", "pool_geometry", "pool_output_size"]


@dataclass(frozen=True)
class PoolGeometry:
    """How a window slides over an image; pairs are (vertical, horizontal).

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    kernel, stride, pad, out_size : (int, int)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    out_size: tuple[int, int]


def pool_output_size(
    size: int,
    kernel: int,
    stride: int,
    pad: int,
    ceil_mode: bool = True,
    *,
    padded: bool | None = None,
) -> int:
    """Return the output size along one axis.

    ``ceil((size + 2*pad - kernel) / stride) + 1`` (floor without `ceil_mode`), so that a kernel
    larger than the image by less than its stride has one window; with padding,
    a last window that would start beyond the image and its left padding is dropped. Caffe
    does so on both axes where either has padding.

    Parameters
    ----------
    size, kernel, stride, pad : int
        Of that axis, in elements.
    ceil_mode : bool
    padded : bool, optional
        Whether either axis has padding; left out, whether this one has.

    Raises
    ------
    ValueError
        If a number is out of range, the kernel is so much larger than the padded image that
        there is no window, or the padding is not below the kernel.

    Examples
    --------
    >>> from kernels import pool_output_size
    >>> pool_output_size(112, kernel=3, stride=2, pad=0)
    56
    >>> pool_output_size(112, kernel=3, stride=2, pad=0, ceil_mode=False)
    55
    """
    check_integer("kernel", kernel, 1)
    check_integer("stride", stride, 1)
    if pad >= kernel:
        raise ValueError(f"pad {pad} must be less than the kernel {kernel}")
    span = size + 2 * pad - kernel
    out = (-(-span // stride) if ceil_mode else span // stride) + 1
    if out < 1:
        raise ValueError(f"kernel {kernel} is larger than the padded size {size + 2 * pad}")
    if (pad > 0 if padded is None else padded) and (out - 1) * stride >= size + pad:
        out -= 1
    return out


def pool_geometry(
    x: np.ndarray,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    pad: int | tuple[int, int],
    ceil_mode: bool,
) -> PoolGeometry:
    """Check the parameters of a pooling of `x` (N, C, H, W) and work out its output size."""
    kh, kw = check_pair("kernel", kernel, 1)
    sh, sw = check_pair("stride", stride, 1)
    ph, pw = check_pair("pad", pad, 0)
    check_not_empty("x", x, first_axis=2)
    padded = max(ph, pw) > 0
    out_size = (
        pool_output_size(x.shape[2], kh, sh, ph, ceil_mode, padded=padded),
        pool_output_size(x.shape[3], kw, sw, pw, ceil_mode, padded=padded),
    )
    return PoolGeometry((kh, kw), (sh, sw), (ph, pw), out_size)


def divisors(size: tuple[int, int], g: PoolGeometry) -> np.ndarray:
    """Return float32 (H', W'): how many padded positions each window of an average covers.

    As in Caffe, where strides beyond the kernel put a window outside the padded image, its
    extent along that axis is 0 or negative.
    """
    counts = []
    for axis in range(2):
        start = np.arange(g.out_size[axis]) * g.stride[axis] - g.pad[axis]
        counts.append(np.minimum(start + g.kernel[axis], size[axis] + g.pad[axis]) - start)
    return np.outer(counts[0], counts[1]).astype(np.float32)
