"""Eligibility, records, integers, and the models made of them."""

from __future__ import annotations

import json

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_nets import one_layer, with_blobs
from small_nets import samples, small_net

import caffeio
import kernels
from caffeio.record import LayerRecord, Record
from kernels import QuantParams
from pipeline.config.calibrate import CalibrateConfig
from pipeline.errors import PipelineError
from pipeline.layers.int8 import QuantizedLayer
from pipeline.quantize.eligibility import judge
from pipeline.quantize.export import deploy_net, fakequant_net, node_map
from pipeline.quantize.fuse import fuse
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.integers import (
    layer_record,
    quantize_layer,
    quantize_layers,
    reciprocal,
    with_data,
)
from pipeline.quantize.load import integers_of
from pipeline.quantize.prepare import prepare_layers
from pipeline.runtime.executor import FloatNet

X = samples(4)


def record_for(net: caffeio.Net, x: np.ndarray, channel_wise: bool = True) -> Record:
    """Return factors by min-max for every eligible layer of a fused net."""
    wanted = {v.layer for v in judge(net) if v.quantize}
    found: dict[str, LayerRecord] = {}

    def watch(i, layer, bottoms, tops):
        if layer.name in wanted:
            low, high = float(bottoms[0].min()), float(bottoms[0].max())
            data = kernels.params_from_range(low, high)
            wise = channel_wise and layer.type in ("Convolution", "Deconvolution")
            found[layer.name] = layer_record(
                layer, data, channel_wise=wise, shape=bottoms[0].shape, skip_fusion=False
            )

    FloatNet(net).forward({"data": x}, observer=watch)
    return Record(found)


@pytest.fixture(scope="module")
def net():
    return small_net()


@pytest.fixture(scope="module")
def record(net):
    return record_for(fuse(net).net, X)


CASES = [
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 }", ""),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 dilation: 2 }", "dilation is 2"),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 }", ""),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 group: 2 }", "group is 2"),
    ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 dilation: 2 }", "dilation"),
    ("InnerProduct", "inner_product_param { num_output: 4 }", ""),
    ("InnerProduct", "inner_product_param { num_output: 4 transpose: true }", "transpose"),
    ("InnerProduct", "inner_product_param { num_output: 4 axis: 2 }", "axis is 2"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 2 }", ""),
    ("Pooling", "pooling_param { pool: AVE global_pooling: true }", "global_pooling"),
    ("Pooling", "pooling_param { pool: MAX kernel_size: 2 }", "MAX"),
    ("ReLU", "", "ReLU has no INT8 form"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "params", "rule"), CASES)
def test_every_exclusion_is_explained(kind, params, rule):
    verdict = judge(one_layer(kind, params, [(1, 4, 6, 6)]))[-1]
    assert verdict.quantize == (not rule)
    assert rule in verdict.reason


def test_skips_are_explained(net):
    verdicts = {v.layer: v for v in judge(net, ["dw"], ["InnerProduct"])}
    assert verdicts["dw"].reason == "named in skip_layers"
    assert verdicts["fc"].reason == "InnerProduct is named in skip_layer_types"
    assert verdicts["branch"].quantize


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.floats(2.0**-22, 2.0**22, width=32))
def test_reciprocal_reads_back_where_it_can(scale):
    s = np.float32(scale)
    back = np.float32(1.0 / np.float64(np.float32(reciprocal(float(s)))))
    near = np.float32(1.0 / np.float64(s))
    window = [near]
    for direction in (np.float32(0), np.float32(np.inf)):
        value = near
        for _ in range(4):
            value = np.nextafter(value, direction)
            window.append(value)
    if any(np.float32(1.0 / np.float64(v)) == s for v in window):
        assert back == s
    assert abs(float(back) - float(s)) <= float(np.spacing(s))


def test_bias_is_rounded_half_away_in_units_of_the_sums():
    layer = with_blobs(
        one_layer("InnerProduct", "inner_product_param { num_output: 4 }", [(1, 2)]),
        {"l": [np.ones((4, 2)), np.array([0.5, -0.5, 1.49, 100.0]) * 0.25]},
    ).layer("l")
    q = quantize_layer(layer, LayerRecord(0.5, 0, (0.5,), (0,)))
    assert q.bias.dtype == np.int32
    assert q.bias.tolist() == [1, -1, 1, 100]


