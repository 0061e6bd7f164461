"""Layer types in training: Caffe's values, the derivative of each, and Caffe's choice at kinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from layer_nets import forward as numpy_forward  # noqa: E402
from layer_nets import one_layer  # noqa: E402
from test_layers_goldens import CASES, load  # noqa: E402

import caffeio  # noqa: E402
import pipeline.layers  # noqa: E402
from caffeio.errors import NetError  # noqa: E402
from caffeio.graph import SOURCE_TYPES, Layer  # noqa: E402
from pipeline.retrain.layers import TABLE, Context, torch_layer  # noqa: E402

TEST, TRAIN = Context(train=False), Context(train=True)

#: Types that pass no gradient: what they report, and what they read, has none.
NO_GRADIENT = {
    "Accuracy",
    "ArgMax",
    "ContinuationIndicator",
    "DetectionOutput",
    "DummyData",
    "PriorBox",
    "Silence",
} | {
    "Threshold",
    *SOURCE_TYPES,
}
#: Types that round and pass the gradient as it is, which is no derivative.
STRAIGHT_THROUGH = {"Quant", "DeQuant"}
#: Types that are not trained.
REFUSED = {"BN"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def layer_of(kind: str, params: str, bottoms: Sequence[tuple[int, ...]], tops: int = 1) -> Layer:
    return one_layer(kind, params, bottoms, tops=tops).layer("l")


def run(
    layer: Layer,
    bottoms: Sequence[torch.Tensor],
    blobs: Sequence[torch.Tensor] = (),
    context: Context = TEST,
) -> tuple[torch.Tensor, ...]:
    return torch_layer(layer).forward(layer, bottoms, blobs, context)


def shapes_of(bottoms: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in bottoms]


# ------------------------------------------------------------------------------ Caffe's values


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_equals_caffe(case: Path, tmp_path: Path):
    net, inputs, expected = load(case, tmp_path)
    values = {name: torch.from_numpy(x) for name, x in inputs.items()}
    for layer in net.layers:
        if layer.type in SOURCE_TYPES:
            continue
        bottoms = [values[b] for b in layer.bottoms]
        blobs = [torch.from_numpy(np.array(b)) for b in layer.blobs]
        specs = torch_layer(layer).blobs(layer, shapes_of(bottoms))
        assert [s.shape for s in specs] == [b.shape for b in layer.blobs]
        tops = run(layer, bottoms, blobs)
        values.update(zip(layer.tops, tops, strict=True))
    for name, want in expected.items():
        assert values[name].dtype == torch.float32
        assert tuple(values[name].shape) == want.shape
        np.testing.assert_allclose(values[name].numpy(), want, rtol=1e-4, atol=1e-5)


def test_blobs_in_legacy_shapes_are_taken_by_their_use():
    x = torch.randn(2, 3, 4, 4)
    for kind, params in (
        ("Convolution", "convolution_param { num_output: 2 kernel_size: 3 }"),
        ("InnerProduct", "inner_product_param { num_output: 2 }"),
        ("Scale", "scale_param { bias_term: true }"),
        ("BatchNorm", ""),
        ("PReLU", ""),
    ):
        layer = layer_of(kind, params, [(2, 3, 4, 4)])
        specs = torch_layer(layer).blobs(layer, [(2, 3, 4, 4)])
        blobs = [torch.rand(s.shape) for s in specs]
        old = [b.reshape((1,) * (4 - b.ndim) + tuple(b.shape)) for b in blobs]
        torch.testing.assert_close(run(layer, [x], old), run(layer, [x], blobs))


# ---------------------------------------------------------------------------- the derivatives


@dataclass(frozen=True)
class Case:
    """One layer; `bottoms` are shapes of values with a gradient, or arrays without one."""

    kind: str
    params: str
    bottoms: tuple
    tops: int = 1
    train: bool = False
    positive: bool = False
    atol: float = 1e-5


def values(
    shape: tuple[int, ...], rng: np.random.Generator, positive: bool, which: int
) -> np.ndarray:
    """Return values in random order, none at a kink, no two alike, others for each bottom."""
    count = int(np.prod(shape))
    spread = rng.permutation(count)
    if positive:
        return ((spread + 1) / (count + 1)).reshape(shape)
    return ((spread - count // 2 + 0.31 + 0.13 * which) * (4.03 / count)).reshape(shape)


def labels(*given: float) -> np.ndarray:
    return np.array(given, dtype=np.float64)


CONV = "convolution_param {{ num_output: 4 {} }}"
POOL = "pooling_param {{ {} }}"
IMAGE, WIDE = (2, 2, 5, 6), (1, 2, 7, 6)
MARKS = np.array([[0, 0], [1, 1], [1, 0], [1, 1]], dtype=np.float64)
ROIS = np.array([[0, 0, 0, 4, 4], [1, 1, 2, 5, 4], [1, 20, 20, 22, 22]], dtype=np.float64)
GAINS = np.array([[1, 0.2, 0], [0, 2, 0.5], [0.3, 0, 1]])
PAIR = ((3, 4), (3, 4))


def losses() -> list[Case]:
    pixels = np.array([[[0, 2]], [[255, 1]]], dtype=np.float64)
    found = [Case("EuclideanLoss", "", PAIR)]
    for mode in ("FULL", "VALID", "BATCH_SIZE", "NONE"):
        p = f"loss_param {{ normalization: {mode} ignore_label: 255 }}"
        found += [
            Case("SoftmaxWithLoss", p, ((2, 3, 1, 2), pixels), tops=2),
            Case("SigmoidCrossEntropyLoss", p, ((2, 3), np.array([[1, 0, 255], [0, 1, 1.0]]))),
            Case("InfogainLoss", p, ((2, 3, 1, 2), pixels, GAINS)),
        ]
    return [
        *found,
        Case("SoftmaxWithLoss", "", ((3, 4), labels(3, 0, 1))),
        Case("SoftmaxWithLoss", "softmax_param { axis: -1 }", ((2, 2, 3), labels(0, 1, 2, 0))),
        Case("SoftmaxWithLoss", "loss_param { normalize: false }", ((3, 4), labels(3, 0, 1))),
        Case("SigmoidCrossEntropyLoss", "", ((2, 3), np.array([[1, 0, 0.5], [0, 1, 1]]))),
        Case("HingeLoss", "", ((3, 4), labels(1, 0, 3))),
        Case("HingeLoss", "hinge_loss_param { norm: L2 }", ((3, 4), labels(1, 0, 3))),
        Case("MultinomialLogisticLoss", "", ((3, 4), labels(1, 0, 3)), positive=True),
        # Caffe guards the gradient by 1e-4 of the distance.
        Case("ContrastiveLoss", "contrastive_loss_param { margin: 5 }", (*PAIR, labels(1, 0, 0)), atol=1e-3),
        Case("ContrastiveLoss", "contrastive_loss_param { margin: 9 legacy_version: true }", (*PAIR, labels(1, 0, 0))),
    ]  # fmt: skip


GRADIENTS = [
    # convolution
    Case("Convolution", CONV.format("kernel_size: 3"), (IMAGE,)),
    Case("Convolution", CONV.format("kernel_h: 3 kernel_w: 2 stride: 2 pad_h: 2 pad_w: 1"), (IMAGE,)),
    Case("Convolution", CONV.format("kernel_size: 2 dilation: 2 group: 2 bias_term: false"), (IMAGE, IMAGE), tops=2),
    Case("Convolution", CONV.format("kernel_size: 3 pad: 1"), ((2, 2, 6),)),
    Case("Convolution", CONV.format("kernel_size: 2"), ((1, 2, 3, 3, 3),)),
    Case("Convolution", CONV.format("kernel_size: 2 axis: 2"), ((2, 2, 2, 4),)),
    Case("DepthwiseConvolution", "convolution_param { num_output: 2 kernel_size: 3 }", (IMAGE,)),
    Case("ConvolutionDepthwise", "convolution_param { num_output: 4 kernel_size: 3 pad: 1 stride: 2 }", (IMAGE,)),
    Case("Deconvolution", CONV.format("kernel_size: 3 stride: 2 pad: 1"), ((1, 2, 3, 3),)),
    Case("Deconvolution", CONV.format("kernel_size: 2 dilation: 2 group: 2"), ((1, 2, 3, 3),)),
    Case("Deconvolution", CONV.format("kernel_size: 3 bias_term: false"), ((2, 2, 4),)),
    Case("Im2col", "convolution_param { kernel_size: 3 pad: 1 stride: 2 dilation: 2 }", (WIDE,)),
    Case("Im2col", "convolution_param { kernel_size: 2 axis: 2 }", ((2, 2, 2, 4),)),
    # inner_product
    Case("InnerProduct", "inner_product_param { num_output: 3 }", ((2, 2, 3),)),
    Case("InnerProduct", "inner_product_param { num_output: 3 axis: 2 transpose: true }", ((2, 2, 3),)),
    Case("InnerProduct", "inner_product_param { num_output: 3 axis: -1 bias_term: false }", ((2, 2, 3),)),
    Case("Embed", "embed_param { num_output: 3 input_dim: 4 }", (np.array([[3, 0], [1, 3.0]]),)),
    # pooling
    *(
        Case("Pooling", POOL.format(f"pool: {method} {p}"), (WIDE,))
        for method in ("MAX", "AVE")
        for p in (
            "kernel_size: 3 stride: 2",
            "kernel_size: 3 stride: 2 round_mode: FLOOR",
            "kernel_size: 3 stride: 2 pad: 1",
            "kernel_size: 3 stride: 1 pad: 2",
            "kernel_h: 2 kernel_w: 3 stride_h: 3 stride_w: 2 pad_h: 1 pad_w: 0",
            "kernel_size: 1 stride: 6 round_mode: FLOOR",
            "global_pooling: true",
        )
    ),
    Case("Pooling", POOL.format("pool: MAX kernel_size: 1 stride: 5"), (WIDE,)),
    Case("Pooling", POOL.format("pool: MAX kernel_size: 3 stride: 2 pad: 1"), (WIDE,), tops=2),
    Case("Pooling", POOL.format("pool: MAX kernel_size: 3 stride: 2 pad: 2"), (WIDE,), tops=2),
    Case("Pooling", POOL.format("pool: MAX kernel_size: 3 stride: 2 pad_h: 2 pad_w: 0"), (WIDE,), tops=2),
    Case("Pooling", POOL.format("pool: STOCHASTIC kernel_size: 3 stride: 2"), (WIDE,), positive=True),
    Case("Pooling", POOL.format("pool: STOCHASTIC kernel_size: 3 stride: 2"), (WIDE,), positive=True, train=True),
    Case("SPP", "spp_param { pyramid_height: 3 }", (WIDE,)),
    Case("SPP", "spp_param { pyramid_height: 2 pool: AVE }", (IMAGE,)),
    Case("SPP", "spp_param { pyramid_height: 1 }", (IMAGE,)),
    Case("ROIPooling", "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 1 }", (IMAGE, ROIS)),
    Case("PSROIPooling", "psroi_pooling_param { spatial_scale: 0.5 output_dim: 1 group_size: 2 }", ((2, 4, 5, 6), ROIS)),
    Case("ROIPooling", "roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.5 }", (IMAGE, ROIS)),
    # normalization
    Case("BatchNorm", "", (IMAGE,)),
    Case("BatchNorm", "", ((6,),)),
    Case("BatchNorm", "batch_norm_param { use_global_stats: false }", (IMAGE,)),
    Case("BatchNorm", "batch_norm_param { eps: 0.01 }", (IMAGE,), train=True),
    Case("BatchNorm", "", ((4, 3),), train=True),
    Case("BatchNorm", "", ((6,),), train=True),
    Case("BatchNorm", "batch_norm_param { use_global_stats: true }", (IMAGE,), train=True),
    Case("LRN", "lrn_param { local_size: 3 alpha: 0.5 k: 2 }", ((2, 4, 2, 2),)),
    Case("LRN", "lrn_param { local_size: 3 alpha: 2 norm_region: WITHIN_CHANNEL }", (IMAGE,)),
    Case("MVN", "", (IMAGE,)),
    Case("MVN", "mvn_param { across_channels: true }", (IMAGE,)),
    Case("MVN", "mvn_param { normalize_variance: false }", (IMAGE,)),
    Case("Normalize", "norm_param { across_spatial: false channel_shared: false }", (IMAGE,)),
    Case("Normalize", "", (IMAGE,)),
    # elementwise
    Case("Eltwise", "", ((2, 3), (2, 3))),
    Case("Eltwise", "eltwise_param { coeff: 2 coeff: -1 coeff: 0.5 }", ((2, 3), (2, 3), (2, 3))),
    Case("Eltwise", "eltwise_param { operation: PROD }", ((2, 3), (2, 3), (2, 3))),
    Case("Eltwise", "eltwise_param { operation: MAX }", ((2, 3), (2, 3), (2, 3))),
    Case("Scale", "", (IMAGE,)),
    Case("Scale", "scale_param { bias_term: true }", (IMAGE,)),
    Case("Scale", "scale_param { axis: 0 num_axes: 2 bias_term: true }", ((2, 3, 2),)),
    Case("Scale", "scale_param { num_axes: 0 bias_term: true }", ((2, 3),)),
    Case("Scale", "scale_param { axis: 0 bias_term: true }", ((2, 3), (2,))),
    Case("Bias", "bias_param { axis: -1 }", ((2, 3),)),
    Case("Bias", "", ((2, 3, 2), (3,))),
    Case("Axpy", "", ((2, 3), (2, 3, 2), (2, 3, 2))),
    # activation
    *(Case(kind, "", ((3, 5),)) for kind in ("AbsVal", "BNLL", "Dropout", "ReLU", "Sigmoid", "TanH")),
    Case("Clip", "clip_param { min: -0.9 max: 1.1 }", ((3, 5),)),
    Case("Dropout", "dropout_param { dropout_ratio: 0.3 }", ((3, 5),), train=True),
    Case("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }", ((3, 5),)),
    Case("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }", ((3, 5),), train=True),
    Case("Mish", "", ((3, 5),)),
    Case("ELU", "elu_param { alpha: 0.7 }", ((3, 5),)),
    Case("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }", ((3, 5),)),
    Case("Exp", "", ((3, 5),)),
    Case("Log", "log_param { base: 2 scale: 3 shift: 0.5 }", ((3, 5),), positive=True),
    Case("Power", "power_param { power: 3 scale: 0.5 shift: 0.1 }", ((3, 5),)),
    Case("Power", "power_param { power: -0.5 }", ((3, 5),), positive=True),
    Case("Power", "power_param { scale: 2 shift: 1 }", ((3, 5),)),
    Case("PReLU", "", ((2, 3, 2),)),
    Case("PReLU", "prelu_param { channel_shared: true }", ((2, 3),)),
    Case("ReLU", "relu_param { negative_slope: 0.1 }", ((3, 5),)),
    Case("ReLU6", "", ((3, 5),)),
    Case("ReLU6", "relu6_param { negative_slope: 0.2 }", ((3, 5),)),
    Case("Softmax", "", ((2, 3, 2),)),
    Case("Softmax", "softmax_param { axis: -1 }", ((2, 3, 2),)),
    Case("Swish", "", ((3, 5),)),
    Case("Swish", "swish_param { beta: 1.5 }", ((3, 5),)),
    # shape
    Case("Concat", "", ((2, 1, 2), (2, 3, 2))),
    Case("Concat", "concat_param { concat_dim: 0 }", ((1, 3), (2, 3))),
    Case("Crop", "crop_param { axis: 2 offset: 1 offset: 2 }", (IMAGE, np.zeros((2, 2, 3, 2)))),
    Case("Flatten", "flatten_param { end_axis: 2 }", (IMAGE,)),
    Case("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", (IMAGE,)),
    Case("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 3 } }", (IMAGE,)),
    Case("Slice", "slice_param { slice_point: 1 slice_point: 2 }", ((2, 5, 2),), tops=3),
    Case("Slice", "slice_param { axis: 0 }", ((4, 2),), tops=2),
    Case("Split", "", ((2, 3),), tops=2),
    Case("Transpose", "transpose_param { dim: 3 dim: 0 dim: 2 dim: 1 }", (IMAGE,)),
    Case("Tile", "tile_param { tiles: 3 }", ((2, 2, 2),)),
    # select
    *(
        Case("Reduction", f"reduction_param {{ operation: {o} axis: 1 coeff: 0.5 }}", ((2, 3, 2),))
        for o in ("SUM", "ASUM", "SUMSQ", "MEAN")
    ),
    Case("Reduction", "", ((2, 3),)),
    Case("BatchReindex", "", ((3, 2), labels(2, 0, 2, 1))),
    Case("Filter", "", ((3, 2), (3, 1), labels(1, 0, 1)), tops=2),
    # fork
    Case("Interp", "interp_param { height: 7 width: 3 pad_beg: -1 }", (IMAGE,)),
    Case("Interp", "interp_param { zoom_factor: 2 }", (IMAGE,)),
    Case("Interp", "", (IMAGE, np.zeros((1, 1, 1, 9)))),
    Case("Reorg", "reorg_param { stride: 2 }", ((2, 4, 2, 4),)),
    Case("Reorg", "reorg_param { stride: 2 reverse: true }", ((2, 4, 2, 3),)),
    Case("ShuffleChannel", "shuffle_channel_param { group: 3 }", ((2, 6, 2, 2),)),
    Case("UpsampleDarknet", "upsample_darknet_param { stride: 2 }", ((1, 2, 2, 3),)),
    Case("Upsample", "upsample_param { scale: 2 }", ((1, 2, 2, 3),)),
    Case("Upsample", "upsample_param { stride: 3 scale: 0.5 }", ((1, 2, 2, 3),)),
    Case("Upsample", "", ((1, 1, 1, 3), np.array([[[[5, 0, 9.0]]]]))),
    # the rest
    *losses(),
    Case("AntiQuant", "", ((2, 3),)),
    Case("LSTM", "recurrent_param { num_output: 2 }", ((4, 2, 3), MARKS)),
    Case("LSTM", "recurrent_param { num_output: 2 expose_hidden: true }", ((4, 2, 3), MARKS, (2, 2), (1, 2, 2), (1, 2, 2)), tops=3),
    Case("RNN", "recurrent_param { num_output: 2 }", ((4, 2, 3), MARKS, (2, 2))),
    Case("RNN", "recurrent_param { num_output: 2 expose_hidden: true }", ((4, 2, 1, 2), MARKS, (1, 2, 2)), tops=2),
    Case("Parameter", "parameter_param { shape { dim: 2 dim: 3 } }", ()),
]  # fmt: skip


def named(case: Case) -> str:
    return f"{case.kind}-{case.params.partition('{')[2].strip(' }')}-{case.train}"


def arrays(case: Case) -> tuple[Layer, list[np.ndarray], list[np.ndarray]]:
    """Return a layer, its bottoms and its blobs, in float64."""
    rng = np.random.default_rng(7)
    bottoms = [
        b if isinstance(b, np.ndarray) else values(b, rng, case.positive, i)
        for i, b in enumerate(case.bottoms)
    ]
    layer = layer_of(case.kind, case.params, [b.shape for b in bottoms], case.tops)
    specs = torch_layer(layer).blobs(layer, [b.shape for b in bottoms])
    return layer, bottoms, [rng.uniform(0.3, 0.9, s.shape) for s in specs]


def test_every_type_is_tested():
    known = pipeline.layers.TABLE
    assert set(TABLE) == {name for name, kind in known.items() if not kind.like}
    tested = {case.kind for case in GRADIENTS}
    others = NO_GRADIENT | STRAIGHT_THROUGH | REFUSED
    assert tested.isdisjoint(others)
    assert tested | others == set(known)


@pytest.mark.parametrize(
    ("kind", "params"), [("BN", ""), ("BatchNorm", "batch_norm_param { scale_bias: true }")]
)
def test_what_is_not_trained_says_so(kind: str, params: str):
    with pytest.raises(NetError, match=r"is not trained here.*Scale layer"):
        arrays(Case(kind, params, (IMAGE,)))


def test_dropout_without_scale_train_drops_and_leaves_the_rest_as_it_is():
    params = "dropout_param { dropout_ratio: 0.3 scale_train: false }"
    layer, x = layer_of("Dropout", params, [(40, 50)]), torch.rand(40, 50) + 1
    (y,) = run(layer, [x], [], replace(TEST, train=True))
    kept = y != 0
    assert 0.6 < kept.float().mean() < 0.8
    torch.testing.assert_close(y[kept], x[kept])
    torch.testing.assert_close(run(layer, [x], [])[0], x * 0.7)


@pytest.mark.parametrize("case", [c for c in GRADIENTS if not c.train], ids=named)
def test_equals_the_numpy_form(case: Case):
    layer, bottoms, blobs = arrays(case)
    wanted = numpy_forward(case.kind, case.params, bottoms, blobs, case.tops)
    tops = run(layer, *([torch.from_numpy(x).float() for x in given] for given in (bottoms, blobs)))
    for top, want in zip(tops, wanted, strict=True):
        assert top.dtype == torch.float32
        assert tuple(top.shape) == want.shape
        np.testing.assert_allclose(top.numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", GRADIENTS, ids=named)
def test_the_gradient_is_the_derivative(case: Case):
    layer, bottoms, blobs = arrays(case)
    context = replace(TEST, train=case.train)
    kind = torch_layer(layer)
    fixed = [torch.from_numpy(x.copy()) for x in (*bottoms, *blobs)]
    moving = [
        i for i in range(len(fixed))
        if (not isinstance(case.bottoms[i], np.ndarray) if i < len(bottoms) else kind.learned)
    ]  # fmt: skip

    def function(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        tensors = [x.clone() for x in fixed]
        for i, x in zip(moving, given, strict=True):
            tensors[i] = x
        return run(layer, tensors[: len(bottoms)], tensors[len(bottoms) :], context)

    assert torch.autograd.gradcheck(
        function, [fixed[i].clone().requires_grad_() for i in moving], atol=case.atol
    )


@pytest.mark.parametrize("case", [c for c in losses() if len(c.bottoms) > 1], ids=named)
def test_no_gradient_flows_to_labels(case: Case):
    layer, bottoms, _ = arrays(case)
    tensors = [torch.from_numpy(x).requires_grad_() for x in bottoms]
    run(layer, tensors)[0].backward()
    for given, tensor in zip(case.bottoms, tensors, strict=True):
        assert (tensor.grad is None) == isinstance(given, np.ndarray)


# ------------------------------------------------------------------------ at ties and kinks


def gradients(
    kind: str, params: str, *bottoms: object, blobs: Sequence[torch.Tensor] = (), top: int = 0
) -> list[list[float]]:
    """Return the gradient of the sum of a layer's top for each bottom, flat."""
    tensors = [torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in bottoms]
    layer = layer_of(kind, params, shapes_of(tensors))
    run(layer, tensors, blobs)[top].sum().backward()
    return [[] if x.grad is None else x.grad.flatten().tolist() for x in tensors]


