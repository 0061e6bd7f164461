"""What a whole net is compiled with: images, packed weights, steps; see `kernels.programs`."""

from __future__ import annotations

import numba

from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.engine.counting import Counter
from kernels.cpu.engine.epilogue import Writes
from kernels.cpu.engine.image import Image
from kernels.cpu.engine.layers import ConvWeights, DeconvWeights, add_average, add_largest
from kernels.cpu.engine.layout import enter, leave
from kernels.cpu.engine.program import Instance, NanError, Program
from kernels.cpu.engine.steps import Builder
from kernels.cpu.engine.windows import conv_border, deconv_border, pool_border

__all__ = [
    "Builder", "ConvWeights", "Counter", "DeconvWeights", "Image", "Instance", "MicroKernel",
    "NanError", "Program", "Writes", "add_average", "add_largest", "choose", "conv_border",
    "deconv_border", "enter", "leave", "pool_border", "threads",
]  # fmt: skip


def threads() -> int:
    """Return how many threads a run uses."""
    return numba.get_num_threads()