def test_a_bias_beyond_int32_names_layer_and_cure():
    layer = with_blobs(
        one_layer("InnerProduct", "inner_product_param { num_output: 2 }", [(1, 2)]),
        {"l": [np.ones((2, 2)), np.array([0.0, 1e9])]},
    ).layer("l")
    with pytest.raises(PipelineError, match=r"'l'.*channel 1.*skip_layers"):
        quantize_layer(layer, LayerRecord(1e-3, 0, (1e-3,), (0,)))


WIDE = kernels.ANY_PRODUCTS + 1


def wide(kind: str, weights: np.ndarray, bias: tuple[float, ...] = ()) -> caffeio.Net:
    """A layer "l" of one output that sums so many products."""
    size = weights.size
    rows = "bias_term: false" if not bias else ""
    params, shape, blob = {
        "InnerProduct": (f"inner_product_param {{ num_output: 1 {rows} }}", (1, size), (1, size)),
        "Convolution": (
            f"convolution_param {{ num_output: 1 kernel_size: 1 {rows} }}",
            (1, size, 1, 1), (1, size, 1, 1),
        ),
        "Deconvolution": (
            f"convolution_param {{ num_output: 1 kernel_size: 1 {rows} }}",
            (1, size, 1, 1), (size, 1, 1, 1),
        ),
        "old InnerProduct": (
            f"inner_product_param {{ num_output: 1 {rows} }}", (1, size), (1, 1, 1, size),
        ),
    }[kind]  # fmt: skip
    blobs = [weights.reshape(blob), *([np.array(bias)] if bias else [])]
    return with_blobs(one_layer(kind.rsplit(maxsplit=1)[-1], params, [shape]), {"l": blobs})


@pytest.mark.parametrize(
    "kind", ["InnerProduct", "old InnerProduct", "Convolution", "Deconvolution"]
)
def test_a_layer_too_wide_for_int32_is_refused_when_layers_are_chosen(kind: str):
    refused = (
        rf"layer 'l': output channel 0 could sum up to \d+ over {WIDE + 600} products, beyond "
        rf"int32, which has room for any {WIDE - 1}; .*name it in skip_layers"
    )
    net = wide(kind, np.full(WIDE + 600, -1.0))
    with pytest.raises(PipelineError, match=refused):
        prepare_layers(net, CalibrateConfig())
    with pytest.raises(PipelineError, match="no layer to quantize"):  # it is left in float
        prepare_layers(net, CalibrateConfig(skip_layers=("l",)))
    # by a record's factors there is no choice of layers: the same words
    record = LayerRecord(0.5, 0, (1 / 128,), (0,))
    with pytest.raises(PipelineError, match=refused):
        quantize_layer(net.layer("l"), record)


def test_a_quantized_model_too_wide_for_int32_names_the_layer_when_it_is_read():
    net, one = wide("InnerProduct", np.full(WIDE, -1.0)), np.ones(1, np.float32)
    weights = np.full((1, WIDE), -128, np.int8)
    q = QuantizedLayer(
        "l", "InnerProduct", QuantParams(0.5, 0), one, weights, None, np.zeros(1, np.uint8)
    )
    with pytest.raises(caffeio.NetError, match=f"layer 'l': .* over {WIDE} products"):
        integers_of(deploy_net(net, {"l": q}))


def test_a_wide_layer_of_small_weights_is_not_refused():
    weights = np.full(WIDE + 600, 0.01)
    weights[0] = 1.0
    net = wide("InnerProduct", weights)
    assert "l" in prepare_layers(net, CalibrateConfig()).plans
    x = np.ones((1, weights.size), np.float32)
    record = LayerRecord(1 / 127, 0, (1 / 127,), (0,))
    for device in ("reference", "cpu"):
        (y,) = (
            Int8Net.of_fused(net, Record({"l": record}), device=device).forward({"x0": x}).values()
        )
        assert y[0, 0] == pytest.approx((127 + (WIDE + 599)) / 127, rel=1e-6)


