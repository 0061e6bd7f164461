"""Folding leaves the net's outputs as they are, and leaves alone what it must."""

from __future__ import annotations

import numpy as np
import pytest
from layer_nets import with_blobs
from small_nets import samples, small_net

import caffeio
from pipeline.quantize.fuse import fuse
from pipeline.runtime.executor import FloatNet

X = samples(3)


def outputs(net: caffeio.Net, x: np.ndarray, blob: str) -> np.ndarray:
    return FloatNet(net, device="reference").forward({"data": x}, [blob])[blob]


def test_conv_and_deconv_take_in_their_batch_norm_and_scale():
    net = small_net()
    fused = fuse(net)
    assert {f.layer: f.absorbed for f in fused.fusions} == {
        "conv1": ("bn1", "scale1"), "up": ("up_bn", "up_scale"),
    }  # fmt: skip
    assert fused.origin("up") == ("up", "up_bn", "up_scale")
    assert [x.type for x in fused.net.layers].count("BatchNorm") == 0
    for blob in ("conv1", "up_scale", "fc"):
        np.testing.assert_allclose(
            outputs(fused.net, X, blob), outputs(net, X, blob), rtol=1e-4, atol=1e-5
        )


STATS = [np.array([1.5, -2, 0.5, 1]), np.array([0.1, 0.2, -0.3, 0]),
         np.array([0.3, -0.2, 0.1, 0]), np.array([1.0, 2, 3, 0.5])]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "params", "blobs"),
    [
        ("BN", "bn_param { eps: 0.01 }", [b.reshape(1, 4, 1, 1) for b in STATS]),
        ("BN", "bn_param { bn_mode: INFERENCE }", [b.reshape(1, 4, 1, 1) for b in STATS[:2]]),
        ("BatchNorm", "batch_norm_param { scale_bias: true }",
         [STATS[2] * 2, STATS[3] * 2, np.array([2.0]), *STATS[:2]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [False, True])
def test_a_layer_that_normalizes_and_scales_is_folded_by_itself(kind, params, blobs, before):
    conv = (
        'layer { name: "c" type: "Convolution" bottom: "BOTTOM" top: "c" '
        "convolution_param { num_output: 4 kernel_size: 3 bias_term: false } }"
    )
    norm = f'layer {{ name: "b" type: "{kind}" bottom: "BOTTOM" top: "b" {params} }}'
    order = [(norm, "data"), (conv, "b")] if before else [(conv, "data"), (norm, "c")]
    layers = [text.replace("BOTTOM", bottom) for text, bottom in order]
    channels = 4 if before else 3
    text = (
        'name: "n" layer { name: "data" type: "Input" top: "data" input_param '
        f"{{ shape {{ dim: 2 dim: {channels} dim: 6 dim: 5 }} }} }} " + " ".join(layers)
    )
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, channels, 3, 3))
    net = with_blobs(caffeio.parse_net(text), {"c": [weights], "b": blobs})
    fused = fuse(net)
    assert [(f.layer, f.absorbed) for f in fused.fusions] == [("c", ("b",))]
    assert fused.origin("c") == ("c", "b")
    assert [x.type for x in fused.net.layers] == ["Input", "Convolution"]
    x = rng.normal(size=(2, channels, 6, 5)).astype(np.float32)
    blob = "c" if before else "b"
    np.testing.assert_allclose(
        outputs(fused.net, x, blob), outputs(net, x, blob), rtol=1e-4, atol=1e-5
    )
    assert fuse(net, training=True).fusions == ()
    assert fuse(net, ["b"]).fusions == ()


def test_fusion_by_hand():
    text = net_text('layer { name: "c" type: "Convolution" bottom: "data" top: "c" '
                    "convolution_param { num_output: 1 kernel_size: 1 bias_term: true } }")  # fmt: skip
    net = with_blobs(caffeio.parse_net(text), {
        "c": [np.full((1, 3, 1, 1), 2.0), np.array([1.0])],
        "b": [np.array([6.0]), np.array([8.0 - 2e-5]), np.array([2.0])],
        "s": [np.array([10.0]), np.array([0.5])],
    })  # fmt: skip
    conv = fuse(net).net.layer("c")
    # sf = 1/2: mean 3, var + eps 4, k = 10/2 = 5; bias (1 - 3) * 5 + 0.5
    np.testing.assert_allclose(conv.blobs[0], 10.0, rtol=1e-6)
    np.testing.assert_allclose(conv.blobs[1], -9.5, rtol=1e-6)
    assert conv.tops == ("s",)


def net_text(first: str, between: str = "", bottom: str = "c") -> str:
    return (
        'name: "n" layer { name: "data" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }\n" + first + between
        + f'layer {{ name: "b" type: "BatchNorm" bottom: "{bottom}" top: "b" }}'
        'layer { name: "s" type: "Scale" bottom: "b" top: "s" scale_param { bias_term: true } }'
    )  # fmt: skip


NORM = {"b": [np.array([.3, -.2, .1]), np.array([1.0, 2, 3]), np.array([1.0])],
        "s": [np.array([1.5, -2, .5]), np.array([.1, .2, .3])]}  # fmt: skip


