"""Nets whose data stays on a CUDA device: layers, whole nets, calibration, halved batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDENS
from cuda_simulator import SIMULATED
from layer_nets import forward
from small_nets import samples, small_net, write_job
from test_layers_goldens import load

import kernels
import pipeline
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.eligibility import judge
from pipeline.quantize.fuse import fuse
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.observe import observe
from pipeline.runtime.batching import in_halves
from pipeline.runtime.executor import FloatNet

pytestmark = [
    pytest.mark.skipif(
        not SIMULATED and kernels.best_device()[0] != "cuda",
        reason="needs a CUDA device, or NUMBA_ENABLE_CUDASIM=1",
    ),
    # a device overflows in silence, the simulator's NumPy does not
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]

#: Goldens of layers that have a form on the device, small enough for a simulator.
CASES = [
    "absval_0", "batchnorm_0", "bias_0", "bnll_0", "clip_0", "concat_0", "concat_1", "dropout_0",
    "eltwise_0", "eltwise_1", "eltwise_2", "eltwise_3", "elu_0", "exp_0", "flatten_0",
    "innerproduct_00", "innerproduct_01", "log_0", "lrn_0", "pool_ave_00", "pool_max_00",
    "power_0", "power_1", "prelu_0", "relu_0", "relu_1", "reshape_0", "scale_0", "scale_1",
    "sigmoid_0", "slice_0", "softmax_0", "softmax_1", "swish_0", "tanh_0", "threshold_0",
    "reduction_0",  # has no form there: it runs on the host
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_layers_equal_caffe(case: str, tmp_path: Path):
    net, inputs, expected = load(GOLDENS / "caffe" / f"{case}.npz", tmp_path)
    out = FloatNet(net, device="cuda").forward(inputs)
    for name, want in expected.items():
        assert isinstance(out[name], np.ndarray)
        assert out[name].shape == want.shape
        np.testing.assert_allclose(out[name], want, rtol=1e-4, atol=1e-5)


CHANNEL = np.float32([0.5, -1.5, 2.0])
FORKS = [
    ("BN", "", [(2, 3, 2, 2)], [CHANNEL, CHANNEL, CHANNEL, CHANNEL**2]),
    ("BN", "bn_param { bn_mode: INFERENCE }", [(2, 3)], [CHANNEL, -CHANNEL]),
    ("BN", "bn_param { bn_mode: LEARN }", [(2, 3, 2, 2)], [CHANNEL, -CHANNEL]),
    ("BatchNorm", "batch_norm_param { scale_bias: true }", [(2, 3, 2, 2)],
     [CHANNEL, CHANNEL**2, np.float32([2]), -CHANNEL, CHANNEL]),
    ("BatchNorm", "batch_norm_param { scale_bias: true use_global_stats: false }", [(2, 3, 2, 2)],
     [CHANNEL, CHANNEL**2, np.float32([2]), -CHANNEL, CHANNEL]),
    ("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }", [(2, 3, 2, 2)], []),
    ("Mish", "", [(2, 5)], []),
    ("Transpose", "transpose_param { dim: 3 dim: 0 dim: 2 dim: 1 }", [(2, 3, 2, 2)], []),
    ("Upsample", "upsample_param { height_scale: 2 width_scale: 1 }", [(1, 2, 2, 2)], []),
    ("ConvolutionDepthwise", "convolution_param { num_output: 7 kernel_size: 2 bias_term: false }",
     [(1, 3, 3, 3)], [np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "params", "shapes", "blobs"), FORKS)
def test_layers_of_forks_equal_those_of_the_cpu(kind, params, shapes, blobs):
    rng = np.random.default_rng(0)
    bottoms = [rng.normal(size=s).astype(np.float32) for s in shapes]
    (want,) = forward(kind, params, bottoms, blobs)
    (got,) = forward(kind, params, bottoms, blobs, device="cuda")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def net():
    return small_net()


def test_a_float_net_is_that_of_the_cpu(net):
    x = {"data": samples(1)}
    blobs = ["conv1", "dw", "sum", "up", "avg", "prob"]
    want = FloatNet(net).forward(x, blobs)
    got = FloatNet(net, device="cuda").forward(x, blobs)
    for name in blobs:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_an_integer_net_is_that_of_the_cpu(net, tmp_path):
    record = pipeline.quantize_model(write_job(tmp_path)).record
    x = {"data": samples(1)}
    want = Int8Net(net, record, device="reference").forward(x, ["conv1", "sum", "fc"])
    got = Int8Net(net, record, device="cuda").forward(x, ["conv1", "sum", "fc"])
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5, atol=1e-5)


def test_calibration_sees_what_the_cpu_sees(net):
    fused = fuse(net).net
    plans = {v.layer: LayerPlan(kernels.Ifmr(), False) for v in judge(fused) if v.quantize}
    batches = [{"data": samples(1)}]
    one, two = (observe(FloatNet(fused, device=d), plans, batches, 1) for d in ("cpu", "cuda"))
    assert one.histograms.keys() == two.histograms.keys()
    data = next(value for value in one.histograms if value.blob == "data")
    assert (one.histograms[data].counts == two.histograms[data].counts).all()
    for value, histogram in one.histograms.items():
        assert histogram.total == two.histograms[value].total
        assert two.histograms[value].high == pytest.approx(histogram.high, rel=1e-4)


def test_a_batch_is_halved_where_memory_does_not_suffice():
    sizes: list[int] = []

    def run(inputs):
        sizes.append(len(inputs["x"]))
        if len(inputs["x"]) > 2:
            raise MemoryError("out of memory")
        return {"y": inputs["x"] * 2}

    x = np.arange(7.0)
    with pytest.warns(UserWarning, match="run in halves"):
        found = in_halves(run, {"x": x}, True)
    assert (found["y"] == 2 * x).all()
    assert max(s for s in sizes if s <= 2) == 2
    with pytest.raises(MemoryError):
        in_halves(run, {"x": x}, False)


def test_calibration_halves_a_batch_that_does_not_fit(net, monkeypatch):
    fused = fuse(net).net
    plans = {v.layer: LayerPlan(kernels.MinMax(), False) for v in judge(fused) if v.quantize}
    batches = [{"data": samples(2)}]
    whole = observe(FloatNet(fused), plans, batches, 1)
    count = FloatNet.count

    def narrow(self, inputs, histograms, **more):
        if len(inputs["data"]) > 1:
            raise MemoryError("out of memory")
        return count(self, inputs, histograms, **more)

    monkeypatch.setattr(FloatNet, "count", narrow)
    with pytest.warns(UserWarning, match="batch of 2"):
        halved = observe(FloatNet(fused, device="cuda"), plans, batches, 1)
    assert halved.samples == whole.samples == 2
    data = next(value for value in whole.histograms if value.blob == "data")
    assert (halved.histograms[data].counts == whole.histograms[data].counts).all()
    assert (halved.histograms[data].largest == whole.histograms[data].largest).all()
