"""Convolutions of low rank: exact at full rank, the best there is for their form, errors as told."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import column_moments, conv2d, decompositions, output_error
from kernels.conv import ConvGeometry

GEOMETRY = {"stride": (2, 1), "pad": (1, 0)}


def draw(seed: int, outs: int, ins: int, kernel: tuple[int, int], samples: int = 3):
    """Weights, inputs whose channels depend on each other, and the covariance of the columns."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(outs, ins, *kernel)).astype(np.float32)
    mix = rng.normal(size=(ins, ins)) * np.geomspace(1, 0.05, ins)
    x = np.einsum("nchw,dc->ndhw", rng.normal(size=(samples, ins, 9, 8)), mix) + 0.5
    x = x.astype(np.float32)
    y = conv2d(x, w, **GEOMETRY)
    size = y.shape[2], y.shape[3]
    g = ConvGeometry(kernel, GEOMETRY["stride"], GEOMETRY["pad"], (1, 1), 1, size)
    moments = column_moments(x, 0, g, np.arange(samples * size[0] * size[1]))
    return w, x, y, moments.covariance()[0]


def both(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Run the two convolutions: each axis' stride and padding goes with that axis of the kernel."""
    if first.shape[2:] == (1, 1) and second.shape[2:] != (1, 1):
        return conv2d(conv2d(x, first), second, **GEOMETRY)
    if second.shape[2:] == (1, 1) and first.shape[2] * first.shape[3] > 1 and first.shape[3] > 1:
        return conv2d(conv2d(x, first, **GEOMETRY), second)
    if second.shape[2:] == (1, 1):  # a kernel of one column, or of one point
        return conv2d(conv2d(x, first, **GEOMETRY), second)
    between = conv2d(x, first, stride=(2, 1), pad=(1, 0))
    return conv2d(between, second, stride=(1, 1), pad=(0, 0))


def noise(exact: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """The relative error, each channel's own mean taken off: the bias can mend that."""
    d = weight[None, :, None, None]
    parts = (a - a.mean(axis=(0, 2, 3), keepdims=True) for a in (d * (exact - y), d * exact))
    n, s = (float((a.astype(np.float64) ** 2).sum()) for a in parts)
    return float(np.sqrt(n / s))


@cases.examples(40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), cases.pairs(1, 3))
def test_a_full_rank_is_the_convolution_itself(seed, outs, ins, kernel):
    w, x, y, c = draw(seed, outs, ins, kernel)
    forms = decompositions(w, c)
    square = kernel[0] > 1 and kernel[1] > 1
    assert ("rows, columns" in forms) == square
    assert ("narrow, full" in forms) == (kernel != (1, 1))
    for low in forms.values():
        whole = len(low.first)
        first, second = low.cut(whole)
        assert low.product(whole) == pytest.approx(w, abs=1e-4)
        np.testing.assert_allclose(both(x, first, second), y, atol=2e-3)
        assert output_error(w, low.product(whole), c) < 1e-4
        assert low.left[0] == 1
        assert (np.diff(low.left) <= 1e-12).all()


@cases.examples(40)
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 4), cases.pairs(1, 3), st.data()
)
def test_the_error_is_that_of_the_output(seed, outs, ins, kernel, data):
    w, x, y, c = draw(seed, outs, ins, kernel)
    weight = np.random.default_rng(seed).uniform(0.5, 2, outs)
    forms = decompositions(w, c, weight)
    low = forms[data.draw(st.sampled_from(sorted(forms)))]
    rank = data.draw(st.integers(1, len(low.first)))
    error = output_error(w, low.product(rank), c, weight)
    assert error == pytest.approx(noise(y, both(x, *low.cut(rank)), weight), rel=1e-2, abs=1e-4)


@cases.examples(30)
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 4), cases.pairs(1, 3), st.data()
)
def test_by_outputs_no_rank_does_better(seed, outs, ins, kernel, data):
    """The principal axes are optimal: their error is told exactly, and random others do worse."""
    w, _, _, c = draw(seed, outs, ins, kernel)
    low = decompositions(w, c)["full, narrow"]
    rank = data.draw(st.integers(1, outs - 1))
    error = output_error(w, low.product(rank), c)
    assert error == pytest.approx(low.left[rank], rel=1e-6, abs=1e-7)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        axes = np.linalg.qr(rng.normal(size=(outs, rank)))[0]
        other = np.einsum("or,pr,pikl->oikl", axes, axes, w.astype(np.float64))
        assert error <= output_error(w, other, c) + 1e-9


def test_data_serve_better_than_weights_alone():
    w, _, _, c = draw(5, 12, 8, (3, 3), samples=8)
    alone = decompositions(w, np.eye(len(c)))
    for form, low in decompositions(w, c).items():
        rank = 4
        by_data, by_weights = (output_error(w, f.product(rank), c) for f in (low, alone[form]))
        assert by_data < 0.9 * by_weights, form


def test_separable_weights_need_one_channel():
    rng = np.random.default_rng(1)
    column, row = rng.normal(size=(1, 5, 3, 1)), rng.normal(size=(4, 1, 1, 3))
    w = np.einsum("riyx,orYX->oiyX", column, row).astype(np.float32)
    low = decompositions(w, np.eye(45))["rows, columns"]
    assert low.left[1] < 1e-6
    np.testing.assert_allclose(low.product(1), w, atol=1e-5)


def test_data_that_never_vary_and_dead_weights():
    w = np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32)
    for covariance in (np.zeros((18, 18)), np.eye(18)):
        for weights in (w, np.zeros_like(w)):
            for low in decompositions(weights, covariance).values():
                first, second = low.cut(2)
                assert np.isfinite(first).all()
                assert np.isfinite(second).all()
    assert output_error(w, w, np.eye(18)) == 0
    assert output_error(np.zeros_like(w), w, np.eye(18)) == np.inf


@pytest.mark.parametrize(
    ("w", "c", "d", "says"),
    [
        (np.zeros((2, 2, 3, 3), np.float32), np.eye(17), None, "covariance must be"),
        (np.zeros((2, 2, 3, 3), np.float32), np.eye(18), np.ones(3), "weight must be"),
        (np.zeros((2, 2, 3, 3), np.float32), np.eye(18), np.zeros(2), "weight must be"),
    ],
)
def test_wrong_shapes_are_refused(w, c, d, says):
    with pytest.raises(ValueError, match=says):
        decompositions(w, c, d)
