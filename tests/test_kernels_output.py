"""The output stage, against one value at a time; and its checks."""

from __future__ import annotations

import math

import kernel_cases as cases
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import OutputStage, QuantParams, conv2d_int8, inner_product_int8
from kernels.cpu.codegen.microkernels import all_kernels
from kernels.cpu.codegen.microkernels.choice import VARIABLE, runs_here

DEVICES = cases.DEVICES


def through(total: int, output: OutputStage | None, device: str) -> np.ndarray:
    """Any int32 as the sum of a layer: the bias alone makes it."""
    x, w = np.zeros((1, 1), np.int8), np.zeros((1, 1), np.int8)
    return inner_product_int8(x, w, np.array([total], np.int32), output=output, device=device)


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(150)
@given(st.integers(-(2**31) + 1, 2**31 - 1), cases.stages(1))
def test_every_step_is_one_float32_operation(device: str, total: int, case: cases.Stages):
    got = through(total, case.output, device)
    assert got.dtype == case.dtype
    assert got.item() == naive.stored(total, case.naive[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pixels", [1, 3, 40])
@pytest.mark.parametrize("channels", [1, 40])
def test_sums_whose_bits_would_be_a_nan_stay(device: str, channels: int, pixels: int):
    totals = np.resize([-4194305, -8388607, -8388609, 2139095041, 2143289343], channels)
    x, w = np.zeros((1, 1, 1, pixels), np.int8), np.zeros((channels, 1, 1, 1), np.int8)
    got = conv2d_int8(x, w, totals.astype(np.int32), device=device)
    assert (got == totals[None, :, None, None]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_shift_rounds_half_away_and_saturates_at_16_bits(device: str):
    totals = np.array([5, -5, 6, -6, 2**21, -(2**21), 7, 7], np.int32)
    shift = np.array([1, 1, 2, 2, 4, 4, 0, 16])
    output = OutputStage(1.0, shift)
    x, w = np.zeros((1, 1), np.int8), np.zeros((8, 1), np.int8)
    got = inner_product_int8(x, w, totals, output=output, device=device)
    assert got.tolist() == [[6, -6, 8, -8, 32767 * 16, -32768 * 16, 7, 0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("params", [None, QuantParams(0.5, 3)])
def test_what_overflows_float32_saturates(device: str, params: QuantParams | None):
    for total in (2**30, -(2**30)):
        got = through(total, OutputStage(3e38, params=params), device).item()
        ends = (math.inf, -math.inf) if params is None else (127, -128)
        assert got == ends[total < 0]


@pytest.mark.parametrize("device", DEVICES)
def test_relu_and_relu6_clamp_real_values(device: str):
    for total, want in ((-9, 0.0), (4, 2.0), (30, 6.0)):
        assert through(total, OutputStage(0.5, clamp=(0, 6)), device).item() == want
    got = through(-9, OutputStage(0.5, clamp=(0, math.inf), params=QuantParams(1, -128)), device)
    assert got.item() == -128


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (OutputStage(0.0), "output.scale must be positive"),
        (OutputStage(-1.0), "output.scale must be positive"),
        (OutputStage(math.nan), "output.scale must be positive"),
        (OutputStage(1e39), "output.scale must be positive"),
        (OutputStage(1e-50), "output.scale must be positive"),
        (OutputStage(np.ones(2, np.float32)), "output.scale must have 1 or 3"),
        (OutputStage(np.ones((1, 3), np.float32)), "output.scale must have 1 or 3"),
        (OutputStage(1.0, np.array([1, 2])), "output.shift must have 1 or 3"),
        (OutputStage(1.0, np.array([-1])), "output.shift must be an integer in 0..16"),
        (OutputStage(1.0, np.array([17])), "output.shift must be an integer in 0..16"),
        (OutputStage(1.0, np.array([1.5])), "output.shift must be an integer in 0..16"),
        (OutputStage(1.0, np.array([math.nan])), "output.shift must be an integer in 0..16"),
        (OutputStage(1.0, clamp=(1, 0)), "output.clamp"),
        (OutputStage(1.0, clamp=(math.nan, 0)), "output.clamp"),
    ],
)
def test_a_wrong_stage_is_refused_by_name(output: OutputStage, message: str):
    x, w = np.zeros((1, 2), np.int8), np.zeros((3, 2), np.int8)
    with pytest.raises(ValueError, match=message):
        inner_product_int8(x, w, output=output)


@pytest.mark.parametrize(
    ("offset", "error"), [(128, ValueError), (-129, ValueError), (1.5, TypeError)]
)
def test_the_offset_of_the_data_must_be_an_int8(offset: float, error: type[Exception]):
    x, w = np.zeros((1, 2), np.int8), np.zeros((3, 2), np.int8)
    with pytest.raises(error, match="x_offset must be"):
        inner_product_int8(x, w, x_offset=offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", sorted({k.isa for k in all_kernels() if runs_here(k)}))
@pytest.mark.parametrize(
    "clamp",
    [
        (1e4, math.inf), (math.inf, math.inf), (-math.inf, -math.inf), (-1e9, -1e8), (1e30, 1e31),
        (-1e4, 1e4), (3e38, math.inf),
    ],
)  # fmt: skip
def test_a_clamp_far_beyond_the_format_is_the_end_of_the_format(monkeypatch, isa: str, clamp):
    monkeypatch.setenv(VARIABLE, isa)
    rng = np.random.default_rng(0)
    x, w = cases.int8s(rng, 1, 20, 9, 9), cases.int8s(rng, 33, 20, 3, 3)
    output = OutputStage(0.003, clamp=clamp, params=QuantParams(0.2, -3))
    ours, wanted = (conv2d_int8(x, w, output=output, device=d) for d in ("cpu", "reference"))
    np.testing.assert_array_equal(ours, wanted)