def test_of_equal_values_the_second_bottom_gets_the_gradient_but_no_later_one():
    maximum = "eltwise_param { operation: MAX }"
    a, b, c = gradients("Eltwise", maximum, [1.0, 2, 3], [1.0, 3, 2], [1.0, 3, 3])
    assert (a, b, c) == ([0, 0, 1], [1, 1, 0], [0, 0, 0])


@pytest.mark.parametrize("params", ["pad: 0", "pad: 1", "pad: 2"])
def test_of_equal_values_the_first_of_a_window_gets_the_gradient(params: str):
    (found,) = gradients(
        "Pooling", f"pooling_param {{ kernel_size: 3 stride: 3 {params} }}", np.ones((1, 1, 7, 7))
    )
    image = np.reshape(found, (7, 7))
    starts = sorted({max(i * 3 - int(params[-1]), 0) for i in range(3)})
    assert set(zip(*map(list, np.nonzero(image)), strict=True)) == {
        (i, j) for i in starts for j in starts
    }
    assert image.sum() == 9


def test_of_equal_values_the_first_of_a_region_gets_the_gradient():
    params = "roi_pooling_param { pooled_h: 1 pooled_w: 1 spatial_scale: 1 }"
    x, _ = gradients("ROIPooling", params, np.ones((1, 1, 3, 4)), [[0.0, 1, 1, 3, 2]])
    assert np.flatnonzero(x).tolist() == [5]


