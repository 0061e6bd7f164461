"""Layers of forks, against OpenCV's own versions or slow oracles."""

from __future__ import annotations

from pathlib import Path

import cv2
import naive_layers as naive
import numpy as np
import pytest
from layer_nets import forward, one_layer, with_blobs

import caffeio
from caffeio.errors import NetError
from pipeline import FloatNet
from pipeline.layers import layer_type

needs_opencv = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"),
    reason="this OpenCV reads no Caffe nets; pip install 'opencv-python-headless<5'",
)


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def opencv(folder: Path, kind: str, params: str, bottoms, blobs=()) -> np.ndarray:
    """Run one layer in OpenCV, through files that this package writes."""
    net = one_layer(kind, params, [b.shape for b in bottoms], blobs)
    caffeio.write_prototxt(net, folder / "net.prototxt")
    caffeio.write_caffemodel(net, folder / "net.caffemodel")
    reader = cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))
    for i, x in enumerate(bottoms):
        reader.setInput(x, f"x{i}")
    return reader.forward("l")


SCALES = np.linspace(0.5, 2, 6, dtype=np.float32)
WEIGHTS = rand(6, 1, 3, 3, seed=1)
OPENCV_CASES = {
    "permute": (
        "Permute",
        "permute_param { order: 0 order: 2 order: 3 order: 1 }",
        [rand(2, 6, 4, 5)],
        (),
    ),
    "normalize": (
        "Normalize",
        "norm_param { across_spatial: false channel_shared: false }",
        [rand(2, 6, 4, 5)],
        (SCALES,),
    ),
    "normalize_space": (
        "Normalize",
        "norm_param { across_spatial: true channel_shared: true }",
        [rand(1, 6, 4, 5)],
        (np.float32([1.7]),),
    ),
    "relu6": ("ReLU6", "", [rand(2, 6, 4, 5) * 6], ()),
    "shuffle": ("ShuffleChannel", "shuffle_channel_param { group: 3 }", [rand(2, 6, 4, 5)], ()),
    "interp": ("Interp", "interp_param { height: 9 width: 13 }", [rand(2, 6, 4, 5)], ()),
    "interp_down": ("Interp", "interp_param { height: 3 width: 2 }", [rand(2, 6, 7, 9)], ()),
    "interp_zoom": ("Interp", "interp_param { zoom_factor: 3 }", [rand(2, 6, 4, 5)], ()),
    "prior": (
        "PriorBox",
        "prior_box_param { min_size: 30 max_size: 60 aspect_ratio: 2 "
        "aspect_ratio: 3 flip: true clip: false variance: 0.1 variance: 0.1 variance: 0.2 "
        "variance: 0.2 offset: 0.5 }",
        [rand(1, 6, 4, 5), rand(1, 3, 100, 120)],
        (),
    ),
    "prior_step": (
        "PriorBox",
        "prior_box_param { min_size: 16 min_size: 40 aspect_ratio: 2 "
        "flip: false clip: true step: 20 offset: 0.4 variance: 0.1 }",
        [rand(1, 6, 4, 5), rand(1, 3, 100, 120)],
        (),
    ),
}


@needs_opencv
@pytest.mark.parametrize("case", OPENCV_CASES)
def test_equals_opencv(case: str, tmp_path: Path):
    kind, params, bottoms, blobs = OPENCV_CASES[case]
    want = opencv(tmp_path, kind, params, bottoms, blobs)
    (got,) = forward(kind, params, bottoms, blobs)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["DepthwiseConvolution", "ConvolutionDepthwise"])
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_depthwise_group_is_the_channels_if_not_given(kind: str, device: str):
    x, w, b = rand(2, 6, 7, 5), WEIGHTS, rand(6, seed=2)
    (got,) = forward(
        kind,
        "convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 1 }",
        [x],
        (w, b),
        device=device,
    )
    want = naive.conv_nd(x, w, (2, 2), (1, 1), (1, 1), 6) + b[:, None, None]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reverse", "shape"), [(False, (2, 8, 6, 4)), (True, (2, 8, 3, 5))])
