"""PyTorch beside this package: the page's example runs, and its own results agree."""

from __future__ import annotations

import re
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import ChannelParams, Observer, QuantParams

torch = pytest.importorskip("torch")
functional = torch.nn.functional
DEVICES = cases.DEVICES

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")


def from_torch() -> list[str]:
    """Return the blocks of code of the page's section."""
    text = (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    section = text.split("## From PyTorch\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_example_of_the_page_runs():
    names: dict[str, Any] = {}
    blocks = from_torch()
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert (names["buffer"].numpy() == names["x_int8"]).all()
    assert (names["faked"].numpy() == kernels.fake_quantize(names["x"], names["params"])).all()
    assert 0 < names["tie"].float().mean() < 0.1 or not names["tie"].any()


def away_from_ties(x: np.ndarray, scale: Any) -> np.ndarray:
    """Keep values whose rounding is no matter of rules: torch rounds halves to even, after 1/s."""
    steps = np.abs(x / scale)
    tie = np.abs(steps - np.floor(steps) - 0.5) < 0.01
    return np.where(tie, np.float32(0), x).astype(np.float32)


@st.composite
def formats(draw: st.DrawFn) -> QuantParams:
    scale = draw(cases.floats32(1e-3, 1e2))
    return QuantParams(scale, draw(st.integers(-128, 127)))


@pytest.mark.parametrize("device", DEVICES)
@cases.examples(60)
@given(st.integers(0, 10**6), formats())
def test_quantizing_a_tensor(device: str, seed: int, p: QuantParams):
    x = cases.normal(np.random.default_rng(seed), 3, 50) * np.float32(100 * p.scale)
    x = torch.from_numpy(away_from_ties(x, p.scale))
    ours = kernels.quantize(x, p, dtype=np.uint8, device=device)
    theirs = torch.quantize_per_tensor(x, p.scale, p.unsigned_zero_point, torch.quint8)
    np.testing.assert_array_equal(ours, theirs.int_repr().numpy())
    back = kernels.dequantize(ours, p, device=device)
    np.testing.assert_array_equal(back, theirs.dequantize().numpy())
    signed = torch.quantize_per_tensor(x, p.scale, p.zero_point, torch.qint8)
    ours = kernels.quantize(x, p, device=device)
    np.testing.assert_array_equal(ours, signed.int_repr().numpy())
    faked = torch.fake_quantize_per_tensor_affine(x, p.scale, p.offset, -128, 127)
    np.testing.assert_array_equal(kernels.fake_quantize(x, p, device=device), faked.numpy())


def test_ties_go_another_way():
    x, p = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), QuantParams(1.0)
    assert kernels.quantize(x, p).tolist() == [1, 2, 3, -1, -2]
    theirs = torch.fake_quantize_per_tensor_affine(x, 1.0, 0, -128, 127)
    assert theirs.tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("bits", [8, 4])
def test_fake_quantizing_channels(axis: int, bits: int, device: str):
    rng = np.random.default_rng(axis + bits)
    x = cases.normal(rng, 4, 4, 4)
    shape = np.moveaxis(np.empty((4, 1, 1)), 0, axis).shape
    scale = rng.uniform(0.01, 0.2, 4).astype(np.float32)
    x = torch.from_numpy(away_from_ties(x, scale.reshape(shape)))
    half = 1 << (bits - 1)
    params = ChannelParams(scale, rng.integers(-half, half, 4), bits, axis)
    theirs = torch.fake_quantize_per_channel_affine(
        x,
        torch.from_numpy(scale),
        torch.from_numpy(params.zero_point.copy()),
        axis % 3,
        params.low,
        params.high,
    )
    np.testing.assert_array_equal(kernels.fake_quantize(x, params, device=device), theirs.numpy())


@cases.examples(40)
@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_observing_extremes(seed: int, shift: float):
    from torch.ao.quantization import MinMaxObserver

    ours, theirs = Observer("minmax"), MinMaxObserver(dtype=torch.quint8)
    for batch in cases.normal(np.random.default_rng(seed), 3, 40) + np.float32(shift):
        x = torch.from_numpy(batch)
        assert ours.observe(x) is x
        theirs(x)
    scale, zero_point = theirs.calculate_qparams()
    params = ours.params()
    assert params.scale == pytest.approx(float(scale), rel=1e-6)
    assert abs(params.unsigned_zero_point - int(zero_point)) <= 1  # a tie there may be


def test_a_hook_may_observe_within_training():
    layer, observer = torch.nn.Linear(4, 3), Observer("minmax")
    layer.register_forward_hook(lambda module, inputs, y: observer.observe(y))
    y = layer(torch.ones(2, 4))
    y.sum().backward()
    assert layer.weight.grad is not None
    assert observer.histogram.high == float(y.detach().max())


# -------------------------------------------------------------------------------------- layers


def ints(*shape: int, seed: int = 0) -> Any:
    return torch.from_numpy(cases.int8s(np.random.default_rng(seed), *shape))


@pytest.mark.parametrize("device", DEVICES)
def test_sums_of_integer_layers(device: str):
    x, w, offset = ints(2, 4, 7, 6), ints(6, 2, 3, 3, seed=1), -7
    bias = torch.arange(6, dtype=torch.int32)
    shifted = x.double() - offset
    ours = kernels.conv2d_int8(x, w, bias, x_offset=offset, stride=2, pad=1, group=2, device=device)
    theirs = functional.conv2d(shifted, w.double(), bias.double(), 2, 1, 1, 2)
    assert (torch.from_numpy(ours) == theirs).all()
    rows, dense = x.reshape(8, 42), ints(5, 42, seed=2)
    ours = kernels.inner_product_int8(rows, dense, x_offset=offset, device=device)
    theirs = functional.linear(rows.double() - offset, dense.double())
    assert (torch.from_numpy(ours) == theirs).all()
    turned = ints(4, 3, 3, 3, seed=3)
    ours = kernels.deconv2d_int8(x, turned, x_offset=offset, stride=2, pad=1, device=device)
    theirs = functional.conv_transpose2d(shifted, turned.double(), None, 2, 1)
    assert (torch.from_numpy(ours) == theirs).all()


@pytest.mark.parametrize("device", DEVICES)
def test_float_layers_and_pooling(device: str):
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(*s, generator=generator) for s in ((2, 4, 7, 6), (6, 4, 3, 3)))
    close = {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in (
        (kernels.conv2d(x, w, pad=1, device=device), functional.conv2d(x, w, padding=1)),
        (
            kernels.max_pool2d(x, 2, stride=2, device=device),
            functional.max_pool2d(x, 2, 2, 0, 1, True),
        ),
        (kernels.avg_pool2d(x, 2, stride=1, device=device), functional.avg_pool2d(x, 2, 1)),
        (kernels.inner_product(x[0, 0], x[0, 1], device=device), x[0, 0] @ x[0, 1].T),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), **close)
