"""2-D convolution: the GEMM over windows, or each output alone where it sees one channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cuda.arrays import empty, flat, like, on_device
from kernels.cuda.gemm.layer import Layer
from kernels.cuda.jit import SIMULATED, THREADS, cuda, device_jit, kernel, launch
from kernels.cuda.output import as_float32, as_int32, put, put_sum, table
from kernels.output import CheckedStage, float_stage

__all__ = ["OneChannel", "conv2d", "conv2d_int8", "layer", "prepare"]

#: Most outputs that share an input channel where each is computed alone.
_FEW = 8
_MOST_BLOCKS = 2 if SIMULATED else 65535


@device_jit
def _seen(first, tap, step, apart, size):
    """Return which row (or column) of the image a tap sees, or -1."""
    at = first + tap * step
    if apart != 1:
        if at % apart:
            return -1
        at = at // apart
    return at if at >= 0 and at < size else -1


def _direct(widen: Any, zero: Any, store: Any) -> Any:
    """Return the body of a kernel that computes a pixel of a channel a thread."""

    @device_jit
    def window(x, begin, w, taps, i, j, sizes, offset):
        (_, _, height, width, kernel_h, kernel_w, down, right, add_h, add_w, step_h, step_w,
         apart_h, apart_w, _, _, _, _, pixel_step) = sizes  # fmt: skip
        top, left = i * down + add_h, j * right + add_w
        # taps a stride apart, where that is known, and all of them elsewhere
        skip_h, skip_w = apart_h if step_h == -1 else 1, apart_w if step_w == -1 else 1
        total = zero
        for u in range(top % skip_h, kernel_h, skip_h):
            row = _seen(top, u, step_h, apart_h, height)
            if row >= 0:
                for v in range(left % skip_w, kernel_w, skip_w):
                    column = _seen(left, v, step_w, apart_w, width)
                    if column >= 0:
                        a = widen(x[begin + (row * width + column) * pixel_step]) - offset
                        total = widen(total + a * widen(w[taps + u * kernel_w + v]))
        return total

    @device_jit
    def body(x, w, bias, sizes, offset, places, kind, stage, out):
        outs, per, kernel_h, kernel_w = sizes[0], sizes[1], sizes[4], sizes[5]
        columns, pixels, planes = sizes[14], sizes[15], sizes[16]
        p = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        if p >= pixels:
            return
        i = np.int64(np.uint32(p) // np.uint32(columns))
        first = np.int64(cuda.blockIdx.y) * cuda.blockDim.y + cuda.threadIdx.y
        for plane in range(first, planes, cuda.gridDim.y * cuda.blockDim.y):
            n, o = plane // outs, plane % outs
            begin = n * (outs // per) * sizes[2] * sizes[3] + (o // per) * sizes[17]
            j = p - i * columns
            v = window(x, begin, w, o * kernel_h * kernel_w, i, j, sizes, offset)
            at = n * outs * pixels + o * places[0] + p * places[1]
            store(out, at, v + bias[o], o, outs, kind, stage)

    return body


_SUMS = _direct(as_int32, np.int32(0), put)
_FLOAT_SUMS = _direct(as_float32, np.float32(0), put_sum)


@kernel
def _one_channel(x, w, bias, sizes, offset, places, kind, stage, out):
    _SUMS(x, w, bias, sizes, offset, places, kind, stage, out)


@kernel
def _one_channel_floats(x, w, bias, sizes, offset, places, kind, stage, out):
    _FLOAT_SUMS(x, w, bias, sizes, offset, places, kind, stage, out)


@dataclass(frozen=True)
class OneChannel:
    """A layer whose outputs see one channel each: what `Layer` is for others.

    Attributes
    ----------
    w, bias, stage : device arrays
    g : ConvGeometry
    offset, kind : int
    dtype : dtype
        Of the result.
    transposed, channels_last : bool
    """

    w: Any
    bias: Any
    stage: Any
    g: ConvGeometry
    offset: int
    kind: int
    dtype: Any
    transposed: bool
    channels_last: bool

    def __call__(self, x: Any) -> Any:
        """Return the result for data (N, ...), a device array, as one."""
        g, outs, floats = self.g, self.bias.shape[0], self.w.dtype == np.float32
        height, width = x.shape[1:3] if self.channels_last else x.shape[2:]
        rows, columns = g.out_size
        pixels = rows * columns
        shape = (rows, columns, outs) if self.channels_last else (outs, rows, columns)
        out = empty((x.shape[0], *shape), self.dtype)
        moves: tuple[int, ...] = (*g.stride, *(-p for p in g.pad), *g.dilation, 1, 1)
        if self.transposed:
            moves = (1, 1, *g.pad, *(-d for d in g.dilation), *g.stride)
        planes = x.shape[0] * outs
        steps = (1, g.group) if self.channels_last else (height * width, 1)
        sizes = (outs, outs // g.group, height, width, *g.kernel, *moves)
        sizes = (*sizes, columns, pixels, planes, *steps)
        places = (1, outs) if self.channels_last else (pixels, 1)
        wide = min(THREADS, 1 << (pixels - 1).bit_length())
        blocks = (-(-pixels // wide), min(-(-planes * wide // THREADS), _MOST_BLOCKS))
        if planes:
            function = _one_channel_floats if floats else _one_channel
            offset = np.float32(0) if floats else np.int32(self.offset)
            known = self.w, self.bias, sizes, offset, places, self.kind, self.stage
            launch(function, blocks, (wide, THREADS // wide), flat(x), *known, flat(out))
        return out


def layer(
    size: tuple[int, int],
    w: Any,
    bias: Any,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
    *,
    transposed: bool = False,
    channels_last: bool = False,
) -> Layer | OneChannel:
    """Return a convolution, or a deconvolution if `transposed`, of images of a size."""
    w, bias = on_device(w), on_device(bias)
    floats, outs = w.dtype == np.float32, bias.shape[0]
    per_group = w.shape[0] // g.group if transposed else w.shape[1]
    if per_group == 1 and outs // g.group <= _FEW:
        dtype = np.float32 if floats else stage.dtype
        held = flat(w), bias, table(stage)
        return OneChannel(*held, g, x_offset, stage.kind, dtype, transposed, channels_last)
    forms = {"floats": floats, "transposed": transposed, "channels_last": channels_last}
    return Layer.make(size, w, bias, x_offset, g, stage, **forms)


@dataclass(frozen=True)
class Prepared:
    """A convolution that takes NumPy or device arrays, and returns what it was given."""

    made: Layer | OneChannel

    def __call__(self, x: Any) -> Any:
        """Return the result for data (N, ...)."""
        return like(self.made(on_device(x)), x)


def prepare(
    shape: tuple[int, int, int, int],
    w: Any,
    bias: Any,
    x_offset: int,
    g: ConvGeometry,
    stage: CheckedStage,
    channels_last: bool = False,
) -> Prepared:
    """See `kernels.prepare_conv2d`; weights stay on the device."""
    size = shape[2], shape[3]
    return Prepared(layer(size, w, bias, x_offset, g, stage, channels_last=channels_last))


def conv2d(x: Any, w: Any, bias: Any, g: ConvGeometry) -> Any:
    """See `kernels.conv2d`."""
    return prepare(tuple(x.shape), w, bias, 0, g, float_stage(w.shape[0]))(x)


def conv2d_int8(
    x: Any, w: Any, bias: Any, x_offset: int, g: ConvGeometry, stage: CheckedStage
) -> Any:
    """See `kernels.conv2d_int8`."""
    return prepare(tuple(x.shape), w, bias, x_offset, g, stage)(x)
