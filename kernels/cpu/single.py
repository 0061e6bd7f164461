"""One layer alone: from an array with channels first to another."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from kernels.conv import ConvGeometry
from kernels.cpu.grids import conv_border, deconv_border
from kernels.cpu.image import Image
from kernels.cpu.layers import ConvWeights, DeconvWeights
from kernels.cpu.layout import enter, leave
from kernels.cpu.microkernels import choose
from kernels.cpu.program import Program
from kernels.cpu.steps import Builder, Writes
from kernels.output import CheckedStage

__all__ = ["Single"]

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Single:
    """A layer with packed weights, for one shape of data.

    Attributes
    ----------
    program : Program
    source, out : Image
    dtype : dtype
        Of what it returns.
    """

    program: Program
    source: Image
    out: Image
    dtype: np.dtype

    @classmethod
    def make(
        cls, layer: ConvWeights | DeconvWeights, shape: Shape, outs: int, offset: int,
        stage: CheckedStage, border: tuple[int, int],
    ) -> Single:  # fmt: skip
        """Set a layer up for data (N, C, H, W) and `outs` outputs."""
        kernel = (layer.packed if isinstance(layer, ConvWeights) else layer.packed[0]).kernel
        to = Builder()
        source = to.image(kernel, shape, border, offset)
        out_shape = (shape[0], outs, *layer.geometry.out_size)
        integers = stage.kind == 2
        made = kernel if integers else choose("float")
        out = to.image(made, out_shape, offset=int(stage.q_offset) if integers else 0)
        to.touch(source)
        to.fill(source)
        writes = Writes(stage, integers=out) if integers else Writes(stage, floats=out)
        layer.add(to, source, writes)
        to.touch(out)
        return cls(to.program(), source, out, stage.dtype)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the layer on data (N, C, H, W)."""
        o = self.out
        y = np.empty((o.batch, o.channels, o.height, o.width), self.dtype)
        if not y.size:
            return y
        with self.program.instance() as instance:
            enter(x, instance.view(self.source), self.source.operands.stored(self.source.offset))
            instance.run(0, len(self.program.steps), numba.get_num_threads())
            view = instance.view(o)
            bare = y.view(np.float32) if self.dtype == np.int32 else y
            leave(view, bare, o.operands.stored(o.offset))
        return y
