"""Wrong parameters, weights and bottoms: each gives one error with the layer and the cure."""

from __future__ import annotations

import re

import numpy as np
import pytest
from layer_nets import one_layer

import caffeio
from caffeio.errors import NetError
from pipeline.layers import TABLE, layer_type, why_unknown
from pipeline.layers.source import declared_shapes
from pipeline.runtime.executor import FloatNet

X = (2, 4, 6, 5)
K = "kernel_size: 3"
CONV = "num_output: 8 kernel_size: 3"
W = (8, 4, 3, 3)

#: type, parameters, bottoms, weights, tops, what the error says
WRONG = [
    ("ReLU", "", [X, X], [], 1, "needs 1 bottom, has 2"),
    ("ReLU", "", [X], [], 2, "needs 1 top, has 2"),
    ("Silence", "", [X], [], 1, "needs 0 tops, has 1"),
    ("Eltwise", "", [X], [], 1, "needs at least 2 bottoms"),
    ("Eltwise", "", [X, (2, 4, 6, 6)], [], 1, "they must be equal"),
    ("Eltwise", "eltwise_param { coeff: 1 }", [X, X], [], 1, "1 coeff for 2 bottoms"),
    ("Eltwise", "eltwise_param { operation: MAX coeff: 1 coeff: 1 }", [X, X], [], 1, "SUM only"),
    ("Clip", "clip_param { min: 2 max: 1 }", [X], [], 1, "min 2 is above max 1"),
    ("Log", "log_param { base: 1 }", [X], [], 1, "base 1 has no logarithm"),
    ("Exp", "exp_param { base: -3 }", [X], [], 1, "base -3 must be positive"),
    ("Softmax", "softmax_param { axis: 4 }", [X], [], 1, "axis 4 is out of range.*4 axes"),
    ("PReLU", "", [X], [(3,)], 1, r"slope has shape \(3,\), needs \(4,\)"),
    ("PReLU", "", [X], [], 1, r"needs 1 weight blob \(slope \(4,\)\), has 0; give the caffemodel"),
    (
        "Convolution",
        f"convolution_param {{ {CONV} }}",
        [X],
        [(8, 3, 3, 3), (8,)],
        1,
        r"weights has shape \(8, 3, 3, 3\), needs \(8, 4, 3, 3\)",
    ),
    ("Convolution", f"convolution_param {{ {CONV} }}", [X], [W], 1, r"needs 2 weight blobs.*has 1"),
    (
        "Convolution",
        f"convolution_param {{ {CONV} bias_term: false }}",
        [X],
        [W, (8,)],
        1,
        "needs 1 weight blob .*has 2",
    ),
    ("Convolution", f"convolution_param {{ {K} }}", [X], [W], 1, "num_output > 0"),
    (
        "Convolution",
        "convolution_param { num_output: 8 }",
        [X],
        [W],
        1,
        "gives kernel_size 0 times",
    ),
    (
        "Convolution",
        f"convolution_param {{ {CONV} kernel_h: 3 kernel_w: 3 }}",
        [X],
        [W],
        1,
        "not both",
    ),
    (
        "Convolution",
        f"convolution_param {{ {CONV} kernel_size: 3 kernel_size: 3 }}",
        [X],
        [W],
        1,
        "gives kernel_size 3 times",
    ),
    ("Convolution", f"convolution_param {{ {CONV} stride: 0 }}", [X], [W], 1, "must be positive"),
    ("Convolution", f"convolution_param {{ {CONV} group: 3 }}", [X], [W], 1, "group 3 must divide"),
    (
        "Convolution",
        "convolution_param { num_output: 8 kernel_size: 7 bias_term: false }",
        [X],
        [(8, 4, 7, 7)],
        1,
        r"kernel extent 7 is larger than the padded size 6.*bottom 'x0'",
    ),
    (
        "Convolution",
        f"convolution_param {{ {CONV} kernel_h: 1 }}",
        [(1, 4, 5)],
        [W],
        1,
        "for two spatial axes, not 1",
    ),
    (
        "Deconvolution",
        f"convolution_param {{ {CONV} }}",
        [X],
        [W, (8,)],
        1,
        r"needs \(4, 8, 3, 3\)",
    ),
    ("Pooling", "", [X], [], 1, "needs kernel_size"),
    ("Pooling", "pooling_param { kernel_h: 2 }", [X], [], 1, "give both kernel_h and kernel_w"),
    ("Pooling", "pooling_param { kernel_size: 2 pad: 2 }", [X], [], 1, "pad 2 must be less"),
    ("Pooling", "pooling_param { kernel_size: 9 }", [X], [], 1, "larger than the padded size"),
    ("Pooling", "pooling_param { global_pooling: true kernel_size: 2 }", [X], [], 1, "whole image"),
    ("Pooling", "pooling_param { kernel_size: 2 }", [(2, 4, 6)], [], 1, "needs 4 axes"),
    ("Pooling", "pooling_param { kernel_size: 2 pool: AVE }", [X], [], 2, "only MAX"),
    (
        "InnerProduct",
        "inner_product_param { num_output: 3 }",
        [X],
        [(3, 100), (3,)],
        1,
        r"weights has shape \(3, 100\), needs \(3, 120\)",
    ),
    ("InnerProduct", "inner_product_param { num_output: 3 axis: 5 }", [X], [], 1, "out of range"),
    ("BatchNorm", "", [X], [(4,), (4,)], 1, r"needs 3 weight blobs \(mean \(4,\)"),
    ("Scale", "scale_param { axis: 1 num_axes: 4 }", [X], [], 1, "reach beyond the 4 axes"),
    ("Scale", "", [X, (5, 4)], [], 1, "from axis 1 on"),
    ("LRN", "lrn_param { local_size: 4 }", [X], [], 1, "local_size 4 must be odd"),
    ("Concat", "", [X, (2, 4, 7, 5)], [], 1, r"bottom 'x1' .*differ in axis 1 only"),
    ("Concat", "concat_param { axis: 1 concat_dim: 1 }", [X, X], [], 1, "not both"),
    ("Slice", "slice_param { slice_point: 1 }", [X], [], 3, "3 tops need 2 slice_point, not 1"),
    ("Slice", "slice_param { slice_point: 4 }", [X], [], 2, "must rise from above 0 to below 4"),
    ("Slice", "", [X], [], 3, "3 tops do not divide axis 1 of size 4"),
    ("Flatten", "flatten_param { axis: 2 end_axis: 1 }", [X], [], 1, "lies behind end_axis"),
    ("Reshape", "reshape_param { shape { dim: 7 dim: -1 } }", [X], [], 1, "does not divide"),
    ("Reshape", "reshape_param { shape { dim: 7 } }", [X], [], 1, r"\(240 values\) to \(7,\)"),
    ("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }", [X], [], 1, "one -1"),
    ("Crop", "", [X, (2, 4, 7, 5)], [], 1, "cannot crop 7 values at offset 0 from axis 2"),
    ("Crop", "crop_param { axis: 1 offset: 1 offset: 1 }", [X, X], [], 1, "gives 2 offset"),
    ("Tile", "", [X], [], 1, "needs tiles > 0"),
    ("ArgMax", "argmax_param { top_k: 5 axis: 1 }", [X], [], 1, "top_k 5 must be 1 to 4"),
    ("BatchReindex", "", [X, (3, 1)], [], 1, "must be a list of indices"),
    ("Filter", "", [X, (3,)], [], 1, "its first axis must be that of the selector, 3"),
    ("SoftmaxWithLoss", "", [(3, 5), (4,)], [], 1, "need 3 labels"),
    ("Accuracy", "accuracy_param { top_k: 6 }", [(3, 5), (3,)], [], 1, "top_k 6 must be 1 to 5"),
    ("EuclideanLoss", "", [(3, 5), (3, 4)], [], 1, "the same number of values"),
    ("LSTM", "recurrent_param { num_output: 3 }", [(4, 2, 5), (4, 3)], [], 1, r"must be \(4, 2\)"),
    (
        "LSTM",
        "recurrent_param { num_output: 3 }",
        [(4, 2, 5), (4, 2)],
        [(12, 5), (12,)],
        1,
        r"hidden_weights \(12, 3\)",
    ),
    ("Permute", "permute_param { order: 1 order: 1 }", [X], [], 1, "different axes"),
    ("ShuffleChannel", "shuffle_channel_param { group: 3 }", [X], [], 1, "group 3 must divide"),
    ("Reorg", "reorg_param { stride: 2 }", [(1, 4, 5, 4)], [], 1, "must divide the 5 x 4"),
    ("BN", "", [X], [], 1, "needs 4 weight blobs"),
    ("BN", "bn_param { bn_mode: INFERENCE }", [X], [], 1, "needs 2 weight blobs"),
    ("BN", "", [X], [(3,)], 1, "slope, bias, mean and variance"),
    ("Upsample", "", [X], [], 1, "needs scale or stride"),
    ("Upsample", "upsample_param { scale: 1.5 }", [X], [], 1, "whole numbers"),
    ("Interp", "", [X], [], 1, "needs height and width"),
    ("Interp", "interp_param { pad_beg: 1 zoom_factor: 2 }", [X], [], 1, "can only crop"),
    ("PriorBox", "", [X, X], [], 1, "needs min_size > 0"),
    (
        "DetectionOutput",
        "detection_output_param { num_classes: 2 }",
        [(1, 8), (1, 5), (1, 2, 8)],
        [],
        1,
        "2 prior boxes need 4 values",
    ),
    (
        "ROIPooling",
        "roi_pooling_param { pooled_h: 2 pooled_w: 2 }",
        [X, (3, 4)],
        [],
        1,
        "five numbers",
    ),
    ("Quant", "", [X], [], 1, "needs a positive scale"),
    ("Quant", 'quant_param { scale: 1 offset: "ab" }', [X], [], 1, "holds 2 bytes, needs one"),
    ("DeQuant", "dequant_param { channel_wise: true }", [X], [(4,), (4,), (3,)], 1, "offset_w"),
    ("DummyData", "", [], [], 1, "dummy_data_param needs shape"),
    ("Parameter", "parameter_param { shape { dim: 3 } }", [], [(2,)], 1, "parameter has shape"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda c: f"{c[0]}-{c[5][:24]}")
def test_error_names_the_layer_and_the_cure(case):
    kind, params, bottoms, blobs, tops, message = case
    net = one_layer(kind, params, bottoms, [np.ones(b, np.float32) for b in blobs], tops)
    with pytest.raises(NetError, match=f"^layer 'l': .*{message}") as caught:
        FloatNet(net).shapes()
    assert caught.value.layer == "l"


def test_a_type_in_the_wrong_case_is_refused():
    with pytest.raises(
        NetError, match=r"layer 'l': type 'relu' is not known: it is spelled 'ReLU'"
    ):
        FloatNet(one_layer("relu", "", [X]))


def test_with_parameters_of_its_own_it_is_another_type():
    layer = one_layer("Lstm", "lstm_fork_param { num_output: 3 }", [X]).layer("l")
    assert not layer_type(layer).computes
    with pytest.raises(NetError, match="it is spelled 'LSTM'"):
        layer_type(one_layer("Lstm", "", [X]).layer("l"))


@pytest.mark.parametrize(
    ("kind", "hint"), [("Convolutoin", r" \(is 'Convolution' meant\?\)"), ("BN", ""), ("My", "")]
)
def test_a_slip_in_a_type_is_named(kind: str, hint: str):
    layer = one_layer(kind, "", [X]).layer("l")
    assert re.match(f"type '{kind}' is not known{hint}; give its computation", why_unknown(layer))


def test_a_layer_that_lacks_its_bottoms_is_no_input():
    net = caffeio.parse_net('layer { name: "c" type: "ReLU" top: "y" }')
    with pytest.raises(NetError, match="layer 'c': a ReLU layer needs 1 bottom"):
        FloatNet(net)


@pytest.mark.parametrize(
    ("kind", "why"),
    [("Python", "outside the model"), ("HDF5Output", "writes its bottoms to a file")],
)
def test_types_that_no_model_holds_say_why(kind: str, why: str):
    assert why in why_unknown(one_layer(kind, "", [X]).layer("l"))


def test_all_types_of_caffe_are_known():
    caffe = """AbsVal Accuracy ArgMax BatchNorm BatchReindex Bias BNLL Clip Concat ContrastiveLoss
    Convolution Crop Data Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp
    Filter Flatten HDF5Data HingeLoss Im2col ImageData InfogainLoss InnerProduct Input Log LRN
    LSTM MemoryData MultinomialLogisticLoss MVN Parameter Pooling Power PReLU ReLU Reduction
    Reshape RNN Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax SoftmaxWithLoss Split
    SPP Swish TanH Threshold Tile WindowData"""
    forks = """ReLU6 DepthwiseConvolution ConvolutionDepthwise Permute Normalize PriorBox
    DetectionOutput Upsample Interp ShuffleChannel Axpy ROIPooling Reorg Quant DeQuant AntiQuant
    BN Mish PSROIPooling Transpose ContinuationIndicator UpsampleDarknet"""
    assert set(TABLE) >= {*caffe.split(), *forks.split()}


def test_legacy_weights_with_four_axes_are_taken():
    net = one_layer(
        "InnerProduct",
        "inner_product_param { num_output: 2 }",
        [(1, 3)],
        [np.float32([[[[1, 2, 3], [4, 5, 6]]]]), np.float32([[[[10, 20]]]])],
    )
    out = FloatNet(net).forward({"x0": np.ones((1, 3))})
    np.testing.assert_array_equal(out["y0"], [[16, 35]])


def test_layer_type_takes_a_layer():
    layer = caffeio.parse_net('layer { name: "a" type: "DummyData" top: "b" }').layers[0]
    assert layer_type(layer) is TABLE["DummyData"]


@pytest.mark.parametrize(
    ("kind", "params", "want"),
    [
        (
            "MemoryData",
            "memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 }",
            [(2, 3, 4, 5), (2,)],
        ),
        (
            "ImageData",
            "image_data_param { batch_size: 2 new_height: 8 new_width: 9 }",
            [(2, 3, 8, 9), (2,)],
        ),
        (
            "ImageData",
            "image_data_param { new_height: 8 new_width: 9 is_color: false } "
            "transform_param { crop_size: 6 }",
            [(1, 1, 6, 6), (1,)],
        ),
        ("ImageData", 'image_data_param { source: "a" }', [None, (1,)]),
        ("Data", "", [None, None]),
    ],
)
def test_shapes_that_a_data_layer_declares(kind: str, params: str, want: list):
    net = one_layer(kind, params, [], tops=2)
    assert list(declared_shapes(net.layers[0])) == want
    if want[0] is not None:
        assert FloatNet(net).shapes()[caffeio.Value("y0")] == want[0]
