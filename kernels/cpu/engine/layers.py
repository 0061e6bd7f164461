"""Convolution, deconvolution, inner product and pooling as steps over images.

`Weights` packs a layer's weights once for the kind of image it will read; `add` appends the
steps of one run of the layer to a `Builder`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kernels.checks import int32_room
from kernels.conv import ConvGeometry
from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.engine.epilogue import Writes
from kernels.cpu.engine.image import Image
from kernels.cpu.engine.packing import Packed, pack_channels, pack_outputs
from kernels.cpu.engine.steps import Builder
from kernels.cpu.engine.windows import Grid, conv_grid, deconv_phases, pool_table
from kernels.pool import PoolGeometry, divisors

__all__ = [
    "ConvWeights",
    "DeconvWeights",
    "add_average",
    "add_largest",
    "channels_alone",
    "kernel_for",
]


def kernel_for(w: np.ndarray) -> MicroKernel:
    """Return the fastest micro-kernel for weights of that type."""
    return choose("float" if w.dtype == np.float32 else "int8")


def channels_alone(w: np.ndarray, group: int) -> bool:
    """Whether every group has one channel in and one out."""
    return group > 1 and w.shape[1] == 1 and w.shape[0] == group


def _words_of_column(g: ConvGeometry, kernel: MicroKernel) -> int:
    """Return how many words hold a column of the kernel."""
    return -(-g.kernel[0] // kernel.operands.per_word)


def _shares_columns(g: ConvGeometry, kernel: MicroKernel) -> bool:
    """Whether windows side by side share columns, and registers hold those of a window."""
    vectors = kernel.operands.per_word  # of the channels that a vector of data holds
    held = vectors * (g.kernel[1] * _words_of_column(g, kernel) + 1)  # and the sums
    overlapping = g.dilation[1] == 1 and g.stride[1] < g.kernel[1]
    return overlapping and held < kernel.registers


def _by_columns(w: np.ndarray, g: ConvGeometry, kernel: MicroKernel) -> np.ndarray:
    """Return weights (C, 1, kh, kw) as (C, kw * words * values of a word), zeros behind."""
    values = _words_of_column(g, kernel) * kernel.operands.per_word
    wide = np.zeros((w.shape[0], w.shape[3], values), w.dtype)
    wide[:, :, : w.shape[2]] = w[:, 0].transpose(0, 2, 1)
    return wide.reshape(w.shape[0], -1)


@dataclass(frozen=True)
class ConvWeights:
    """Weights of a convolution.

    Attributes
    ----------
    packed : Packed
    geometry : ConvGeometry
    alone : bool
        One channel a group.
    joined : bool
        A row of the kernel is one run of data.
    columns : bool
        One channel a group, packed by columns of the kernel.
    """

    packed: Packed
    geometry: ConvGeometry
    alone: bool
    joined: bool
    columns: bool = False

    @classmethod
    def pack(
        cls,
        kernel: MicroKernel,
        w: np.ndarray,
        bias: np.ndarray,
        g: ConvGeometry,
        offset: int,
        whole: bool = True,
    ) -> ConvWeights:
        """Pack weights (O, C/g, kh, kw) and bias (O,).

        Parameters
        ----------
        kernel : MicroKernel
            That will read them.
        w, bias : arrays
            int8 and int32, or both float32.
        g : ConvGeometry
        offset : int
            Zero point of the data.
        whole : bool
            Whether the image to be read holds nothing but these channels.

        Raises
        ------
        OverflowError
            If a sum could leave int32.
        """
        if w.dtype == np.int8:
            int32_room(w, bias, channel_axis=0)
        zero = kernel.operands.zero(offset)
        if channels_alone(w, g.group):
            columns = _shares_columns(g, kernel)
            flat = _by_columns(w, g, kernel) if columns else w.reshape(w.shape[0], -1)
            return cls(pack_channels(flat, bias, zero, kernel), g, True, False, columns)
        joined = whole and g.group == 1 and g.dilation[1] == 1
        runs = g.kernel[0] * (1 if joined else g.kernel[1])
        by_group = w.reshape(g.group, -1, *w.shape[1:]).transpose(0, 1, 3, 4, 2)
        packed = pack_outputs(by_group, runs, bias.reshape(g.group, -1), zero, kernel)
        return cls(packed, g, False, joined)

    def over(self, g: ConvGeometry) -> ConvWeights:
        """Return the same weights for images of another size."""
        return replace(self, geometry=g)

    def add(self, to: Builder, source: Image, writes: Writes) -> None:
        """Add the layer's steps."""
        g = self.geometry
        grid = conv_grid(source, g, self.joined or self.columns)
        if self.columns:
            to.columns(source, self.packed, grid, writes, g)
        else:
            (to.channels if self.alone else to.outputs)(source, self.packed, grid, writes)