def test_reorg(reverse: bool, shape: tuple[int, ...]):
    x = rand(*shape)
    (got,) = forward("Reorg", f"reorg_param {{ stride: 2 reverse: {str(reverse).lower()} }}", [x])
    np.testing.assert_array_equal(got, naive.reorg(x, 2, reverse))


def test_axpy():
    a, x, y = rand(2, 3, 1, 1), rand(2, 3, 4, 5, seed=1), rand(2, 3, 4, 5, seed=2)
    (got,) = forward("Axpy", "", [a, x, y])
    np.testing.assert_allclose(got, a * x + y, rtol=1e-6)
    (flat,) = forward("Axpy", "", [a[:, :, 0, 0], x, y])
    np.testing.assert_array_equal(flat, got)


@pytest.mark.parametrize(
    ("params", "size"),
    [
        ("height: 5 width: 11", (5, 11)),
        ("zoom_factor: 2", (11, 13)),
        ("shrink_factor: 2", (3, 4)),
        ("shrink_factor: 2 zoom_factor: 3", (7, 10)),
    ],
)
def test_interp_sizes(params: str, size: tuple[int, int]):
    x = rand(1, 2, 6, 7)
    (got,) = forward("Interp", f"interp_param {{ {params} }}", [x])
    assert got.shape[2:] == size
    np.testing.assert_allclose(got, naive.interp(x, *size), rtol=1e-4, atol=1e-5)


def test_interp_crops_and_follows_a_second_bottom():
    x, like = rand(1, 2, 6, 7), rand(3, 1, 9, 8)
    (got,) = forward("Interp", "interp_param { pad_beg: -1 pad_end: -2 }", [x, like])
    np.testing.assert_allclose(got, naive.interp(x[:, :, 1:-2, 1:-2], 9, 8), rtol=1e-4, atol=1e-5)


def test_upsample_repeats_pixels():
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    want = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    (got,) = forward("Upsample", "upsample_param { scale: 2 }", [x])
    np.testing.assert_array_equal(got[0, 0], want)
    # With a stride, scale multiplies the values.
    (got,) = forward("Upsample", "upsample_param { stride: 2 scale: 3 }", [x])
    np.testing.assert_array_equal(got[0, 0], 3 * np.array(want))
    (got,) = forward("Upsample", "upsample_param { scale_h: 1 scale_w: 2 }", [x])
    np.testing.assert_array_equal(got[0, 0], [[0, 0, 1, 1], [2, 2, 3, 3]])


def test_upsample_undoes_a_max_pooling():
    x = rand(2, 3, 5, 6)
    pooled, where = forward(
        "Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }", [x], tops=2
    )
    (got,) = forward("Upsample", "upsample_param { scale: 2 pad_out_h: true }", [pooled, where])
    assert got.shape == x.shape
    kept = got != 0
    assert kept.sum() == pooled.size
    np.testing.assert_array_equal(got[kept], x[kept])
    (sized,) = forward(
        "Upsample", "upsample_param { upsample_h: 5 upsample_w: 6 }", [pooled, where]
    )
    np.testing.assert_array_equal(sized, got)
    with pytest.raises(NetError, match="upsample_h"):
        forward("Upsample", "upsample_param { upsample_h: 2 upsample_w: 2 }", [pooled, where])


def test_roi_pooling():
    x = rand(2, 3, 9, 11)
    rois = np.float32([[0, 0, 0, 40, 30], [1, 8, 4, 9, 5], [1, -6, 10, 60, 90], [0, 30, 20, 10, 5]])
    params = "roi_pooling_param { pooled_h: 3 pooled_w: 4 spatial_scale: 0.25 }"
    (got,) = forward("ROIPooling", params, [x, rois])
    np.testing.assert_array_equal(got, naive.roi_pooling(x, rois, 3, 4, 0.25).astype(np.float32))
    with pytest.raises(NetError, match="names image 5"):
        forward("ROIPooling", params, [x, np.float32([[5, 0, 0, 1, 1]])])