def test_sums_that_the_bias_takes_beyond_int32_name_the_layer():
    net = wide("InnerProduct", np.full(WIDE - 1, -1.0), (-1000.0,))
    prepare_layers(net, CalibrateConfig())  # without the data's scale nothing is known of the bias
    with pytest.raises(PipelineError, match="layer 'l': output channel 0 could sum up to"):
        quantize_layer(net.layer("l"), LayerRecord(1e-3, 0, (1 / 128,), (0,)))


def test_nan_weights_name_the_layer():
    layer = with_blobs(
        one_layer("InnerProduct", "inner_product_param { num_output: 2 }", [(1, 2)]),
        {"l": [np.array([[1, np.nan], [1, 1]]), np.zeros(2)]},
    ).layer("l")
    with pytest.raises(PipelineError, match=r"'l'.*NaN.*skip_layers"):
        layer_record(layer, QuantParams(1.0), channel_wise=False, shape=(1, 2), skip_fusion=False)


def test_a_record_of_another_net_is_refused(net):
    with pytest.raises(PipelineError, match="'nowhere'"):
        Int8Net(net, Record({"nowhere": LayerRecord(1.0, 0, (1.0,), (0,))}))
    with pytest.raises(PipelineError, match=r"'dw'.*3 scales"):
        Int8Net(net, Record({"dw": LayerRecord(1.0, 0, (1.0,) * 3, (0,) * 3)}))


def test_deconvolution_scales_lie_on_axis_1(net):
    layer = fuse(net).net.layer("up")
    rec = layer_record(
        layer, QuantParams(1.0), channel_wise=True, shape=(1, 4, 7, 6), skip_fusion=False
    )
    w = layer.blobs[0]
    for o, scale in enumerate(rec.scale_w):
        extreme = max(w[:, o].ravel(), key=abs)
        assert scale == pytest.approx(extreme / (127 if extreme > 0 else -128), rel=1e-6)


@pytest.mark.parametrize("channel_wise", [True, False])
def test_integer_net_equals_the_simulation_and_all_devices_agree(net, channel_wise):
    fused = fuse(net)
    record = record_for(fused.net, X, channel_wise)
    steps = {fused.net.layer(name).bottoms[0]: r.scale_d for name, r in record.layers.items()}
    simulation = FloatNet(fakequant_net(fused.net, quantize_layers(fused.net, record)))
    blobs = ["conv1", "dw", "branch", "sum", "up_scale", "avg", "max", "fc", "prob"]
    faked = simulation.forward({"data": X}, blobs)
    found = {d: Int8Net(net, record, device=d).forward({"data": X}, blobs) for d in cases.DEVICES}
    for blob in blobs:
        np.testing.assert_array_equal(found["cpu"][blob], found["reference"][blob])
        step = steps.get(blob, np.abs(faked[blob]).max() / 255)
        assert np.abs(found["cpu"][blob] - faked[blob]).max() <= step * 1.001, blob


def test_each_integer_layer_equals_its_simulation_on_the_same_data(net, record):
    """Layer by layer, on the integer net's own data, where no rounding flips add up."""
    fused = fuse(net)
    int8 = Int8Net(net, record)
    faked = {x.name: x for x in fakequant_net(fused.net, int8.layers).layers}
    from pipeline.layers import layer_type

    def watch(i, layer, bottoms, tops):
        q = int8.layers.get(layer.name)
        if q is not None:
            x = kernels.fake_quantize(bottoms[0], q.data)
            (y,) = layer_type(layer).forward(faked[layer.name], [x], "reference")
            np.testing.assert_allclose(tops[0], y, rtol=1e-4, atol=1e-5 * np.abs(y).max())

    int8.forward({"data": X}, observer=watch)


def test_layers_that_read_the_same_value_share_a_quant_layer(net, record):
    fused = fuse(net)
    layers = quantize_layers(fused.net, record)
    model = fakequant_net(fused.net, layers)
    quants = [x for x in model.layers if x.type == "Quant"]
    # dw and branch both read conv1 after its ReLU
    assert [x.name for x in quants] == [
        "conv1_quant",
        "dw_quant",
        "up_quant",
        "avg_quant",
        "fc_quant",
    ]
    assert quants[1].param.quant_param.object_layer == "dw-branch"
    nodes = {n.quantized: n for n in node_map(fused, layers)}
    assert nodes["branch"].quant == "dw_quant"
    assert nodes["up"].original == ("up", "up_bn", "up_scale")
    assert nodes["up"].dequant == "up_dequant"


