"""Weights are asked for before they are needed: which, and that the machine code does so."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.conv import ConvGeometry
from kernels.cpu.codegen import gemm
from kernels.cpu.codegen.microkernels import MicroKernel, all_kernels, choose
from kernels.cpu.engine.epilogue import Writes, output_form
from kernels.cpu.engine.layers import ConvWeights
from kernels.cpu.engine.runner import GEMM, KINDS, ahead
from kernels.cpu.engine.steps import Builder
from kernels.output import float_stage

KERNEL = choose("float")


def two_layers(sizes: tuple[int, int, int], size: int) -> np.ndarray:
    """Return the steps of two 1x1 convolutions, one behind the other."""
    to = Builder()
    images = [to.image(KERNEL, (1, channels, size, size)) for channels in sizes]
    for i in range(2):
        w = np.ones((sizes[i + 1], sizes[i], 1, 1), np.float32)
        g = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1, (size, size))
        stage = float_stage(sizes[i + 1])
        layer = ConvWeights.pack(KERNEL, w, np.zeros(sizes[i + 1], np.float32), g, 0)
        layer.add(to, images[i], Writes(stage, floats=images[i + 1]))
    steps = to.program().steps
    return steps[steps["kind"] == GEMM].view(KINDS[GEMM]).view(np.recarray)


@pytest.mark.parametrize("size", [5, 40])
def test_next_come_the_next_block_then_the_next_step(size: int):
    columns = KERNEL.columns
    first, last = two_layers((24, 3 * columns, 2 * columns + 1), size)
    at, block = int(first.weights), int(first.block_bytes)
    end = int(first.strips) - 1
    assert block == 24 * columns * 4
    assert ahead(first, at, 0, end) == (at + block, at + 2 * block)
    assert ahead(first, at + block, 1, 0) == (at + 2 * block, at + 3 * block)
    following = int(last.weights), int(last.weights + last.block_bytes)
    assert ahead(first, at + 2 * block, 2, end) == following
    if end:  # other strips read these blocks again
        assert ahead(first, at + 2 * block, 2, 0) == (at + 2 * block,) * 2
    # nothing follows the last
    assert ahead(last, int(last.weights), 2, int(last.strips) - 1) == (0, 0)


@pytest.mark.parametrize("kernel", all_kernels(), ids=lambda k: k.name)
def test_a_tile_with_an_output_stage_asks_once_a_word(kernel: MicroKernel):
    writes = Writes(float_stage(kernel.columns))
    text = gemm.tile_text(kernel, kernel.rows, 2, output_form(writes, kernel, None), kernel.columns)
    loop = text[text.index("\nstep:") : text.index("\nnext_run:")]
    assert loop.count("call void @llvm.prefetch") == 1
