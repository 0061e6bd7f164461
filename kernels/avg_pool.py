"""2-D average pooling, float32 and INT8.

The divisor is the size of the window clipped to the padded image, so padded positions
count, as real zeros: in INT8 that is ``x_q = x_offset``. A window that strides beyond the kernel
put outside the padded image has Caffe's value: its sum, 0, over a size that is 0 (NaN) or
negative along an axis.
"""

from __future__ import annotations

import numpy as np

from kernels.checks import Array, check_array
from kernels.dispatch import Device, backend
from kernels.output import OutputStage, check_output
from kernels.pool import divisors, pool_geometry

__all__ = ["avg_pool2d", "avg_pool2d_int8"]


def avg_pool2d(
    x: Array,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 0,
    ceil_mode: bool = True,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Average windows in float32.

    Parameters
    ----------
    x : float32 array (N, C, H, W)
    kernel, stride, pad : int or (vertical, horizontal)
    ceil_mode : bool
        See `kernels.pool_output_size`.
    device : str

    Returns
    -------
    float32 array (N, C, H', W')

    Raises
    ------
    TypeError, ValueError
        If dtype, rank or parameters are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import avg_pool2d
    >>> x = np.ones((1, 1, 3, 3), np.float32)
    >>> avg_pool2d(x, 2, stride=2, pad=1)  # padded positions count
    array([[[[0.25, 0.5 ],
             [0.5 , 1.  ]]]], dtype=float32)
    """
    x = check_array("x", x, np.float32, 4, device)
    geometry = pool_geometry(x, kernel, stride, pad, ceil_mode)
    return backend(device, "avg_pool").avg_pool2d(x, geometry)


def avg_pool2d_int8(
    x: Array,
    kernel: int | tuple[int, int],
    *,
    x_offset: int = 0,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 0,
    ceil_mode: bool = True,
    output: OutputStage,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Average windows of int8 data: exact int32 sums, then ``sum * (scale / divisor)``.

    Parameters
    ----------
    x : int8 array (N, C, H, W)
        Quantized data; a real zero is `x_offset`.
    kernel, stride, pad : int or (vertical, horizontal)
    x_offset : int
    ceil_mode : bool
    output : OutputStage
        Its scale is that of the data (1 or C entries); shifts are not for pooling.
    device : str

    Returns
    -------
    float32 or int8 array (N, C, H', W')

    Raises
    ------
    TypeError, ValueError
        If dtype, rank or parameters are wrong.
    OverflowError
        If a sum could leave int32.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import OutputStage, QuantParams, avg_pool2d_int8
    >>> x = np.array([[[[7, 8], [9, 12]]]], np.int8)
    >>> avg_pool2d_int8(x, 2, x_offset=5, output=OutputStage(0.5))  # 0.5 * (2 + 3 + 4 + 7) / 4
    array([[[[2.]]]], dtype=float32)
    >>> same = OutputStage(0.5, params=QuantParams(0.5, 5))
    >>> avg_pool2d_int8(x, 2, x_offset=5, output=same)
    array([[[[9]]]], dtype=int8)
    """
    x = check_array("x", x, np.int8, 4, device)
    geometry = pool_geometry(x, kernel, stride, pad, ceil_mode)
    if geometry.kernel[0] * geometry.kernel[1] * 255 > np.iinfo(np.int32).max:
        raise OverflowError(f"a window of {geometry.kernel} can sum beyond int32")
    stage = check_output(output, x.shape[1], x_offset)
    if stage.power.any():
        raise ValueError("output.shift is not for pooling")
    if stage.kind == 2 and (divisors((x.shape[2], x.shape[3]), geometry) == 0).any():
        raise ValueError(
            f"a window of kernel {geometry.kernel} and stride {geometry.stride} lies outside x of "
            f"shape {x.shape}: it has no average to quantize"
        )
    return backend(device, "avg_pool").avg_pool2d_int8(x, int(x_offset), geometry, stage)
