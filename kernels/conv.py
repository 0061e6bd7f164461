"""2-D convolution: float32, and INT8 with exact int32 sums.

``y[n,o,i,j] = bias[o] + sum over c,u,v of x[n,c,i*sh-ph+u*dh, j*sw-pw+v*dw] * w[o,c,u,v]``
over the channels of the output's group; positions outside the image are zero. In INT8
``x`` stands for ``x_q - x_offset``, so that a padded position is a real zero.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.checks import Array, check_array, check_integer, check_not_empty, check_pair
from kernels.dispatch import Device, backend
from kernels.output import OutputStage, check_bias, check_output, check_room, float_stage

__all__ = ["ConvGeometry", "conv2d", "conv2d_int8", "conv_output_size", "prepare_conv2d"]


@dataclass(frozen=True)
class ConvGeometry:
    """How a kernel slides over an image; pairs are (vertical, horizontal).

    Never changes: threads and forked processes may share it.

    Attributes
    ----------
    kernel, stride, pad, dilation : (int, int)
    group : int
    out_size : (int, int)
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    group: int
    out_size: tuple[int, int]


def conv_output_size(size: int, kernel: int, stride: int, pad: int, dilation: int = 1) -> int:
    """Return the output size along one axis: ``(size + 2*pad - extent) / stride + 1``.

    Caffe divides integers of C++, towards zero: a kernel larger than the padded image by less
    than its stride has one window, which reads zeros beyond.

    Parameters
    ----------
    size, kernel, stride, pad, dilation : int
        Of that axis, in elements; ``extent = dilation * (kernel - 1) + 1``.

    Raises
    ------
    ValueError
        If a number is out of range, or the kernel is so much larger than the padded image that
        there is no window.

    Examples
    --------
    >>> from kernels import conv_output_size
    >>> conv_output_size(224, kernel=7, stride=2, pad=3)
    112
    """
    check_integer("kernel", kernel, 1)
    check_integer("stride", stride, 1)
    extent = dilation * (kernel - 1) + 1
    span = size + 2 * pad - extent
    out = (span // stride if span >= 0 else -(-span // stride)) + 1
    if out < 1:
        raise ValueError(f"kernel extent {extent} is larger than the padded size {size + 2 * pad}")
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
    channels, (outs, per_group, kh, kw) = x.shape[1], w.shape
    if channels % group or outs % group or channels // group != per_group:
        raise ValueError(
            f"x has {channels} channels and w has shape {w.shape}: with group={group} w must be "
            f"(multiple of {group}, {channels} / {group}, kh, kw)"
        )
    out_size = (
        conv_output_size(x.shape[2], kh, sh, ph, dh),
        conv_output_size(x.shape[3], kw, sw, pw, dw),
    )
    return ConvGeometry((kh, kw), (sh, sw), (ph, pw), (dh, dw), group, out_size)


def conv2d(
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
    """Convolve in float32.

    Parameters
    ----------
    x : float32 array (N, C, H, W)
    w : float32 array (O, C/group, kh, kw)
    bias : float32 array (O,), optional
    stride, pad, dilation : int or (vertical, horizontal)
    group : int
        Divides C and O.
    device : str
        One of `kernels.DEVICES`.

    Returns
    -------
    float32 array (N, O, H', W')
        Sizes by `conv_output_size`.

    Raises
    ------
    TypeError, ValueError
        If dtypes, ranks, shapes or parameters do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import conv2d
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    >>> conv2d(x, np.ones((1, 1, 2, 2), np.float32), np.array([0.5], np.float32))
    array([[[[ 8.5, 12.5],
             [20.5, 24.5]]]], dtype=float32)
    """
    x = check_array("x", x, np.float32, 4, device)
    w = check_array("w", w, np.float32, 4, device)
    bias = check_bias(bias, w.shape[0], np.float32, device)
    geometry = _geometry(x, w, stride, pad, dilation, group)
    return backend(device, "conv").conv2d(x, w, bias, geometry)


def conv2d_int8(
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
    """Convolve int8 data with int8 weights, summing exactly in int32.

    Parameters
    ----------
    x : int8 array (N, C, H, W)
        Quantized data; a real zero is `x_offset`.
    w : int8 array (O, C/group, kh, kw)
        Symmetric weights (offset 0).
    bias : int32 array (O,), optional
        In units of scale_x * scale_w[o].
    x_offset : int
        Offset (zero point) of the data, -128..127.
    stride, pad, dilation : int or (vertical, horizontal)
    group : int
    output : OutputStage, optional
        What becomes of a sum before it is stored; without it the sums are returned.
    device : str

    Returns
    -------
    int32, float32 or int8 array (N, O, H', W')
        Sums, dequantized values, or requantized values, as `output` says.

    Raises
    ------
    TypeError, ValueError
        If dtypes, ranks, shapes or parameters do not fit together.
    OverflowError
        If a sum could leave int32.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import OutputStage, QuantParams, conv2d_int8
    >>> x = np.full((1, 1, 2, 2), 5, np.int8)  # stands for 5 - 3
    >>> w = np.ones((1, 1, 3, 3), np.int8)
    >>> conv2d_int8(x, w, x_offset=3, pad=1)[0, 0]  # four times 2; the padding adds nothing
    array([[8, 8],
           [8, 8]], dtype=int32)
    >>> stage = OutputStage(0.5, params=QuantParams(0.25, -10))
    >>> conv2d_int8(x, w, x_offset=3, pad=1, output=stage)[0, 0]  # 8 * 0.5 / 0.25 - 10
    array([[6, 6],
           [6, 6]], dtype=int8)
    """
    x = check_array("x", x, np.int8, 4, device)
    w = check_array("w", w, np.int8, 4, device)
    bias = check_bias(bias, w.shape[0], np.int32, device)
    geometry = _geometry(x, w, stride, pad, dilation, group)
    check_room(w, bias, device)
    stage = check_output(output, w.shape[0], x_offset)
    return backend(device, "conv").conv2d_int8(x, w, bias, int(x_offset), geometry, stage)


def prepare_conv2d(
    shape: tuple[int, int, int, int],
    w: Array,
    bias: Array | None = None,
    *,
    x_offset: int = 0,
    stride: int | tuple[int, int] = 1,
    pad: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    group: int = 1,
    output: OutputStage | None = None,
    channels_last: bool = False,
    device: Device | str = "cpu",
) -> PreparedConv:
    """Pack the weights of a convolution once, for many runs on data of one shape.

    Parameters
    ----------
    shape : (N, C, H, W)
        Of the data, in this order whatever the layout.
    w : int8 or float32 array (O, C/group, kh, kw)
    bias : int32 or float32 array (O,), optional
    x_offset, output
        For int8, as in `conv2d_int8`.
    stride, pad, dilation, group
        As in `conv2d`.
    channels_last : bool
        Data and result are (N, H, W, C), the layout that is computed in, which saves
        transposing them.
    device : str

    Returns
    -------
    callable
        ``run(x)`` returns what `conv2d_int8` or `conv2d` does; several threads may call it.
        On the CPU ``run.in_place()`` computes without copying data in and out.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As `conv2d_int8`; ``run`` raises for data of another shape or dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from kernels import prepare_conv2d
    >>> run = prepare_conv2d((1, 1, 2, 2), np.ones((1, 1, 2, 2), np.int8), x_offset=3)
    >>> run(np.full((1, 1, 2, 2), 5, np.int8))
    array([[[[8]]]], dtype=int32)
    """
    w = check_array("w", w, None, 4, device)
    integers = not str(w.dtype).endswith("float32")  # torch has names of its own
    dtype = np.int8 if integers else np.float32
    w = check_array("w", w, dtype, 4, device)
    bias = check_bias(bias, w.shape[0], np.int32 if integers else np.float32, device)
    if len(shape) != 4:
        raise ValueError(f"shape must be (N, C, H, W), not {shape}")
    g = _geometry(np.broadcast_to(dtype(0), shape), w, stride, pad, dilation, group)
    if integers:
        check_room(w, bias, device)
        stage = check_output(output, w.shape[0], x_offset)
    elif output is not None or x_offset:
        raise ValueError("x_offset and output are for int8 weights")
    else:
        stage = float_stage(w.shape[0])
    layer = backend(device, "conv").prepare(shape, w, bias, x_offset, g, stage, channels_last)
    n, c, height, width = shape
    x_shape = (n, height, width, c) if channels_last else shape
    return PreparedConv(x_shape, dtype, layer, device)


@dataclass(frozen=True)
class PreparedConv:
    """A convolution with packed weights; made by `prepare_conv2d`.

    Never changes: threads may share it, and run it at once. A forked child may not run it where
    `kernels.DeviceError` says so.

    Attributes
    ----------
    shape : tuple of int
        Of the data it takes.
    dtype : type
    """

    shape: tuple[int, ...]
    dtype: type
    _layer: Any
    _device: str

    def __call__(self, x: Array) -> np.ndarray:
        """Run it on data of its shape and dtype."""
        x = check_array("x", x, self.dtype, 4, self._device)
        if tuple(x.shape) != tuple(self.shape):
            raise ValueError(f"x has shape {tuple(x.shape)}, prepared was {self.shape}")
        return self._layer(x)

    def in_place(self) -> AbstractContextManager[InPlace]:
        """Take buffers of its own to compute in, for data that is kept as it is stored there.

        Raises
        ------
        ValueError
            On a device that has no such buffers.
        """
        if not hasattr(self._layer, "in_place"):
            raise ValueError("only the device 'cpu' computes in place")
        return self._layer.in_place()


@dataclass(frozen=True)
class InPlace:
    """Buffers of a prepared convolution, valid while they are taken.

    For one thread, as long as they are taken.

    Attributes
    ----------
    source, result : array (N, H, W, C)
        float32, or the integers as this processor stores them: int8 values plus
        `source_add` and `result_add`.
    source_add, result_add : int
    compute : callable
        Fills `result`.
    """

    source: np.ndarray
    result: np.ndarray
    source_add: int
    result_add: int
    compute: Callable[[], None]
