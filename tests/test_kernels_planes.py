"""Float convolution from array to array: planes and columns beside the reference and the engine."""

from __future__ import annotations

import kernel_cases as cases
import numba
import numpy as np
import pytest
from differential import before_a_closed_page
from hypothesis import given
from hypothesis import strategies as st

from kernels import conv2d, prepare_conv2d
from kernels.conv import ConvGeometry, _geometry
from kernels.cpu import conv
from kernels.cpu.codegen.microkernels import all_kernels, choice
from kernels.cpu.held import Held

SETS = sorted(
    {k.isa for k in all_kernels() if choice.runs_here(k) and k.operands.data == "float32"}
)


def _at_the_end(values: np.ndarray) -> np.ndarray:
    """Return a copy that ends where memory begins that may not be read."""
    memory = before_a_closed_page(values.nbytes + 64)  # it begins at a cache line
    copy = memory[-values.nbytes :].view(np.float32).reshape(values.shape)
    copy[...] = values
    return copy


@st.composite
def _layers(draw: st.DrawFn):
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, stride, dilation, pad = pair(1, 5), pair(1, 5), pair(1, 3), pair(0, 6)
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, pad, strict=True)]
    size = [n + draw(st.integers(0, 40)) for n in least]
    group, per = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (5, 1), (33, 1)]))
    outs = group if draw(st.booleans()) else group * draw(st.integers(1, 3))
    shapes = (draw(st.integers(1, 2)), group * per, *size), (outs, per, *kernel)
    return *shapes, {"stride": stride, "pad": pad, "dilation": dilation, "group": group}