@pytest.mark.parametrize(
    ("kind", "params", "x", "wanted"),
    [
        ("ReLU", "", [-1, 0, 1], [0, 0, 1]),
        ("ReLU", "relu_param { negative_slope: 0.5 }", [-1, 0, 1], [0.5, 0.5, 1]),
        ("ReLU6", "", [0, 6, 7], [0, 1, 0]),
        ("Clip", "clip_param { min: -1 max: 2 }", [-2, -1, 2, 3], [0, 1, 1, 0]),
        ("AbsVal", "", [-1, 0, 1], [-1, 0, 1]),
        ("ELU", "elu_param { alpha: 0.5 }", [0], [0.5]),
        ("Power", "power_param { power: 3 }", [0], [0]),
        ("Reduction", "reduction_param { operation: ASUM }", [-1, 0, 1], [-1, 0, 1]),
        ("HingeLoss", "", [[-1, 0.5, 1]], [0, 1, -0.0]),
    ],
)  # fmt: skip
def test_gradient_at_kinks(kind: str, params: str, x: list, wanted: list):
    more = ([2.0],) if kind == "HingeLoss" else ()
    assert gradients(kind, params, x, *more)[0] == wanted


def test_prelu_at_0_has_the_slope():
    blobs = [torch.tensor([0.3], dtype=torch.float64)]
    assert gradients("PReLU", "", [[0.0]], blobs=blobs) == [[0.3]]