@dataclass(frozen=True)
class DeconvWeights:
    """Weights of a deconvolution: one convolution for each phase of its strides."""

    packed: tuple[Packed, ...]
    geometry: ConvGeometry
    alone: bool

    @classmethod
    def pack(
        cls, kernel: MicroKernel, w: np.ndarray, bias: np.ndarray, g: ConvGeometry, offset: int
    ) -> DeconvWeights:
        """Pack weights (C, O/g, kh, kw) and bias (O,), as `ConvWeights.pack`."""
        if w.dtype == np.int8:
            int32_room(w, bias, channel_axis=1)
        zero = kernel.operands.zero(offset)
        alone = channels_alone(w, g.group)
        by_out = w.reshape(g.group, -1, *w.shape[1:]).transpose(0, 2, 3, 4, 1)
        packed = []
        point = Image(0, kernel.operands, 1, w.shape[0], 1, 1, (0, 0), 0, w.shape[0])
        for phase in deconv_phases(point, g):
            part = by_out[:, :, list(phase.rows)][:, :, :, list(phase.columns)]
            if not part.shape[2] * part.shape[3]:  # no tap reaches them: bias alone
                part = np.zeros((*by_out.shape[:2], 1, 1, by_out.shape[-1]), w.dtype)
            taps = part.shape[2] * part.shape[3]
            if alone:
                packed.append(pack_channels(part.reshape(w.shape[0], taps), bias, zero, kernel))
            else:
                grouped = bias.reshape(g.group, -1)
                packed.append(pack_outputs(part, taps, grouped, zero, kernel))
        return cls(tuple(packed), g, alone)

    def over(self, g: ConvGeometry) -> DeconvWeights:
        """Return the same weights for images of another size."""
        return replace(self, geometry=g)

    def add(self, to: Builder, source: Image, writes: Writes) -> None:
        """Add the layer's steps."""
        for packed, phase in zip(self.packed, deconv_phases(source, self.geometry), strict=True):
            read, grid = source, phase.grid
            if not grid.taps.size:
                read, grid = _nothing(to, source, packed.kernel, grid)
            (to.channels if self.alone else to.outputs)(read, packed, grid, writes)


def _nothing(to: Builder, like: Image, kernel: MicroKernel, grid: Grid) -> tuple[Image, Grid]:
    """Return zeros for outputs that no tap reaches, which must not see what the data holds.

    Their weights are zero, but zero times infinity is not.
    """
    zeros = to.image(kernel, (1, like.channels, 1, 1), (1, 1), like.offset)
    to.fill(zeros)
    at = np.full_like(grid.bases, zeros.byte_offset(0, -1, -1))
    return zeros, Grid(at, np.zeros(1, np.int64), grid.where)


def add_average(to: Builder, source: Image, g: PoolGeometry, writes: Writes) -> None:
    """Add average pooling: sums of each channel, one step for windows that cover as much.

    For integers the scale of the stage is divided.
    """
    real = source.operands.data == "float32"
    kernel = choose("float" if real else "int8")
    conv = ConvGeometry(g.kernel, g.stride, g.pad, (1, 1), source.channels, g.out_size)
    grid = conv_grid(source, conv, False)
    covered = np.tile(divisors((source.height, source.width), g).reshape(-1), source.batch)
    bias = np.zeros(source.channels, kernel.operands.sums)
    w = np.ones((source.channels, grid.taps.size), kernel.operands.weights)
    for divisor in np.unique(covered):
        packed = pack_channels(w, bias, source.zero, kernel)
        chosen = np.flatnonzero(covered == divisor)
        n, i, j = (a[chosen] for a in grid.where)
        part = Grid(grid.bases[chosen], grid.taps, (n, i, j))
        with np.errstate(divide="ignore"):  # a window outside the image covers nothing
            stage = replace(writes.stage, scale=writes.stage.scale / (1 if real else divisor))
        parted = replace(writes, stage=stage, divisor=float(divisor) if real else 1.0)
        to.channels(source, packed, part, parted)


def add_largest(to: Builder, source: Image, g: PoolGeometry, out: Image) -> None:
    """Add maximum pooling; both images hold the same kind of values."""
    kernel = choose("float" if source.operands.data == "float32" else "int8")
    to.largest(source, pool_table(source, g), out, kernel)