@pytest.mark.parametrize(("pad", "group", "folds"), [(0, 1, True), (0, 3, True), (1, 1, False)])
def test_backwards_only_where_nothing_is_padded(pad, group, folds):
    text = (
        'name: "n" layer { name: "data" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }\n"
        'layer { name: "b" type: "BatchNorm" bottom: "data" top: "b" }'
        'layer { name: "s" type: "Scale" bottom: "b" top: "b" scale_param { bias_term: true } }'
        'layer { name: "c" type: "Convolution" bottom: "b" top: "c" convolution_param { '
        f"num_output: 6 kernel_size: 3 pad: {pad} group: {group} bias_term: false }} }}"
    )
    w = np.random.default_rng(0).normal(size=(6, 3 // group, 3, 3))
    net = with_blobs(caffeio.parse_net(text), {**NORM, "c": [w]})
    fused = fuse(net)
    assert bool(fused.fusions) == folds
    np.testing.assert_allclose(
        outputs(fused.net, X, "c"), outputs(net, X, "c"), rtol=1e-4, atol=1e-5
    )


def test_inner_product_takes_them_in():
    first = ('layer { name: "c" type: "InnerProduct" bottom: "data" top: "c" '
             "inner_product_param { num_output: 3 } }")  # fmt: skip
    rng = np.random.default_rng(0)
    blobs = {**NORM, "c": [rng.normal(size=(3, 360)), rng.normal(size=3)]}
    net = with_blobs(caffeio.parse_net(net_text(first)), blobs)
    fused = fuse(net)
    assert [x.name for x in fused.net.layers] == ["data", "c"]
    np.testing.assert_allclose(outputs(fused.net, X, "s"), outputs(net, X, "s"), rtol=1e-4)


CONV3 = ('layer { name: "c" type: "Convolution" bottom: "data" top: "c" %s '
         "convolution_param { num_output: 3 kernel_size: 1 } }")  # fmt: skip


@pytest.mark.parametrize(
    ("first", "between", "bottom", "why"),
    [
        (CONV3 % "", 'layer { name: "r" type: "ReLU" bottom: "c" top: "r" }', "c", "two readers"),
        (CONV3 % "", 'layer { name: "r" type: "ReLU" bottom: "c" top: "c" }', "c", "ReLU between"),
        (
            CONV3 % 'param { name: "shared" }',
            'layer { name: "c2" type: "Convolution" bottom: "data" top: "c2" '
            'param { name: "shared" } convolution_param { num_output: 3 kernel_size: 1 } }',
            "c",
            "shared weights",
        ),
    ],
)
def test_what_must_not_fold_does_not(first, between, bottom, why):
    rng = np.random.default_rng(0)
    conv = [rng.normal(size=(3, 3, 1, 1)), rng.normal(size=3)]
    net = with_blobs(
        caffeio.parse_net(net_text(first, between, bottom)), {**NORM, "c": conv, "c2": conv}
    )
    fused = fuse(net)
    assert not fused.fusions, why
    for blob in net.outputs:
        np.testing.assert_array_equal(outputs(fused.net, X, blob), outputs(net, X, blob))


def test_backwards_not_where_the_input_is_overwritten_meanwhile():
    text = (
        'name: "n" layer { name: "data" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 3 dim: 12 dim: 10 } } }\n"
        'layer { name: "b" type: "BatchNorm" bottom: "data" top: "b" }'
        'layer { name: "s" type: "Scale" bottom: "b" top: "s" scale_param { bias_term: true } }'
        'layer { name: "r" type: "ReLU" bottom: "data" top: "data" }'
        'layer { name: "c" type: "Convolution" bottom: "s" top: "c" convolution_param { '
        "num_output: 2 kernel_size: 1 bias_term: false } }"
    )
    net = with_blobs(caffeio.parse_net(text), {**NORM, "c": [np.ones((2, 3, 1, 1))]})
    fused = fuse(net)
    assert not fused.fusions
    np.testing.assert_array_equal(outputs(fused.net, X, "c"), outputs(net, X, "c"))


@pytest.mark.parametrize("name", ["conv1", "bn1", "scale1"])
def test_layers_named_in_skip_stay(name):
    fused = fuse(small_net(), skip=[name])
    assert [f.layer for f in fused.fusions] == ["up"]


def test_batch_statistics_are_not_folded():
    net = small_net()
    layers = []
    for layer in net.layers:
        if layer.name == "bn1":
            layer.param.batch_norm_param.use_global_stats = False
        layers.append(layer)
    assert [f.layer for f in fuse(net.with_layers(tuple(layers))).fusions] == ["up"]


def test_factor_zero_means_no_mean_and_no_variance():
    blobs = {**NORM, "c": [np.ones((3, 3, 1, 1)), np.zeros(3)]}
    blobs["b"] = [np.ones(3), np.ones(3), np.zeros(1)]
    net = with_blobs(caffeio.parse_net(net_text(CONV3 % "")), blobs)
    np.testing.assert_allclose(
        outputs(fuse(net).net, X, "s"), outputs(net, X, "s"), rtol=1e-4, atol=1e-4
    )