def test_power_without_x_ignores_even_nan():
    layer = layer_of("Power", "power_param { power: 0 }", [(2,)])
    (y,) = run(layer, [torch.tensor([np.nan, 3.0])])
    assert y.tolist() == [1, 1]


@pytest.mark.parametrize("legacy", ["true", "false"])
def test_contrastive_loss_at_distance_0(legacy: str):
    params = f"contrastive_loss_param {{ margin: 1 legacy_version: {legacy} }}"
    a, b, _ = gradients("ContrastiveLoss", params, [[1.0, 2], [0, 0]], [[1.0, 2], [0, 0]], [0.0, 1])
    assert a == b == [0, 0, 0, 0]


def test_mvn_of_equal_values_is_finite():
    (x,) = gradients("MVN", "", np.ones((1, 1, 2, 2)))
    assert np.isfinite(x).all()


def test_logarithms_are_clamped_and_their_gradients_are_not():
    layer = layer_of("SoftmaxWithLoss", "", [(1, 2), (1,)])
    x = torch.tensor([[0.0, 1000]], requires_grad=True)
    (loss,) = run(layer, [x, torch.tensor([0.0])])
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(np.finfo(np.float32).tiny))
    assert x.grad.tolist() == [[-1, 1]]

    x, _ = gradients("MultinomialLogisticLoss", "", [[0.0, 1]], [0.0])
    np.testing.assert_allclose(x, [-1e20, 0])


