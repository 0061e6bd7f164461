"""Layers over bytes as they are, with their sign, which no processor of x86 takes by itself."""

from __future__ import annotations

from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from plain_kernels import PLAIN_S8

import kernels
from kernels import OutputStage, QuantParams
from kernels.cpu.codegen.microkernels import choice, choose
from kernels.cpu.codegen.microkernels.choice import VARIABLE
from kernels.cpu.engine.layers import add_largest
from kernels.cpu.engine.layout import enter, leave
from kernels.cpu.engine.steps import Builder
from kernels.pool import pool_geometry

#: Zero points, and those of what is stored.
OFFSETS = [(-128, 127), (127, -128), (-3, 0), (0, 5)]


@pytest.fixture(autouse=True)
def plain_s8(monkeypatch: pytest.MonkeyPatch) -> None:
    every = (PLAIN_S8, *choice.all_kernels())
    monkeypatch.setattr(choice, "all_kernels", lambda: every)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose("int8") is PLAIN_S8


def outputs(stored: int, scale: float) -> list[OutputStage]:
    """Stages that store int8, over the whole range and clamped, and float32."""
    params = QuantParams(0.7, stored)
    clamped = OutputStage(scale, clamp=(-1.5, 6.0), params=params)
    return [OutputStage(scale, params=params), clamped, OutputStage(scale)]


def same(function: Any, *arrays: Any, **keywords: Any) -> None:
    ours, wanted = (function(*arrays, device=d, **keywords) for d in ("cpu", "reference"))
    assert ours.dtype == wanted.dtype
    assert (ours == wanted).all()


@pytest.mark.parametrize(("offset", "stored"), OFFSETS)
@pytest.mark.parametrize(
    ("channels", "outs", "keywords"),
    [
        (5, 7, {"pad": 2}),
        (70, 70, {"pad": 1, "group": 70}),  # by columns
        (37, 37, {"pad": 1, "group": 37, "dilation": 2}),  # by taps
        (6, 4, {"pad": (2, 0), "stride": (2, 1), "group": 2}),
    ],
)
def test_convolutions(offset: int, stored: int, channels: int, outs: int, keywords: Any):
    rng = np.random.default_rng(offset + 128)
    x = cases.int8s(rng, 2, channels, 9, 6)
    w = cases.int8s(rng, outs, channels // keywords.get("group", 1), 3, 3)
    bias = rng.integers(-5000, 5000, outs).astype(np.int32)
    for output in (None, *outputs(stored, 0.003)):
        same(kernels.conv2d_int8, x, w, bias, x_offset=offset, output=output, **keywords)


@pytest.mark.parametrize(("offset", "stored"), OFFSETS)
def test_other_layers(offset: int, stored: int):
    rng = np.random.default_rng(offset + 128)
    x, w = cases.int8s(rng, 2, 19, 7, 5), cases.int8s(rng, 19, 6, 3, 3)
    for output in outputs(stored, 0.003):
        same(kernels.deconv2d_int8, x, w, x_offset=offset, output=output, stride=2, pad=1)
        flat, rows = x.reshape(2, -1), cases.int8s(rng, 21, 19 * 7 * 5)
        same(kernels.inner_product_int8, flat, rows, x_offset=offset, output=output)
    for output in outputs(stored, 0.5):
        same(kernels.avg_pool2d_int8, x, 3, x_offset=offset, output=output, stride=2, pad=1)


@pytest.mark.parametrize(("offset", "stored"), OFFSETS)
@pytest.mark.parametrize("channels", [3, 21])
def test_channels_last(offset: int, stored: int, channels: int):
    rng = np.random.default_rng(offset + 128)
    x, w = cases.int8s(rng, 2, channels, 8, 5), cases.int8s(rng, 9, channels, 3, 3)
    keywords = {"x_offset": offset, "pad": 1, "output": outputs(stored, 0.003)[0]}
    run = kernels.prepare_conv2d(x.shape, w, channels_last=True, **keywords)
    y = run(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    wanted = kernels.conv2d_int8(x, w, device="reference", **keywords)
    assert (y.transpose(0, 3, 1, 2) == wanted).all()


@pytest.mark.parametrize("offset", [-128, 0, 127])
@pytest.mark.parametrize("channels", [3, 21])
def test_maximum_pooling_compares_with_the_sign_and_reads_no_border(offset: int, channels: int):
    rng = np.random.default_rng(channels)
    x = cases.int8s(rng, 2, channels, 7, 5)
    x[0] = np.minimum(x[0], -1)  # a stored zero of the border would win
    g = pool_geometry(x, 3, 2, 1, True)
    to = Builder()
    source = to.image(PLAIN_S8, x.shape, (2, 2), offset)
    out = to.image(PLAIN_S8, (*x.shape[:2], *g.out_size), offset=offset)
    to.touch(source)
    to.fill(source)
    add_largest(to, source, g, out)
    to.touch(out)
    program, y = to.program(), np.empty((*x.shape[:2], *g.out_size), np.int8)
    with program.instance() as instance:
        enter(x, instance.view(source), source.operands.stored(offset))
        instance.run(0, len(program.steps), 1)
        leave(instance.view(out), y, out.operands.stored(offset))
    wanted = kernels.max_pool2d(x.astype(np.float32), 3, stride=2, pad=1, device="reference")
    assert (y == wanted).all()