def test_fakequant_holds_weights_on_their_grid(net, record):
    fused = fuse(net)
    model = fakequant_net(fused.net, quantize_layers(fused.net, record))
    for name, factors in record.layers.items():
        layer = model.layer(name)
        if not layer.blobs:
            continue
        w = layer.blobs[0] if layer.type != "Deconvolution" else layer.blobs[0].swapaxes(0, 1)
        steps = w.reshape(len(w), -1) / np.array(factors.scale_w)[:, None]
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        assert np.abs(steps).max() <= 128


def test_written_models_read_back_alike(net, record, tmp_path):
    fused = fuse(net)
    layers = quantize_layers(fused.net, record)
    model = fakequant_net(fused.net, layers)
    caffeio.write_prototxt(model, tmp_path / "m.prototxt")
    caffeio.write_caffemodel(model, tmp_path / "m.caffemodel")
    back = caffeio.read_net(tmp_path / "m.prototxt", tmp_path / "m.caffemodel")
    assert not back.notes
    one, two = (FloatNet(m).forward({"data": X})["prob"] for m in (model, back))
    np.testing.assert_array_equal(one, two)


def test_deploy_holds_the_integers(net, record, tmp_path):
    fused = fuse(net)
    layers = quantize_layers(fused.net, record)
    model = deploy_net(fused.net, layers)
    caffeio.write_prototxt(model, tmp_path / "m.prototxt")
    caffeio.write_caffemodel(model, tmp_path / "m.caffemodel")
    back = caffeio.read_net(tmp_path / "m.prototxt", tmp_path / "m.caffemodel")
    for name, q in layers.items():
        packed = back.layer(f"{name}_dequant").blobs[0]
        assert packed.dtype == np.uint64
        scales = (packed & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(scales, q.deq_scale)
        assert not (packed >> np.uint64(32)).any()
        if q.weights is not None:
            np.testing.assert_array_equal(back.layer(name).blobs[0], q.weights)
            np.testing.assert_array_equal(back.layer(name).blobs[1], q.bias)
            assert back.layer(name).blobs[0].dtype == np.int8
    offset = back.layer("conv1_quant").param.quant_param.offset
    assert np.frombuffer(offset, np.int8)[0] == record.layers["conv1"].offset_d


def test_shifts_of_a_record_are_simulated_alike(net, record):
    shifted = {
        name: LayerRecord(r.scale_d, r.offset_d, r.scale_w, r.offset_w, (3,) * len(r.scale_w))
        for name, r in record.layers.items()
        if name == "dw"
    }
    fused = fuse(net)
    simulation = FloatNet(fakequant_net(fused.net, quantize_layers(fused.net, Record(shifted))))
    int8 = Int8Net(net, Record(shifted))
    plain = Int8Net(net, Record({"dw": record.layers["dw"]})).forward({"data": X}, ["dw"])["dw"]
    found = int8.forward({"data": X}, ["dw"])["dw"]
    step = int8.layers["dw"].deq_scale.max() * 8
    assert 0 < np.abs(found - plain).max() <= step
    faked = simulation.forward({"data": X}, ["dw"])["dw"]
    assert (np.abs(found - faked) > step * 0.01).mean() < 1e-3


def test_node_map_is_plain_json(net, record):
    from dataclasses import asdict

    fused = fuse(net)
    nodes = [asdict(n) for n in node_map(fused, quantize_layers(fused.net, record))]
    assert json.loads(json.dumps(nodes))[0]["original"] == ["conv1", "bn1", "scale1"]


@settings(max_examples=300, deadline=None)
@given(cases.floats32(1e-6, 1e5))
def test_a_recorded_scale_is_what_its_reciprocal_reads_back_as(scale: float):
    record = with_data(LayerRecord(1.0, 0, (), ()), QuantParams(scale, 3))
    assert record.offset_d == 3
    found = np.float32(record.scale_d)
    read_back = np.float32(1.0 / np.float64(np.float32(reciprocal(record.scale_d))))
    assert read_back == found
    assert abs(int(found.view(np.int32)) - int(np.float32(scale).view(np.int32))) <= 1