# ------------------------------------------------------------------- phase and stored averages


def test_dropout_drops_in_training_only():
    layer = layer_of("Dropout", "dropout_param { dropout_ratio: 0.25 }", [(10000,)])
    x = torch.ones(10000)
    assert run(layer, [x])[0] is x
    (y,) = run(layer, [x], context=TRAIN)
    np.testing.assert_allclose(sorted(set(y.tolist())), [0, 4 / 3], rtol=1e-6)
    assert 0.2 < (y == 0).float().mean() < 0.3


def test_stochastic_pooling_samples_in_proportion():
    layer = layer_of("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", [(1, 1, 2, 2)])
    x = torch.tensor([[0.0, 1], [3, 0]]).expand(4000, 1, 2, 2)
    (y,) = run(layer, [x], context=TRAIN)
    assert set(y.unique().tolist()) == {1, 3}
    assert 0.7 < (y == 3).float().mean() < 0.8


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (6, 3), (1, 3), (5,)])
def test_batch_norm_keeps_caffes_averages(shape: tuple[int, ...]):
    layer = layer_of("BatchNorm", "batch_norm_param { moving_average_fraction: 0.9 }", [shape])
    channels = shape[1] if len(shape) > 1 else 1
    blobs = [torch.zeros(s.shape) for s in torch_layer(layer).blobs(layer, [shape])]
    want = [np.zeros(channels), np.zeros(channels), 0.0]
    rng = np.random.default_rng(3)
    for _ in range(4):
        x = rng.normal(2, 3, shape)
        rows = np.moveaxis(x, 1, 0).reshape(channels, -1) if len(shape) > 1 else x[None]
        m = rows.shape[1]
        new = (rows.mean(1), rows.var(1) * m / max(m - 1, 1), 1.0)
        want = [0.9 * old + value for old, value in zip(want, new, strict=True)]
        (y,) = run(layer, [torch.from_numpy(x).float()], blobs, TRAIN)
        normal = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
        got = np.moveaxis(y.numpy(), 1, 0) if len(shape) > 1 else y.numpy()
        np.testing.assert_allclose(got.reshape(channels, -1), normal, rtol=1e-4, atol=1e-5)
    for blob, value in zip(blobs, want, strict=True):
        np.testing.assert_allclose(blob.numpy(), np.reshape(value, blob.shape), rtol=1e-5)