def ssd(priors: int = 40, classes: int = 4, images: int = 2, sets: int = 1):
    """Return predictions and prior boxes that overlap enough for suppression to matter."""
    rng = np.random.default_rng(3)
    centre, size = rng.uniform(0.3, 0.7, (priors, 2)), rng.uniform(0.1, 0.4, (priors, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    variance = np.tile([0.1, 0.1, 0.2, 0.2], priors)
    prior = np.stack([boxes.reshape(-1), variance])[None].astype(np.float32)
    loc = rng.normal(size=(images, priors, sets, 4)).astype(np.float32)
    conf = rng.dirichlet(np.ones(classes), (images, priors)).astype(np.float32)
    return loc, conf, prior


def stats(channels: int = 6) -> list[np.ndarray]:
    """Return slope, bias, mean and variance."""
    draw = [rand(channels, seed=i) for i in range(4)]
    return [*draw[:3], np.abs(draw[3]) + np.float32(0.5)]


DEVICES = pytest.mark.parametrize("device", ["reference", "cpu"])


@DEVICES
@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_bn_of_tsn_and_pspnet_uses_its_stored_statistics(device: str, ndim: int):
    x, (slope, bias, mean, variance) = rand(*(2, 6, 3, 4)[:ndim]), stats()
    blobs = [b.reshape(1, 6, 1, 1) for b in (slope, bias, mean, variance)]
    (got,) = forward("BN", "bn_param { eps: 0.01 frozen: true }", [x], blobs, device=device)
    want = naive.batch_norm(x, mean, variance, 0.01, slope, bias)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    (plain,) = forward("BN", "", [x], blobs, device=device)
    np.testing.assert_allclose(
        plain, naive.batch_norm(x, mean, variance, 1e-5, slope, bias), rtol=1e-4, atol=1e-5
    )


@DEVICES
def test_bn_of_segnet_is_slope_and_bias_in_inference_and_else_the_batchs_own(device: str):
    x, (slope, bias, *_) = rand(3, 6, 4, 5), stats()
    blobs = [b.reshape(1, 6, 1, 1) for b in (slope, bias)]
    (got,) = forward("BN", "bn_param { bn_mode: INFERENCE }", [x], blobs, device=device)
    want = naive.batch_norm(x, np.zeros(6), np.ones(6), 0, slope, bias)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    (learn,) = forward("BN", "", [x], blobs, device=device)
    wide = x.astype(np.float64)
    want = naive.batch_norm(x, wide.mean((0, 2, 3)), wide.var((0, 2, 3)), 1e-9, slope, bias)
    np.testing.assert_allclose(learn, want, rtol=1e-4, atol=1e-5)
    layer = one_layer("BN", "", [x.shape], blobs).layers[-1]
    assert "batch's own statistics" in layer_type(layer).note(layer)


@DEVICES
def test_batch_norm_with_a_scale_of_its_own(device: str):
    x, (slope, bias, mean, variance) = rand(2, 6, 4, 5), stats()
    blobs = [mean * 2, variance * 2, np.float32([2]), slope, bias]
    params = "batch_norm_param { scale_bias: true eps: 1e-4 }"
    (got,) = forward("BatchNorm", params, [x], blobs, device=device)
    want = naive.batch_norm(x, mean, variance, 1e-4, slope, bias)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(NetError, match="needs 5 weight blobs"):
        forward("BatchNorm", params, [x], blobs[:3])


@DEVICES
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 6, 4, 5)])
def test_dropout_that_does_not_scale_in_training_scales_here(device: str, shape: tuple[int, ...]):
    x = rand(*shape)
    params = "dropout_param { dropout_ratio: 0.3 scale_train: false }"
    (got,) = forward("Dropout", params, [x], device=device)
    np.testing.assert_array_equal(got, x * np.float32(1 - np.float32(0.3)))
    (same,) = forward("Dropout", "dropout_param { scale_train: true }", [x], device=device)
    np.testing.assert_array_equal(same, x)


