"""One implicit GEMM under convolution, deconvolution and inner product.

Rows are output channels, columns are pixels of the output, and the depth runs over taps and, per
tap, the channels of the group. No matrix of windows is made: a column is a place in the image, a
step of the depth is a distance from it, and the sum of both is where a value lies. For that the
image is copied once, with its border around it and, for int8, four channels to a word.

A padded position holds the offset of the data, a real zero. The products take the stored bytes,
as ``x - offset`` would not fit int8, and the bias takes what that adds up to:
``sum((x - offset) * w) = sum(x * w) - offset * sum(w)``. All this is arithmetic modulo 2**32,
exact because the sum itself fits.

Outputs that the same taps reach are a phase: a convolution has one, a deconvolution as many as
its stride has places, so that no product with the zeros between inputs is made.

A block computes a tile of outputs. While it works on one part of the depth, its threads hold the
next part in registers, and shared memory has room for two. How the products are made is what the
variants differ in:

- ``float``: float32, a fused multiply-add each.
- ``plain``: int8, one product at a time; needs nothing of the hardware.
- ``dp4a``: int8, four products an instruction.
- ``mma``: int8, tensor cores, 64 x 32 outputs a warp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.conv import ConvGeometry
from kernels.cuda.arrays import empty, flat
from kernels.cuda.gemm import mma
from kernels.cuda.gemm.packing import Image, conv_windows, deconv_windows, pack_weights
from kernels.cuda.gemm.tiles import SIDE, TILE, Sizes, dp4a_tiles, float_tiles, plain_tiles
from kernels.cuda.jit import SIMULATED, cuda, launch
from kernels.cuda.output import table
from kernels.output import CheckedStage

__all__ = ["VARIANTS", "Layer", "Variant", "choose"]


#: Pixels are numbered in 32 bits.
_MOST_PIXELS = 2**31 - 1


@dataclass(frozen=True)
class Variant:
    """A kernel and its tiles: rows (output channels), columns (pixels), threads of a block."""

    kernel: Any
    rows: int
    columns: int
    threads: tuple[int, int]


#: The ways to make the products, by name.
VARIANTS = {
    "float": Variant(float_tiles, TILE, TILE, (SIDE, SIDE)),
    "plain": Variant(plain_tiles, TILE, TILE, (SIDE, SIDE)),
    "dp4a": Variant(dp4a_tiles, TILE, TILE, (SIDE, SIDE)),
    "mma": Variant(mma.mma_tiles, mma.ROWS, mma.COLUMNS, (mma.THREADS, 1)),
}


def choose(floats: bool, outs: int, depth: int, capability: tuple[int, int]) -> str:
    """Return the variant for a group of so many outputs and words of depth."""
    if floats:
        return "float"
    if capability >= (8, 0) and outs > mma.ROWS // 2 and depth >= 2 * mma.DEPTH:
        return "mma"
    return "dp4a" if capability >= (6, 1) else "plain"


@dataclass(frozen=True)
class Layer:
    """Weights in the GEMM's order on the device, with what turns its sums into a result.

    Attributes
    ----------
    image : Image
        The data's.
    weights, bias, places, phases : device arrays
        See `pack_weights`.
    max_pixels : int
        Most pixels of a phase of an image.
    moves : tuple of int
        Steps down and right in the image, and between outputs of a phase.
    out_shape : (int, int, int)
        Channels, rows and columns of the result.
    offset, kind : int
        Of the data; and of what is stored, see `kernels.output.CheckedStage`.
    stage : device array
        See `kernels.cuda.output.table`.
    dtype : dtype
        Of the result.
    variant : str
    """

    image: Image
    weights: Any
    bias: Any
    places: Any
    phases: Any
    max_pixels: int
    moves: tuple[int, int, int, int]
    out_shape: tuple[int, int, int]
    offset: int
    kind: int
    stage: Any
    dtype: Any
    variant: str

    @classmethod
    def make(
        cls,
        size: tuple[int, int],
        w: Any,
        bias: Any,
        x_offset: int,
        g: ConvGeometry,
        stage: CheckedStage,
        *,
        floats: bool,
        transposed: bool = False,
        channels_last: bool = False,
        variant: str = "",
    ) -> Layer:
        """Pack the weights of a convolution, or a deconvolution if `transposed`.

        `variant` is chosen by the device and the shape unless one is named.
        """
        windows = deconv_windows(g) if transposed else conv_windows(g)
        channels = w.shape[0] // g.group if transposed else w.shape[1]
        lanes = 1 if floats else 4
        image = Image(lanes, g.group, channels, size, windows.border(size), channels_last)
        packed = pack_weights(w, bias, x_offset, windows, image, transposed)
        outs = bias.shape[0]
        capability = (0, 0) if SIMULATED else cuda.get_current_device().compute_capability
        depth = max(len(phase.taps) for phase in windows.phases) * image.planes
        return cls(
            image,
            *packed,
            max(phase.size[0] * phase.size[1] for phase in windows.phases),
            (windows.step[0] * image.columns, windows.step[1], *windows.spread),
            (outs, *g.out_size),
            x_offset,
            stage.kind,
            table(stage),
            np.float32 if floats else stage.dtype,
            variant or choose(floats, outs // g.group, depth, capability),
        )

    def __call__(self, x: Any) -> Any:
        """Return the result for data (N, ...), a device array, as one."""
        outs, height, width = self.out_shape
        n, last = x.shape[0], self.image.channels_last
        shape = (height, width, outs) if last else (outs, height, width)
        out = empty((n, *shape), self.dtype)
        most = max(_MOST_PIXELS // self.max_pixels, 1)
        for begin in range(0, n, most):
            part = slice(begin, begin + most)
            self._run(*((x, out) if n <= most else (x[part], out[part])))
        return out

    def _run(self, x: Any, out: Any) -> None:
        outs, height, width = self.out_shape
        variant, image, n = VARIANTS[self.variant], self.image, x.shape[0]
        steps = (1, outs) if image.channels_last else (height * width, 1)
        group_step = image.planes * image.rows * image.columns
        down, right, spread_down, spread_right = self.moves
        sizes = Sizes(
            image_step=image.groups * group_step,
            group_step=group_step,
            down=down,
            right=right,
            spread_down=spread_down,
            spread_right=spread_right,
            outs=outs,
            groups=image.groups,
            batch=n,
            out_width=width,
            out_image=outs * height * width,
            channel_step=steps[0],
            pixel_step=steps[1],
        )
        blocks = (
            -(-n * self.max_pixels // variant.columns),
            -(-(outs // image.groups) // variant.rows),
            min(self.phases.shape[0] * image.groups, 65535),
        )
        parameters = self.places, self.weights, self.phases, self.bias, sizes, self.kind, self.stage
        words = image.pack(x, self.offset)
        launch(variant.kernel, blocks, variant.threads, words, *parameters, flat(out))