def test_batch_norm_with_given_statistics_collects_none():
    layer = layer_of("BatchNorm", "batch_norm_param { use_global_stats: true }", [(4, 3)])
    blobs = [torch.ones(3), torch.ones(3), torch.ones(1)]
    run(layer, [torch.randn(4, 3)], blobs, TRAIN)
    assert all((b == 1).all() for b in blobs)


def test_batch_norm_without_averages_yet_takes_them_as_0():
    layer = layer_of("BatchNorm", "", [(4, 3)])
    x = torch.randn(4, 3)
    (y,) = run(layer, [x], [torch.ones(3), torch.ones(3), torch.zeros(1)])
    torch.testing.assert_close(y, x / 1e-5**0.5)


def test_batch_norm_over_two_processes_is_that_of_the_whole_batch():
    whole = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    mine, other = whole[:3], whole[3:]
    layer = layer_of("BatchNorm", "", [(3, 3, 4)])
    found = []

    def total(part: torch.Tensor) -> torch.Tensor:
        """Add what the other process would compute: its sum, then its squared differences."""
        known = other if not found else (other - found[0][:, None] / 24).square()
        found.append(part + known.sum((0, 2)))
        return found[-1]

    blobs = [torch.zeros(n, dtype=torch.float64) for n in (3, 3, 1)]
    (y,) = run(layer, [mine], blobs, Context(train=True, total=total, processes=2))
    stored = [torch.zeros(n, dtype=torch.float64) for n in (3, 3, 1)]
    (want,) = run(layer, [whole], stored, TRAIN)
    torch.testing.assert_close(y, want[:3])
    torch.testing.assert_close(blobs, stored)
    weights = torch.randn(3, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((y * weights).sum(), whole),
        torch.autograd.grad((want[:3] * weights).sum(), whole),
    )


