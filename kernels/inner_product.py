"""Inner product (fully connected): ``y = x @ w.T + bias``, float32 and INT8."""

from __future__ import annotations

import numpy as np

from kernels.checks import Array, check_array, check_not_empty
from kernels.dispatch import Device, backend
from kernels.output import OutputStage, check_bias, check_output, check_room

__all__ = ["inner_product", "inner_product_int8"]


def _check_shapes(x: np.ndarray, w: np.ndarray) -> None:
    check_not_empty("x", x, first_axis=1)
    check_not_empty("w", w)
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"x {x.shape} and w {w.shape} must have the same second axis")


def inner_product(
    x: Array, w: Array, bias: Array | None = None, *, device: Device | str = "cpu"
) -> np.ndarray:
    """Multiply in float32.

    Parameters
    ----------
    x : float32 array (M, K)
    w : float32 array (N, K)
    bias : float32 array (N,), optional
    device : str

    Returns
    -------
    float32 array (M, N)

    Raises
    ------
    TypeError, ValueError
        If dtypes, ranks or shapes do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import inner_product
    >>> x, w = np.array([[1, 2]], np.float32), np.array([[3, 4], [5, 6]], np.float32)
    >>> inner_product(x, w, np.array([0.5, 0], np.float32))
    array([[11.5, 17. ]], dtype=float32)
    """
    x = check_array("x", x, np.float32, 2, device)
    w = check_array("w", w, np.float32, 2, device)
    _check_shapes(x, w)
    bias = check_bias(bias, w.shape[0], np.float32, device)
    return backend(device, "inner_product").inner_product(x, w, bias)


def inner_product_int8(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    x_offset: int = 0,
    output: OutputStage | None = None,
    device: Device | str = "cpu",
) -> np.ndarray:
    """Multiply int8 data with int8 weights, summing exactly in int32.

    Parameters
    ----------
    x : int8 array (M, K)
        Quantized data; a real zero is `x_offset`.
    w : int8 array (N, K)
        Symmetric weights (offset 0).
    bias : int32 array (N,), optional
        In units of scale_x * scale_w.
    x_offset : int
    output : OutputStage, optional
        Without it the int32 sums are returned.
    device : str

    Returns
    -------
    int32, float32 or int8 array (M, N)

    Raises
    ------
    TypeError, ValueError
        If dtypes, ranks or shapes do not fit together.
    OverflowError
        If a sum could leave int32.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import OutputStage, inner_product_int8
    >>> x, w = np.array([[1, 2]], np.int8), np.array([[3, 4], [-5, -6]], np.int8)
    >>> inner_product_int8(x, w, x_offset=-1)  # 2 * 3 + 3 * 4, and so on
    array([[ 18, -28]], dtype=int32)
    >>> relu = OutputStage(0.25, clamp=(0, np.inf))
    >>> inner_product_int8(x, w, x_offset=-1, output=relu)
    array([[4.5, 0. ]], dtype=float32)
    """
    x = check_array("x", x, np.int8, 2, device)
    w = check_array("w", w, np.int8, 2, device)
    _check_shapes(x, w)
    bias = check_bias(bias, w.shape[0], np.int32, device)
    check_room(w, bias, device)
    stage = check_output(output, w.shape[0], x_offset)
    return backend(device, "inner_product").inner_product_int8(x, w, bias, int(x_offset), stage)
