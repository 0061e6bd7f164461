"""2-D convolution: the GEMM over windows, or each output alone where it sees one channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cuda.arrays import empty, flat, like, on_device
from kernels.cuda.gemm.layer import Layer
from kernels.cuda.jit import SIMULATED, THREADS, cuda, device_jit, kernel, launch
from kernels.cuda.output import as_float32, as_int32, put, put_sum, table
from kernels.output import CheckedStage, float_stage

__all__ = ["OneChannel", "Sizes", "conv2d", "conv2d_int8", "layer", "prepare"]

#: Most outputs that share an input channel where each is computed alone.
_FEW = 8
_MOST_BLOCKS = 2 if SIMULATED else 65535


class Sizes(NamedTuple):
    """The numbers of a layer and a batch that kernels take.

    Attributes
    ----------
    outs, per : int
        Output channels, and how many of them see the same input channel.
    height, width, kernel_h, kernel_w : int
    down, right, add_h, add_w, step_h, step_w, apart_h, apart_w : int
        Output row i sees with tap u the row ``(i * down + add_h + u * step_h) / apart_h``, if
        that is a whole number within the image; columns likewise.
    columns, pixels, planes : int
        Of the output; all channels of all images are planes.
    channel_step, pixel_step : int
        Between values of the data.
    """

    outs: int
    per: int
    height: int
    width: int
    kernel_h: int
    kernel_w: int
    down: int
    right: int
    add_h: int
    add_w: int
    step_h: int
    step_w: int
    apart_h: int
    apart_w: int
    columns: int
    pixels: int
    planes: int
    channel_step: int
    pixel_step: int


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
        """Return the sum over the window of output (i, j)."""
        s = sizes
        top, left = i * s.down + s.add_h, j * s.right + s.add_w
        # taps a stride apart, where that is known, and all of them elsewhere
        skip_h = s.apart_h if s.step_h == -1 else 1
        skip_w = s.apart_w if s.step_w == -1 else 1
        total = zero
        for u in range(top % skip_h, s.kernel_h, skip_h):
            row = _seen(top, u, s.step_h, s.apart_h, s.height)
            if row >= 0:
                for v in range(left % skip_w, s.kernel_w, skip_w):
                    column = _seen(left, v, s.step_w, s.apart_w, s.width)
                    if column >= 0:
                        a = widen(x[begin + (row * s.width + column) * s.pixel_step]) - offset
                        total = widen(total + a * widen(w[taps + u * s.kernel_w + v]))
        return total

    @device_jit
    def body(x, w, bias, sizes, offset, places, kind, stage, out):
        """Fill in all outputs, one a thread and plane; see the kernels below."""
        outs, per, pixels = sizes.outs, sizes.per, sizes.pixels
        p = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        if p >= pixels:
            return
        i = np.int64(np.uint32(p) // np.uint32(sizes.columns))
        first = np.int64(cuda.blockIdx.y) * cuda.blockDim.y + cuda.threadIdx.y
        for plane in range(first, sizes.planes, cuda.gridDim.y * cuda.blockDim.y):
            n, o = plane // outs, plane % outs
            image = (outs // per) * sizes.height * sizes.width
            begin = n * image + (o // per) * sizes.channel_step
            j = p - i * sizes.columns
            taps = o * sizes.kernel_h * sizes.kernel_w
            v = window(x, begin, w, taps, i, j, sizes, offset)
            at = n * outs * pixels + o * places[0] + p * places[1]
            store(out, at, v + bias[o], o, outs, kind, stage)

    return body


_SUMS = _direct(as_int32, np.int32(0), put)
_FLOAT_SUMS = _direct(as_float32, np.float32(0), put_sum)


@kernel
def _one_channel(x, w, bias, sizes, offset, places, kind, stage, out):
    """Convolve int8: sums of int32, stored by `kind`; `places` are the steps of the output."""
    _SUMS(x, w, bias, sizes, offset, places, kind, stage, out)


@kernel
def _one_channel_floats(x, w, bias, sizes, offset, places, kind, stage, out):
    """Convolve float32."""
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
        down, add, step, apart = g.stride, (-g.pad[0], -g.pad[1]), g.dilation, (1, 1)
        if self.transposed:
            down, add, step, apart = (1, 1), g.pad, (-step[0], -step[1]), g.stride
        planes = x.shape[0] * outs
        steps = (1, g.group) if self.channels_last else (height * width, 1)
        sizes = Sizes(
            outs=outs,
            per=outs // g.group,
            height=height,
            width=width,
            kernel_h=g.kernel[0],
            kernel_w=g.kernel[1],
            down=down[0],
            right=down[1],
            add_h=add[0],
            add_w=add[1],
            step_h=step[0],
            step_w=step[1],
            apart_h=apart[0],
            apart_w=apart[1],
            columns=columns,
            pixels=pixels,
            planes=planes,
            channel_step=steps[0],
            pixel_step=steps[1],
        )
        places = (1, outs) if self.channels_last else (pixels, 1)
        wide = min(THREADS, 1 << (pixels - 1).bit_length())
        blocks = (-(-pixels // wide), min(-(-planes * wide // THREADS), _MOST_BLOCKS))
        if planes:
            function = _one_channel_floats if floats else _one_channel
            offset = np.float32(0) if floats else np.int32(self.offset)
            parameters = self.w, self.bias, sizes, offset, places, self.kind, self.stage
            launch(function, blocks, (wide, THREADS // wide), flat(x), *parameters, flat(out))
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
        arrays = flat(w), bias, table(stage)
        return OneChannel(*arrays, g, x_offset, stage.kind, dtype, transposed, channels_last)
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