def test_a_loss_over_two_processes_is_divided_by_their_mean_count():
    layer = layer_of("SoftmaxWithLoss", "loss_param { ignore_label: 9 }", [(3, 2), (3,)])
    bottoms = [torch.randn(3, 2), torch.tensor([0.0, 9, 1])]
    (alone,) = run(layer, bottoms)
    (one,) = run(layer, bottoms, context=Context(True, lambda count: count + 3, 2))
    torch.testing.assert_close(one, alone * 2 / 2.5)


# --------------------------------------------------------------- without a gradient, or nearly


@pytest.mark.parametrize(
    ("kind", "params", "bottoms", "tops"),
    [
        ("Accuracy", "accuracy_param { top_k: 2 }", [(3, 4), labels(0, 3, 1)], 2),
        ("ArgMax", "argmax_param { axis: 1 }", [(3, 4)], 1),
        ("Threshold", "threshold_param { threshold: 0.5 }", [(3, 4)], 1),
        ("DummyData", "dummy_data_param { shape { dim: 2 dim: 3 } data_filler { type: 'gaussian' } }", [], 1),
        ("PriorBox", "prior_box_param { min_size: 4 }", [(1, 2, 2, 3), (1, 3, 20, 20)], 1),
        ("DetectionOutput", "detection_output_param { num_classes: 2 nms_param {} keep_top_k: 3 }", [(1, 8), (1, 4), (1, 2, 8)], 1),
    ],
)  # fmt: skip
def test_reporting_layers_are_the_numpy_form(kind: str, params: str, bottoms: list, tops: int):
    rng = np.random.default_rng(7)
    given = [
        b if isinstance(b, np.ndarray) else values(b, rng, True, i) for i, b in enumerate(bottoms)
    ]
    wanted = numpy_forward(kind, params, given, tops=tops)
    layer = layer_of(kind, params, [b.shape for b in given], tops)
    found = run(layer, [torch.from_numpy(x).float().requires_grad_() for x in given])
    for top, want in zip(found, wanted, strict=True):
        assert not top.requires_grad
        np.testing.assert_array_equal(top.numpy(), want)


def test_silence_has_no_tops():
    assert run(layer_of("Silence", "", [(2,)], tops=0), [torch.ones(2)]) == ()


