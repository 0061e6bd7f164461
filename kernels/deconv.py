"""2-D deconvolution (transposed convolution): float32, and INT8 with exact int32 sums.

Each input value adds ``w[c, o] * x[n, c, i, j]`` to the window of outputs that starts at
``(i*sh - ph, j*sw - pw)``; what falls outside the output is dropped.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels.checks import Array, check_array, check_integer, check_not_empty, check_pair
from kernels.conv import ConvGeometry
from kernels.dispatch import Device, backend
from kernels.output import OutputStage, check_bias, check_output, check_room

__all__ = ["deconv2d", "deconv2d_int8", "deconv_output_size"]


def deconv_output_size(size: int, kernel: int, stride: int, pad: int, dilation: int = 1) -> int:
    """Return the output size along one axis: ``stride * (size - 1) + extent - 2 * pad``.

    Parameters
    ----------
    size, kernel, stride, pad, dilation : int
        Of that axis, in elements; ``extent = dilation * (kernel - 1) + 1``.

    Raises
    ------
    ValueError
        If nothing would be left after cutting the padding off.

    Examples
    --------
    >>> from kernels import deconv_output_size
    >>> deconv_output_size(7, kernel=4, stride=2, pad=1)
    14
    """
    out = stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad
    if out < 1:
        raise ValueError(f"pad {pad} leaves an output of size {out}")
    return out


def _geometry(
    x: np.ndarray,
    w: np.ndarray,
    stride: int | tuple[int, int],
    pad: int | tuple[int, int],
    dilation: int | tuple[int, int],
    group: int,
) -> ConvGeometry:
    sh, sw = check_pair("stride", stride, 1)
    ph, pw = check_pair("pad", pad, 0)
    dh, dw = check_pair("dilation", dilation, 1)
    check_not_empty("x", x, first_axis=1)
    check_not_empty("w", w)
    check_integer("group", group, 1)
    channels, kh, kw = w.shape[0], w.shape[2], w.shape[3]
    if channels % group or x.shape[1] != channels:
        raise ValueError(
            f"x has {x.shape[1]} channels and w has shape {w.shape}: w must be "
            f"({x.shape[1]}, outputs / group, kh, kw) and group={group} must divide its first axis"
        )
    out_size = (
        deconv_output_size(x.shape[2], kh, sh, ph, dh),
        deconv_output_size(x.shape[3], kw, sw, pw, dw),
    )
    return ConvGeometry((kh, kw), (sh, sw), (ph, pw), (dh, dw), group, out_size)


def _by_output(w: np.ndarray, group: int) -> np.ndarray:
    """Return weights (C, O/group, kh, kw) as (O, the rest)."""
    outs = w.shape[1] * group
    return np.moveaxis(w.reshape(group, -1, *w.shape[1:]), 1, 2).reshape(outs, -1)


def deconv2d(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    group: int = 1,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Deconvolve in float32.

    Parameters
    ----------
    x : float32 array (N, C, H, W)
    w : float32 array (C, O/group, kh, kw)
    bias : float32 array (O,), optional
    stride, pad, dilation : int or (vertical, horizontal)
    group : int
    device : str

    Returns
    -------
    float32 array (N, O, H', W')
        Sizes by `deconv_output_size`.

    Raises
    ------
    TypeError, ValueError
        If dtypes, ranks, shapes or parameters do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import deconv2d
    >>> x = np.array([[[[1, 2]]]], np.float32)
    >>> deconv2d(x, np.ones((1, 1, 2, 3), np.float32), stride=2)  # windows overlap in a column
    array([[[[1., 1., 3., 2., 2.],
             [1., 1., 3., 2., 2.]]]], dtype=float32)
    """
    x = check_array("x", x, np.float32, 4, device)
    w = check_array("w", w, np.float32, 4, device)
    geometry = _geometry(x, w, stride, pad, dilation, group)
    bias = check_bias(bias, w.shape[1] * group, np.float32, device)
    return backend(device, "deconv").deconv2d(x, w, bias, geometry)


def deconv2d_int8(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    x_offset: int = 0,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    group: int = 1,
    output: OutputStage | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Deconvolve int8 data with int8 weights, summing exactly in int32.

    Parameters
    ----------
    x : int8 array (N, C, H, W)
        Quantized data; a real zero is `x_offset`.
    w : int8 array (C, O/group, kh, kw)
        Symmetric weights (offset 0).
    bias : int32 array (O,), optional
    x_offset : int
    stride, pad, dilation : int or (vertical, horizontal)
    group : int
    output : OutputStage, optional
        Without it the int32 sums are returned.
    device : str

    Returns
    -------
    int32, float32 or int8 array (N, O, H', W')

    Raises
    ------
    TypeError, ValueError
        If dtypes, ranks, shapes or parameters do not fit together.
    OverflowError
        If a sum could leave int32.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import deconv2d_int8
    >>> x = np.array([[[[1, 2]]]], np.int8)
    >>> deconv2d_int8(x, np.full((1, 1, 1, 2), 10, np.int8), x_offset=-1, stride=2)
    array([[[[20, 20, 30, 30]]]], dtype=int32)
    """
    x = check_array("x", x, np.int8, 4, device)
    w = check_array("w", w, np.int8, 4, device)
    geometry = _geometry(x, w, stride, pad, dilation, group)
    outs = w.shape[1] * group
    bias = check_bias(bias, outs, np.int32, device)
    check_room(w, bias, device, partial(_by_output, group=group))
    stage = check_output(output, outs, x_offset)
    return backend(device, "deconv").deconv2d_int8(x, w, bias, int(x_offset), geometry, stage)