def test_a_compiled_net_scales_in_such_a_dropout():
    text = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } } }
    layer { name: "c" type: "Convolution" bottom: "x" top: "c"
      convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "d" type: "Dropout" bottom: "c" top: "c" dropout_param { scale_train: false } }
    layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
    layer { name: "f" type: "InnerProduct" bottom: "c" top: "f"
      inner_product_param { num_output: 5 } }
    layer { name: "e" type: "Dropout" bottom: "f" top: "f" dropout_param { scale_train: false } }
    """
    blobs = {
        "c": [rand(4, 3, 3, 3), rand(4, seed=1)],
        "f": [rand(5, 48, seed=2), rand(5, seed=3)],
    }
    net = with_blobs(caffeio.parse_net(text), blobs)
    x = rand(2, 3, 6, 5, seed=4)
    conv = naive.conv_nd(x, blobs["c"][0], (1, 1), (0, 0), (1, 1), 1) + blobs["c"][1][:, None, None]
    flat = np.maximum(conv / 2, 0).reshape(2, -1)
    want = (flat @ blobs["f"][0].T + blobs["f"][1]) / 2
    for device in ("reference", "cpu"):
        got = FloatNet(net, device=device).forward({"x": x})["f"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@DEVICES
def test_mish(device: str):
    x = rand(2, 3, 4) * 4
    (got,) = forward("Mish", "", [x], device=device)
    np.testing.assert_allclose(got, naive.mish(x), rtol=1e-5, atol=1e-6)
    (far,) = forward("Mish", "", [np.float32([200, -200])], device=device)
    np.testing.assert_array_equal(far, [200, 0])


@needs_opencv
def test_mish_equals_opencv(tmp_path: Path):
    x = rand(2, 3, 4, 5) * 4
    (got,) = forward("Mish", "", [x])
    np.testing.assert_allclose(got, opencv(tmp_path, "Mish", "", [x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flip", ["true", "false"])
def test_denser_prior_boxes_come_twice_half_a_cell_apart(flip: str):
    params = (
        f"prior_box_param {{ min_size: 9 max_size: 16 aspect_ratio: 4 flip: {flip} clip: false "
        "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 denser_prior_boxes: %s }"
    )
    sizes = [(9, 9), (12, 12), (18, 4.5), *([(4.5, 18)] if flip == "true" else [])]
    bottoms = [rand(1, 6, 3, 5), rand(1, 3, 30, 40)]
    for denser in (True, False):
        (got,) = forward("PriorBox", params % str(denser).lower(), bottoms)
        want = naive.prior_boxes(3, 5, sizes, (30, 40), (10, 8), 0.5, denser)
        np.testing.assert_allclose(got[0, 0], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            got[0, 1], np.tile(np.float32([0.1, 0.1, 0.2, 0.2]), want.size // 4)
        )


def test_psroi_pooling():
    x = rand(2, 3 * 9, 9, 11)
    rois = np.float32(
        [[0, 0, 0, 40, 30], [1, 8.5, 4, 9, 5], [1, 6, 10, 60, 90], [0, 30, 20, 10, 5]]
    )
    params = "psroi_pooling_param { spatial_scale: 0.25 output_dim: 3 group_size: 3 }"
    (got,) = forward("PSROIPooling", params, [x, rois])
    np.testing.assert_allclose(got, naive.psroi_pooling(x, rois, 3, 3, 0.25), rtol=1e-5, atol=1e-6)
    with pytest.raises(NetError, match="names image 5"):
        forward("PSROIPooling", params, [x, np.float32([[5, 0, 0, 1, 1]])])
    with pytest.raises(NetError, match="need 27"):
        forward("PSROIPooling", params, [x[:, :26], rois])


@pytest.mark.parametrize("order", [(3, 0, 1, 2), (0, 2, 3, 1)])
def test_transpose(order: tuple[int, ...]):
    x = rand(2, 3, 4, 5)
    dims = " ".join(f"dim: {d}" for d in order)
    (got,) = forward("Transpose", f"transpose_param {{ {dims} }}", [x])
    for index in np.ndindex(*x.shape):
        assert got[tuple(index[a] for a in order)] == x[index]
    with pytest.raises(NetError, match="each axis"):
        forward("Transpose", "transpose_param { dim: 0 dim: 2 dim: 2 dim: 1 }", [x])


def test_continuation_indicator_marks_the_first_step():
    params = "continuation_indicator_param { time_step: 3 batch_size: 2 }"
    (got,) = forward("ContinuationIndicator", params, [])
    np.testing.assert_array_equal(got, [[0, 0], [1, 1], [1, 1]])
    with pytest.raises(NetError, match="time_step > 0"):
        forward("ContinuationIndicator", "", [])


def test_upsample_by_height_and_width_scale():
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    params = "upsample_param { height_scale: 1 width_scale: 2 mode: %s }"
    (got,) = forward("Upsample", params % "NEAREST", [x])
    np.testing.assert_array_equal(got[0, 0], [[0, 0, 1, 1], [2, 2, 3, 3]])
    (own,) = forward("UpsampleDarknet", "upsample_darknet_param { stride: 2 }", [x])
    np.testing.assert_array_equal(own, forward("Upsample", "upsample_param { scale: 2 }", [x])[0])
    with pytest.raises(NetError, match="needs stride"):
        forward("UpsampleDarknet", "", [x])
    with pytest.raises(NetError, match="BILINEAR"):
        forward("Upsample", params % "BILINEAR", [x])


@DEVICES
def test_convolution_depthwise_never_reads_num_output(device: str):
    x, w = rand(2, 6, 7, 5), WEIGHTS
    params = "convolution_param { num_output: 14 group: 2 kernel_size: 3 pad: 1 bias_term: false }"
    (got,) = forward("ConvolutionDepthwise", params, [x], (w,), device=device)
    want = naive.conv_nd(x, w, (1, 1), (1, 1), (1, 1), 6)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


SSD_CASES = {
    "plain": ("", {}),
    "keep": ("keep_top_k: 7", {"keep": 7}),
    "corner": ("code_type: CORNER", {"code": "CORNER"}),
    "corner_size": ("code_type: CORNER_SIZE", {"code": "CORNER_SIZE"}),
    "encoded": ("variance_encoded_in_target: true", {"encoded": True}),
    "background": ("background_label_id: 2", {"background": 2}),
    "own_boxes": ("share_location: false", {"shared": False}),
    "adaptive": ("", {"eta": 0.9, "overlap": 0.7}),
}


@pytest.mark.parametrize("case", SSD_CASES)
def test_detection_output(case: str):
    params, changes = SSD_CASES[case]
    settings = {"threshold": 0.2, "overlap": 0.45, "top_k": 25, "keep": -1, **changes}
    loc, conf, prior = ssd(sets=1 if settings.get("shared", True) else 4)
    code = "" if "code_type" in params else "code_type: CENTER_SIZE"
    text = (
        f"detection_output_param {{ num_classes: 4 confidence_threshold: 0.2 {code} {params} "
        f"nms_param {{ nms_threshold: {settings['overlap']} top_k: 25 "
        f"eta: {settings.get('eta', 1.0)} }} }}"
    )
    bottoms = [loc.reshape(len(loc), -1), conf.reshape(len(conf), -1), prior]
    (got,) = forward("DetectionOutput", text, bottoms)
    want = naive.detections(loc, conf, prior[0], **settings)
    assert len(want) > 5
    np.testing.assert_allclose(got, want[None, None], rtol=1e-4, atol=1e-5)


@needs_opencv
def test_detection_output_equals_opencv(tmp_path: Path):
    loc, conf, prior = ssd(images=1)
    text = (
        "detection_output_param { num_classes: 4 share_location: true background_label_id: 0 "
        "confidence_threshold: 0.2 code_type: CENTER_SIZE keep_top_k: 20 "
        "nms_param { nms_threshold: 0.45 top_k: 100 } }"
    )
    bottoms = [loc.reshape(1, -1), conf.reshape(1, -1), prior]
    (got,) = forward("DetectionOutput", text, bottoms)
    want = opencv(tmp_path, "DetectionOutput", text, bottoms)

    def by_score(rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(-1, 7)
        return flat[np.lexsort((flat[:, 2], flat[:, 1]))]

    np.testing.assert_allclose(by_score(got), by_score(want), rtol=1e-4, atol=1e-5)


def test_detection_output_finds_nothing():
    loc, conf, prior = ssd()
    (got,) = forward(
        "DetectionOutput",
        "detection_output_param { num_classes: 4 confidence_threshold: 2 code_type: CENTER_SIZE }",
        [loc.reshape(2, -1), conf.reshape(2, -1), prior],
    )
    np.testing.assert_array_equal(got[0, 0], [[0] + [-1] * 6, [1] + [-1] * 6])
