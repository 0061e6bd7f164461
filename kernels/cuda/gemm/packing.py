"""Taps, images and weights in the order in which the GEMM reads them; see `layer`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cuda.arrays import empty, flat, on_device
from kernels.cuda.jit import SIMULATED, THREADS, cuda, device_jit, grid, kernel, launch

__all__ = [
    "BEGIN",
    "COLUMNS",
    "END",
    "FIRST_COLUMN",
    "FIRST_ROW",
    "PART",
    "ROWS",
    "Image",
    "ImageSizes",
    "Phase",
    "WeightSizes",
    "Windows",
    "conv_windows",
    "deconv_windows",
    "pack_weights",
]

#: Places in a line of the table of phases, see `pack_weights`.
BEGIN, END, FIRST_ROW, FIRST_COLUMN, ROWS, COLUMNS = range(6)

#: The depth of a phase is a multiple of this, and as many rows more, all zeros: kernels load
#: whole parts, and one ahead.
PART = 8 if SIMULATED else 16
#: Most blocks of the second and third axis of a grid.
_MOST_BLOCKS = 2 if SIMULATED else 65535


@dataclass(frozen=True)
class Phase:
    """Outputs that the same taps reach.

    Attributes
    ----------
    start, size : (int, int)
        The first of them, and how many rows and columns.
    taps : tuple of (int, int, int)
        Number of the tap, and the row and column of the image that the first output sees there.
    """

    start: tuple[int, int]
    size: tuple[int, int]
    taps: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Windows:
    """How outputs see the image.

    Attributes
    ----------
    step : (int, int)
        How far the image moves from an output to the next of its phase.
    spread : (int, int)
        How far these lie apart.
    phases : tuple of Phase
    """

    step: tuple[int, int]
    spread: tuple[int, int]
    phases: tuple[Phase, ...]

    def border(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return how many rows and columns windows reach beyond: above, left, below, right."""
        before, behind = [0, 0], [0, 0]
        for phase, axis in product(self.phases, (0, 1)):
            seen = [tap[1 + axis] for tap in phase.taps] or [0]
            last = (phase.size[axis] - 1) * self.step[axis] + max(seen)
            before[axis] = max(before[axis], -min(seen))
            behind[axis] = max(behind[axis], last + 1 - size[axis])
        return before[0], before[1], behind[0], behind[1]


def _phases(axes: list[list[tuple[int, int, list[tuple[int, int]]]]], columns: int) -> Any:
    """Return all pairs of the phases of two axes: their starts, sizes, and taps with places."""
    return tuple(
        Phase(
            (row[0], column[0]),
            (row[1], column[1]),
            tuple((u * columns + v, dy, dx) for (u, dy), (v, dx) in product(row[2], column[2])),
        )
        for row, column in product(*axes)
    )


def conv_windows(g: ConvGeometry) -> Windows:
    """Return the windows of a convolution: one phase."""
    axes = [
        [(0, g.out_size[a], [(u, u * g.dilation[a] - g.pad[a]) for u in range(g.kernel[a])])]
        for a in (0, 1)
    ]
    return Windows(g.stride, (1, 1), _phases(axes, g.kernel[1]))