def test_an_input_is_given_by_the_caller():
    net = one_layer("ReLU", "", [(2,)])
    with pytest.raises(caffeio.NetError, match="the caller gives them"):
        run(net.layers[0], [])


@pytest.mark.parametrize(
    ("kind", "params", "blobs"),
    [
        ("Quant", 'quant_param { scale: 10 offset: "\\005" }', []),
        ("DeQuant", "", [[0.01], [3.0], [0.0]]),
    ],
)
def test_rounding_layers_pass_the_gradient(kind: str, params: str, blobs: list):
    x = np.array([[-1.23, 0.07, 2.51]])
    (want,) = numpy_forward(kind, params, [x], [np.array(b) for b in blobs])
    tensor = torch.from_numpy(x).float().requires_grad_()
    (y,) = run(layer_of(kind, params, [(1, 3)]), [tensor], [torch.tensor(b) for b in blobs])
    np.testing.assert_array_equal(y.detach().numpy(), want)
    assert (want != x.astype(np.float32)).any()
    (y * torch.tensor([[1.0, 2, 3]])).sum().backward()
    assert tensor.grad.tolist() == [[1, 2, 3]]


# ------------------------------------------------------------------------- errors and fillers


@pytest.mark.parametrize(
    ("kind", "params", "bottoms"),
    [
        ("SoftmaxWithLoss", "loss_param { ignore_label: 7 }", [np.ones((2, 3)), labels(7, 3)]),
        ("SoftmaxWithLoss", "", [np.ones((2, 3)), labels(0, -1)]),
        ("InfogainLoss", "", [np.ones((2, 3)), labels(0, 3), GAINS]),
        ("HingeLoss", "", [np.ones((2, 3)), labels(0, 3)]),
        ("MultinomialLogisticLoss", "", [np.ones((2, 3)), labels(0, 3)]),
        ("Embed", "embed_param { num_output: 2 input_dim: 3 bias_term: false }", [labels(0, 3)]),
        ("BatchReindex", "", [np.ones((2, 3)), labels(0, 2)]),
        ("Upsample", "", [np.ones((1, 1, 1, 2)), np.array([[[[0, 8.0]]]])]),
        ("ROIPooling", "roi_pooling_param { pooled_h: 1 pooled_w: 1 }", [np.ones((1, 1, 2, 2)), np.ones((1, 5))]),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_numpy_form(kind: str, params: str, bottoms: list):
    blobs = [np.ones((3, 2))] if kind == "Embed" else []
    layer = layer_of(kind, params, [b.shape for b in bottoms])
    with pytest.raises(caffeio.NetError) as wanted:
        numpy_forward(kind, params, bottoms, blobs)
    with pytest.raises(ValueError) as found:
        run(
            layer,
            [torch.from_numpy(b).float() for b in bottoms],
            [torch.from_numpy(b) for b in blobs],
        )
    assert str(wanted.value).endswith(str(found.value))


def test_unknown_types_are_named():
    layer = replace(layer_of("ReLU", "", [(2,)]), type="Relu")
    with pytest.raises(caffeio.NetError, match=r"layer 'l': type 'Relu' is not known.*'ReLU'"):
        torch_layer(layer)


def test_four_spatial_axes_are_refused():
    layer = layer_of("Convolution", CONV.format("kernel_size: 1"), [(1, 1, 2, 2, 2, 2)])
    with pytest.raises(caffeio.NetError, match="at most 3 spatial axes"):
        run(layer, [torch.ones(1, 1, 2, 2, 2, 2)], [torch.ones(4, 1, 1, 1, 1, 1), torch.ones(4)])


@pytest.mark.parametrize(
    ("kind", "params", "wanted"),
    [
        ("Convolution", CONV.format("kernel_size: 1 weight_filler { type: 'msra' } bias_filler { value: 3 }"), ["msra 0", "constant 3"]),
        ("InnerProduct", "inner_product_param { num_output: 2 weight_filler { type: 'xavier' } }", ["xavier 0", "constant 0"]),
        ("Scale", "scale_param { bias_term: true bias_filler { value: 2 } }", ["constant 1", "constant 2"]),
        ("Scale", "scale_param { filler { value: 5 } }", ["constant 5"]),
        ("Bias", "", ["constant 0"]),
        ("PReLU", "", ["constant 0.25"]),
        ("Normalize", "norm_param { scale_filler { value: 20 } }", ["constant 20"]),
        ("Normalize", "", ["constant 1"]),
        ("BatchNorm", "", ["constant 0"] * 3),
    ],
)  # fmt: skip
def test_fillers(kind: str, params: str, wanted: list[str]):
    layer = layer_of(kind, params, [(2, 3, 4, 4)])
    specs = torch_layer(layer).blobs(layer, [(2, 3, 4, 4)])
    assert [f"{s.filler.type} {s.filler.value:g}" for s in specs] == wanted
