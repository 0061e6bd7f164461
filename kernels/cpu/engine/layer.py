"""One layer alone: from array to array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numba
import numpy as np

from kernels.conv import InPlace
from kernels.cpu.codegen.microkernels import MicroKernel, choose
from kernels.cpu.engine.epilogue import Writes
from kernels.cpu.engine.image import Image
from kernels.cpu.engine.layout import enter, enter_last, leave, leave_last
from kernels.cpu.engine.program import Program
from kernels.cpu.engine.steps import Builder
from kernels.output import QUANTIZED, CheckedStage

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
    channels_last : bool
        Arrays are (N, H, W, C), not (N, C, H, W).
    """

    program: Program
    source: Image
    out: Image
    dtype: np.dtype
    channels_last: bool = False

    @classmethod
    def make(
        cls,
        add: Callable[[Builder, Image, Writes], None],
        kernel: MicroKernel,
        shape: Shape,
        out_shape: Shape,
        border: tuple[int, int],
        offset: int,
        stage: CheckedStage,
        channels_last: bool = False,
    ) -> Single:
        """Build a program of the steps that `add` appends, for data and results of N, C, H, W.

        Parameters
        ----------
        add : callable
            ``add(builder, source, writes)``.
        kernel : MicroKernel
            That reads the data.
        shape, out_shape : (N, C, H, W)
        border : (int, int)
            Around the data.
        offset : int
            Zero point of the data.
        stage : CheckedStage
        channels_last : bool
        """
        to = Builder()
        source = to.image(kernel, shape, border, offset)
        integers = stage.kind == QUANTIZED
        out_kernel = choose("int8" if integers else "float")
        out = to.image(out_kernel, out_shape, offset=int(stage.q_offset) if integers else 0)
        to.touch(source)
        to.fill(source)
        add(to, source, Writes(stage, integers=out) if integers else Writes(stage, floats=out))
        to.touch(out)
        return cls(to.program(), source, out, stage.dtype, channels_last)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Run the layer on data of the shape it was made for."""
        o, source = self.out, self.source
        last = self.channels_last
        shape = (o.height, o.width, o.channels) if last else (o.channels, o.height, o.width)
        y = np.empty((o.batch, *shape), self.dtype)
        if not y.size:
            return y
        with self.program.instance() as instance:
            add = source.operands.stored(source.offset)
            (enter_last if last else enter)(x, instance.view(source), add)
            instance.run(0, len(self.program.steps), numba.get_num_threads())
            bare = y.view(np.float32) if self.dtype == np.int32 else y
            less = o.operands.stored(o.offset)
            (leave_last if last else leave)(instance.view(o), bare, less)
        return y

    @contextmanager
    def in_place(self) -> Iterator[InPlace]:
        """See `kernels.PreparedConv.in_place`."""
        count, o, source = len(self.program.steps), self.out, self.source
        with self.program.instance() as instance:
            yield InPlace(
                instance.view(source),
                instance.view(o),
                source.operands.stored(source.offset),
                o.operands.stored(o.offset),
                lambda: instance.run(0, count, numba.get_num_threads()),
            )