def deconv_windows(g: ConvGeometry) -> Windows:
    """Return the windows of a deconvolution, which gathers: a phase a place in the stride."""
    axes = []
    for size, stride, pad, dilation, kernel_size in zip(
        g.out_size, g.stride, g.pad, g.dilation, g.kernel, strict=True
    ):
        axis_phases = []
        for start in range(min(stride, size)):
            ways = [(u, start + pad - u * dilation) for u in range(kernel_size)]
            taps = [(u, way // stride) for u, way in ways if way % stride == 0]
            axis_phases.append((start, -(-(size - start) // stride), taps))
        axes.append(axis_phases)
    return Windows((1, 1), g.stride, _phases(axes, g.kernel[1]))


# ------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class Image:
    """Data with a border, all pixels of a channel (or of four, in a word) together.

    Attributes
    ----------
    lanes : int
        Channels to a word: 4 of int8, or 1 of float32.
    groups, channels : int
        Groups of so many channels each.
    size : (int, int)
        Without border.
    border : (int, int, int, int)
        Above, left, below, right.
    channels_last : bool
        Of the data.
    """

    lanes: int
    groups: int
    channels: int
    size: tuple[int, int]
    border: tuple[int, int, int, int]
    channels_last: bool

    @property
    def rows(self) -> int:
        """Rows with the border."""
        return self.size[0] + self.border[0] + self.border[2]

    @property
    def columns(self) -> int:
        """Columns with the border."""
        return self.size[1] + self.border[1] + self.border[3]

    @property
    def planes(self) -> int:
        """Words of a pixel within a group."""
        return -(-self.channels // self.lanes)

    def pack(self, x: Any, offset: int) -> Any:
        """Return data (N, ...) as words (N, groups, planes, rows, columns), of one axis."""
        if self.lanes == 1 and not any(self.border) and not self.channels_last:
            return flat(x)
        pixels = self.rows * self.columns
        count = x.shape[0] * self.groups * self.planes
        words = empty(count * pixels, np.float32 if self.lanes == 1 else np.int32)
        total = self.groups * self.channels
        steps = (total, 1) if self.channels_last else (1, self.size[0] * self.size[1])
        sizes = ImageSizes(
            groups=self.groups,
            channels=self.channels,
            planes=self.planes,
            height=self.size[0],
            width=self.size[1],
            top=self.border[0],
            left=self.border[1],
            columns=self.columns,
            pixels=pixels,
            pixel_step=steps[0],
            channel_step=steps[1],
            image_step=total * self.size[0] * self.size[1],
            all_planes=count,
        )
        wide = min(THREADS, 1 << (pixels - 1).bit_length())
        high = THREADS // wide
        blocks = (-(-pixels // wide), min(-(-count // high), _MOST_BLOCKS))
        function = _pad_floats if self.lanes == 1 else _pack_words
        border = np.float32(0) if self.lanes == 1 else np.int64(offset)
        launch(function, blocks, (wide, high), flat(x), sizes, border, words)
        return words


class ImageSizes(NamedTuple):
    """What packing an image takes: see `Image`; steps are between values of the data.

    `pixels` are those of an image with its border, `all_planes` the planes of a batch.
    """

    groups: int
    channels: int
    planes: int
    height: int
    width: int
    top: int
    left: int
    columns: int
    pixels: int
    pixel_step: int
    channel_step: int
    image_step: int
    all_planes: int


@device_jit
def _source(p, sizes):
    """Return where a pixel of an image with border lies in the data, or -1."""
    row = np.int64(np.uint32(p) // np.uint32(sizes.columns))
    i, j = row - sizes.top, p - row * sizes.columns - sizes.left
    inside = i >= 0 and i < sizes.height and j >= 0 and j < sizes.width
    return (i * sizes.width + j) * sizes.pixel_step if inside else -1


@kernel
def _pad_floats(x, sizes, border, words):
    """Fill in float32 planes with their border, (planes * pixels,)."""
    p = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    if p >= sizes.pixels:
        return
    at = _source(p, sizes)
    first = np.int64(cuda.blockIdx.y) * cuda.blockDim.y + cuda.threadIdx.y
    for plane in range(first, sizes.all_planes, cuda.gridDim.y * cuda.blockDim.y):
        of_image = sizes.groups * sizes.planes
        n, c = plane // of_image, plane % of_image
        v = border
        if at >= 0:
            v = x[n * sizes.image_step + c * sizes.channel_step + at]
        words[plane * sizes.pixels + p] = v


@kernel
def _pack_words(x, sizes, border, words):
    """Fill in planes of words of four int8 channels; what is in no channel is as the border."""
    p = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    if p >= sizes.pixels:
        return
    at = _source(p, sizes)
    first = np.int64(cuda.blockIdx.y) * cuda.blockDim.y + cuda.threadIdx.y
    for plane in range(first, sizes.all_planes, cuda.gridDim.y * cuda.blockDim.y):
        of_image = sizes.groups * sizes.planes
        n, part = plane // of_image, plane % of_image
        group, c = part // sizes.planes, part % sizes.planes * 4
        channel = group * sizes.channels + c
        begin = n * sizes.image_step + channel * sizes.channel_step + at
        word = np.int64(0)
        for lane in range(4):
            v = border
            if at >= 0 and c + lane < sizes.channels:
                v = np.int64(x[begin + lane * sizes.channel_step])
            word |= (v & 255) << (8 * lane)
        words[plane * sizes.pixels + p] = np.int32(word - ((word >> 31) << 32))


# ------------------------------------------------------------------------------------ weights


class WeightSizes(NamedTuple):
    """What packing weights takes: outputs and input channels of a group, steps between weights."""

    per: int
    channels: int
    group_step: int
    out_step: int
    channel_step: int
    outs: int
    offset: int


@kernel
def _order_floats(w, depth, sizes, ordered):
    """Write weights as (depth, outputs); `depth` holds tap or -1, first channel, phase."""
    o = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    if o >= sizes.outs:
        return
    begin = (o // sizes.per) * sizes.group_step + (o % sizes.per) * sizes.out_step
    for row in range(cuda.blockIdx.y, depth.shape[0], cuda.gridDim.y):
        tap = depth[row, 0]
        at = begin + depth[row, 1] * sizes.channel_step + tap
        ordered[row * sizes.outs + o] = w[at] if tap >= 0 else np.float32(0)


@kernel
def _order_words(w, depth, sizes, ordered, bias):
    """Write weights as words of four channels, and take their sums from the bias."""
    o = np.int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    if o >= sizes.outs:
        return
    begin = (o // sizes.per) * sizes.group_step + (o % sizes.per) * sizes.out_step
    for row in range(cuda.blockIdx.y, depth.shape[0], cuda.gridDim.y):
        tap, c = depth[row, 0], depth[row, 1]
        word, total = np.int64(0), np.int64(0)
        for lane in range(min(sizes.channels - c, 4) if tap >= 0 else 0):
            v = np.int64(w[begin + (c + lane) * sizes.channel_step + tap])
            word |= (v & 255) << (8 * lane)
            total += v
        ordered[row * sizes.outs + o] = np.int32(word - ((word >> 31) << 32))
        if sizes.offset:
            at = depth[row, 2] * sizes.outs + o
            cuda.atomic.add(bias, at, np.int32(-sizes.offset * total))


@kernel
def _repeat(bias, out):
    """Write the bias once a phase."""
    for i in range(cuda.grid(1), out.size, cuda.gridsize(1)):
        out[i] = bias[i % bias.size]


def pack_weights(
    w: Any, bias: Any, offset: int, windows: Windows, image: Image, transposed: bool
) -> tuple[Any, Any, Any, Any]:
    """Return weights in the GEMM's order and the tables that go with it.

    Parameters
    ----------
    w : int8 or float32 array (O, C/group, kh, kw), or (C, O/group, kh, kw) if `transposed`
    bias : int32 or float32 array (O,)
    offset : int
        Of the data.
    windows : Windows
    image : Image
        The data's.
    transposed : bool

    Returns
    -------
    weights : device array (depth * O,)
        Words, or float32; the depth runs over phases, taps and planes of a group.
    bias : device array (phases * O,)
        Less what the offset adds.
    places : int64 device array (depth,)
        Distance from the pixel where an output's window begins.
    phases : int64 device array (phases, 6)
        First row of the depth and the end, start (row, column), size; zeros follow the end.
    """
    taps, outs = int(np.prod(w.shape[2:])), bias.shape[0]
    per = outs // image.groups
    depth, places, phases = _depth(windows, image)
    steps = (taps, per * taps) if transposed else (image.channels * taps, taps)
    sizes = WeightSizes(
        per=per,
        channels=image.channels,
        group_step=per * image.channels * taps,
        out_step=steps[0],
        channel_step=steps[1],
        outs=outs,
        offset=offset,
    )
    rows, wide = len(depth), min(THREADS, outs)
    dtype = np.float32 if image.lanes == 1 else np.int32
    ordered, biases = empty(rows * outs, dtype), flat(bias)
    if len(phases) > 1 or (image.lanes == 4 and offset):
        biases = empty(len(phases) * outs, dtype)
        launch(_repeat, grid(biases.size), THREADS, flat(bias), biases)
    blocks, table = (-(-outs // wide), min(rows, _MOST_BLOCKS)), on_device(depth)
    if image.lanes == 1:
        launch(_order_floats, blocks, wide, flat(w), table, sizes, ordered)
    else:
        launch(_order_words, blocks, wide, flat(w), table, sizes, ordered, biases)
    return ordered, biases, on_device(places), on_device(phases)


def _depth(windows: Windows, image: Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tap, first channel and phase a row of the depth; its place; and the phases."""
    depth, places, phases, end = [], [], [], 0
    planes = np.arange(image.planes)
    for number, phase in enumerate(windows.phases):
        taps = np.array(phase.taps, np.int64).reshape(-1, 3)
        tap, plane = np.repeat(taps, planes.size, axis=0), np.tile(planes, len(taps))
        row, column = tap[:, 1] + image.border[0], tap[:, 2] + image.border[1]
        padding = -len(tap) % PART + PART
        tap_rows = np.stack([tap[:, 0], plane * image.lanes, np.full_like(plane, number)], 1)
        depth += [tap_rows, np.tile([-1, 0, number], (padding, 1))]
        places += [(plane * image.rows + row) * image.columns + column, np.zeros(padding, np.int64)]
        phases.append((end, end + len(tap), *phase.start, *phase.size))
        end += len(tap) + padding
    return np.concatenate(depth), np.concatenate(places), np.array(phases, np.int64)