@pytest.mark.parametrize("isa", SETS)
@cases.examples(60)
@given(
    st.integers(1, 2), st.integers(1, 40), st.integers(1, 33), st.integers(1, 24),
    st.integers(1, 24), st.integers(0, 10**6),
)  # fmt: skip
def test_points_of_every_size(isa: str, n: int, channels: int, outs: int, h: int, w: int, seed):
    rng = np.random.default_rng(seed)
    x, weights = cases.normal(rng, n, channels, h, w), cases.normal(rng, outs, channels, 1, 1)
    bias = cases.normal(rng, outs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFFE_QUANT_ISA", isa)
        ends = (_at_the_end(array) for array in (x, weights, bias))
        got = conv2d(*ends)
    size = conv2d(np.abs(x), np.abs(weights), np.abs(bias), device="reference")
    assert (np.abs(got - conv2d(x, weights, bias, device="reference")) <= 1e-6 * size).all()


@pytest.mark.parametrize("isa", SETS)
@cases.examples(80)
@given(
    st.integers(1, 2), st.integers(1, 9), st.integers(1, 31), st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(0, 4)] * 2), st.tuples(*[st.integers(1, 3)] * 2),
    st.tuples(*[st.integers(0, 20)] * 2), st.integers(0, 10**6),
)  # fmt: skip
def test_windows_of_stride_1(isa: str, n, channels, outs, kernel, pad, dilation, more, seed):
    """Positions beyond the last column are computed and left out; nothing beyond x is read."""
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, pad, strict=True)]
    rng = np.random.default_rng(seed)
    x = cases.normal(rng, n, channels, least[0] + more[0], least[1] + more[1])
    w, bias = cases.normal(rng, outs, channels, *kernel), cases.normal(rng, outs)
    keywords = {"pad": pad, "dilation": dilation}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFFE_QUANT_ISA", isa)
        patch.setattr(conv, "_SMALL", 1 << 30)
        ends = [_at_the_end(array) for array in (x, w, bias)]
        got, prepared = conv2d(*ends, **keywords), prepare_conv2d(x.shape, w, bias, **keywords)(x)
    size = conv2d(np.abs(x), np.abs(w), np.abs(bias), device="reference", **keywords)
    want = conv2d(x, w, bias, device="reference", **keywords)
    assert (np.abs(got - want) <= 1e-6 * size + 1e-30).all()
    assert (np.abs(prepared - want) <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("isa", SETS)
@cases.examples(60)
@given(layer=_layers(), seed=st.integers(0, 10**6))
def test_results_are_those_of_the_reference_and_of_the_engine(isa: str, layer, seed: int):
    x_shape, w_shape, keywords = layer
    rng = np.random.default_rng(seed)
    x, w = cases.normal(rng, *x_shape), cases.normal(rng, *w_shape)
    bias = cases.normal(rng, w_shape[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAFFE_QUANT_ISA", isa)
        got = conv2d(_at_the_end(x), w, bias, **keywords)
        engine = prepare_conv2d(x.shape, w, bias, **keywords)(x)
    size = conv2d(np.abs(x), np.abs(w), np.abs(bias), device="reference", **keywords)
    want = conv2d(x, w, bias, device="reference", **keywords)
    assert (np.abs(got - want) <= 1e-6 * size + 1e-30).all()
    assert (np.abs(got - engine) <= 1e-6 * size + 1e-30).all()


def _geometry_of(x: tuple, w: tuple, **keywords) -> ConvGeometry:
    form = {"stride": 1, "pad": 0, "dilation": 1, "group": 1, **keywords}
    return _geometry(np.empty(x, np.float32), np.empty(w, np.float32), *form.values())


@pytest.mark.parametrize(
    ("x", "w", "keywords"),
    [
        ((2, 8, 14, 14), (8, 1, 3, 3), {"pad": 1, "group": 8}),
        ((2, 8, 15, 14), (8, 1, 5, 3), {"stride": 2, "pad": 2, "group": 8}),
        ((2, 8, 14, 14), (6, 8, 1, 1), {}),
        ((2, 8, 15, 14), (6, 4, 3, 5), {"stride": 3, "pad": 1, "group": 2}),
        ((1, 64, 32, 32), (3, 64, 3, 3), {"pad": 1}),  # more than one strip
    ],
)
def test_the_engine_is_not_asked_and_threads_change_nothing(x, w, keywords, monkeypatch):
    rng = np.random.default_rng(0)
    values = cases.normal(rng, *x), cases.normal(rng, *w), cases.normal(rng, w[0])
    monkeypatch.setattr(conv, "_engine", None)
    wanted, before = conv2d(*values, **keywords), numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(conv2d(*values, **keywords), wanted)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize(
    ("x", "w", "keywords"),
    [
        ((1, 2, 9, 9), (2, 1, 3, 3), {"stride": 5, "group": 2}),  # a stride without machine code
        ((1, 2, 1, 1), (2, 1, 3, 3), {"stride": 2, "pad": 1, "group": 2}),  # a part without image
        ((1, 2, 30, 30), (2, 1, 9, 9), {"group": 2}),  # many taps
        ((1, 256, 224, 224), (2, 256, 3, 3), {"stride": 2}),  # more columns than pay
    ],
)
def test_what_fits_no_way_is_left_to_the_engine(x, w, keywords):
    assert conv._direct(x, np.ones(w, np.float32), _geometry_of(x, w, **keywords), True) is None


@pytest.mark.parametrize(("outs", "per", "group"), [(6, 1, 6), (5, 6, 1)])
def test_a_prepared_layer_keeps_its_weights_and_runs_in_place(outs: int, per: int, group: int):
    rng = np.random.default_rng(3)
    size = 3 if group > 1 else 1
    x, w = cases.normal(rng, 2, 6, 9, 8), cases.normal(rng, outs, per, size, size)
    bias = cases.normal(rng, outs)
    wanted = conv2d(x, w, bias, group=group)
    run = prepare_conv2d(x.shape, w, bias, group=group)
    w[...], bias[...] = 0, 0
    np.testing.assert_array_equal(run(x), wanted)
    with run.in_place() as buffers:
        buffers.source[...] = x.transpose(0, 2, 3, 1)
        buffers.compute()
        got = buffers.result.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_padding_is_zeros_whatever_was_there_before():
    """Rows between two copied planes hold what neither wrote, unless it is cleared."""
    x = np.full((3, 4, 5, 6), 7.0, np.float32)
    w = np.ones((4, 1, 3, 3), np.float32)
    got = conv2d(x, w, pad=(2, 3), group=4)
    np.testing.assert_array_equal(got, conv2d(x, w, pad=(2, 3), group=4, device="reference"))
    assert (got[:, :, 0, 0] == 0).all()


def test_a_plane_is_laid_out_by_the_columns_of_a_stride():
    """Windows 2 apart, a border of one: columns -1, 1, 3, 5 and 0, 2, 4 of an image of 6."""
    held = Held.of(_geometry_of((1, 1, 5, 6), (1, 1, 3, 3), stride=2, pad=1), (5, 6), 4)
    assert (held.rows, held.row, held.first, held.count) == (7, 8, 1, 5)
    # from column 1 of the image to place 1, and from column 0 to the second part's begin
    assert held.parts[:, :3].tolist() == [[1, 1, 3], [0, 4, 3]]
    assert held.taps[:3].tolist() == [0, 4, 1]
