"""2-D maximum pooling, float32; padded positions never win."""

from __future__ import annotations

import numpy as np

from kernels.checks import Array, check_array
from kernels.dispatch import Device, backend
from kernels.pool import pool_geometry

__all__ = ["max_pool2d"]


def max_pool2d(
    x: Array,
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 0,
    ceil_mode: bool = True,
    return_indices: bool = False,
    device: Device | str = "cpu",
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Take the maximum of each window; a NaN never wins, as with C's ``>``.

    Parameters
    ----------
    x : float32 array (N, C, H, W)
    kernel, stride, pad : int or (vertical, horizontal)
    ceil_mode : bool
        See `kernels.pool_output_size`.
    return_indices : bool
        Also return where each maximum was found first.
    device : str

    Returns
    -------
    y : float32 array (N, C, H', W')
    indices : int64 array (N, C, H', W'), if asked for
        Position in the plane, ``row * W + column``; -1 where nothing won.

    Raises
    ------
    TypeError, ValueError
        If dtype, rank or parameters are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import max_pool2d
    >>> x = np.array([[[[1, 5, 2], [4, 3, 6]]]], np.float32)
    >>> y, indices = max_pool2d(x, (2, 2), return_indices=True)
    >>> y, indices
    (array([[[[5., 6.]]]], dtype=float32), array([[[[1, 5]]]]))
    """
    x = check_array("x", x, np.float32, 4, device)
    geometry = pool_geometry(x, kernel, stride, pad, ceil_mode)
    y, indices = backend(device, "max_pool").max_pool2d(x, geometry)
    return (y, indices) if return_indices else y
