"""Caffe's rules that the goldens do not show: hand-computed values and slow oracles."""

from __future__ import annotations

import math
from pathlib import Path

import naive_layers as naive
import numpy as np
import pytest
from layer_nets import forward

from caffeio.errors import NetError
from caffeio.proto.caffe_pb2 import BlobProto

DEVICES = ["reference", "cpu"]


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---------------------------------------------------------------------------- convolution


@pytest.mark.parametrize(("shape", "kernel"), [((2, 4, 9), (3,)), ((1, 4, 5, 6, 4), (2, 3, 2))])
def test_convolution_over_any_number_of_axes(shape: tuple, kernel: tuple):
    n = len(kernel)
    params = (
        "convolution_param { num_output: 6 group: 2 stride: 2 pad: 1 "
        + " ".join(f"kernel_size: {k}" for k in kernel)
        + (" dilation: 2" if n == 1 else "")
        + " }"
    )
    x, w, b = rand(*shape), rand(6, 2, *kernel, seed=1), rand(6, seed=2)
    dilation = (2,) if n == 1 else (1,) * n
    want = naive.conv_nd(x, w, (2,) * n, (1,) * n, dilation, 2) + b.reshape(-1, *(1,) * n)
    (got,) = forward("Convolution", params, [x], (w, b))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_deconvolution_over_three_axes():
    x, w = rand(2, 4, 3, 2, 4), rand(4, 3, 3, 2, 3, seed=1)
    params = (
        "convolution_param { num_output: 6 group: 2 kernel_size: 3 kernel_size: 2 "
        "kernel_size: 3 stride: 2 pad: 1 bias_term: false }"
    )
    (got,) = forward("Deconvolution", params, [x], (w,))
    want = naive.deconv_nd(x, w, (2, 2, 2), (1, 1, 1), (1, 1, 1), 2)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_convolution_with_the_channels_on_another_axis(device: str):
    x, w = rand(2, 3, 4, 6, 5), rand(5, 4, 3, 3, seed=1)
    (got,) = forward(
        "Convolution",
        "convolution_param { num_output: 5 kernel_size: 3 axis: 2 bias_term: false }",
        [x],
        (w,),
        device=device,
    )
    want = naive.conv_nd(x.reshape(6, 4, 6, 5), w, (1, 1), (0, 0), (1, 1), 1)
    np.testing.assert_allclose(got, want.reshape(2, 3, 5, 4, 3), rtol=1e-4, atol=1e-5)


def test_convolution_of_two_bottoms_shares_its_weights():
    x, z, w = rand(1, 2, 4, 4), rand(1, 2, 4, 4, seed=5), rand(3, 2, 1, 1, seed=1)
    a, b = forward(
        "Convolution",
        "convolution_param { num_output: 3 kernel_size: 1 bias_term: false }",
        [x, z],
        (w,),
        tops=2,
    )
    np.testing.assert_allclose(a, np.einsum("oc,nchw->nohw", w[:, :, 0, 0], x), atol=1e-6)
    np.testing.assert_allclose(b, np.einsum("oc,nchw->nohw", w[:, :, 0, 0], z), atol=1e-6)


# ---------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("device", DEVICES)
def test_max_pooling_says_where(device: str):
    x = np.float32([[[[1, 5, 2], [7, 3, 9], [4, 8, 6]]]])
    y, where = forward(
        "Pooling",
        "pooling_param { pool: MAX kernel_size: 2 stride: 2 }",
        [x],
        tops=2,
        device=device,
    )
    np.testing.assert_array_equal(y[0, 0], [[7, 9], [8, 6]])
    np.testing.assert_array_equal(where[0, 0], [[3, 5], [7, 8]])


def test_stochastic_pooling_in_phase_test_is_the_weighted_mean():
    x = np.float32([[[[1, 3], [0, 0]]]])
    (y,) = forward("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", [x])
    assert y.item() == pytest.approx((1 + 9) / 4)
    (y,) = forward("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", [x * 0])
    assert y.item() == 0


def test_forks_spell_round_mode_as_ceil_mode():
    (y,) = forward(
        "Pooling", "pooling_param { kernel_size: 2 stride: 2 ceil_mode: false }", [rand(1, 1, 5, 5)]
    )
    assert y.shape == (1, 1, 2, 2)


@pytest.mark.parametrize(("pool", "reduce"), [("MAX", np.max), ("AVE", np.mean)])
def test_pyramid_of_an_even_image(pool: str, reduce):
    x = rand(2, 3, 4, 4)
    (y,) = forward("SPP", f"spp_param {{ pyramid_height: 2 pool: {pool} }}", [x])
    halves = [x[:, :, a : a + 2, b : b + 2] for a in (0, 2) for b in (0, 2)]
    second = np.stack([reduce(h, axis=(2, 3)) for h in halves], axis=2)
    want = np.concatenate([reduce(x, axis=(2, 3)), second.reshape(2, -1)], axis=1)
    np.testing.assert_allclose(y, want, rtol=1e-5)


# ---------------------------------------------------------------------------- normalization


def test_batch_norm_with_scale_factor_zero_takes_mean_and_variance_as_zero():
    x = rand(2, 3, 2, 2)
    (y,) = forward(
        "BatchNorm", "batch_norm_param { eps: 0.25 }", [x], (rand(3), rand(3) ** 2, np.float32([0]))
    )
    np.testing.assert_allclose(y, x * 2, rtol=1e-6)


def test_batch_norm_takes_global_stats_by_default():
    x, mean, variance = rand(4, 3), rand(3, seed=1), rand(3, seed=2) ** 2 + 1
    (y,) = forward("BatchNorm", "", [x], (mean * 2, variance * 2, np.float32([2])))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- recurrent


@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_lstm(exposed: bool, static: bool):
    steps, streams, size, inputs = 4, 2, 3, 5
    x, cont = rand(steps, streams, inputs), np.float32([[0, 0], [1, 1], [0, 1], [1, 1]])
    w_x, b = rand(4 * size, inputs, seed=1), rand(4 * size, seed=2)
    w_h, w_s = rand(4 * size, size, seed=3), rand(4 * size, 2, seed=4)
    s = rand(streams, 2, seed=5)
    h, c = (
        rand(1, streams, size, seed=k) if exposed else np.zeros((1, streams, size), np.float32)
        for k in (6, 7)
    )
    if exposed:
        cont[0] = 1
    bottoms = [x, cont] + [s] * static + [h, c] * exposed
    out = forward(
        "LSTM",
        f"recurrent_param {{ num_output: {size} expose_hidden: {str(exposed).lower()} }}",
        bottoms,
        (w_x, b, *[w_s] * static, w_h),
        tops=3 if exposed else 1,
    )
    want = naive.lstm(x, cont, w_x, b, w_h, h[0], c[0], *((s, w_s) if static else ()))
    np.testing.assert_allclose(out[0], want[0], rtol=1e-4, atol=1e-5)
    for got, state in zip(out[1:], want[1:], strict=False):
        np.testing.assert_allclose(got[0], state, rtol=1e-4, atol=1e-5)


def test_rnn_with_exposed_state():
    x, cont = rand(3, 2, 4), np.float32([[1, 1], [0, 1], [1, 1]])
    w_x, b, w_h = rand(3, 4, seed=1), rand(3, seed=2), rand(3, 3, seed=3)
    w_o, b_o, h = rand(3, 3, seed=4), rand(3, seed=5), rand(1, 2, 3, seed=6)
    y, last = forward(
        "RNN",
        "recurrent_param { num_output: 3 expose_hidden: true }",
        [x, cont, h],
        (w_x, b, w_h, w_o, b_o),
        tops=2,
    )
    want, state = naive.rnn(x, cont, w_x, b, w_h, w_o, b_o, h[0])
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last[0], state, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- losses


def nll(x: np.ndarray, label: int) -> float:
    return math.log(sum(math.exp(v) for v in x)) - x[label]


@pytest.mark.parametrize(
    ("params", "divisor"),
    [
        ("", 2),
        ("normalization: FULL", 3),
        ("normalization: BATCH_SIZE", 3),
        ("normalization: NONE", 1),
        ("normalize: false", 3),
        ("normalize: true", 2),
    ],
)
def test_softmax_loss_ignores_a_label(params: str, divisor: int):
    x, labels = rand(3, 4), np.float32([1, 9, 3])
    loss, prob = forward(
        "SoftmaxWithLoss", f"loss_param {{ ignore_label: 9 {params} }}", [x, labels], tops=2
    )
    assert loss.item() == pytest.approx((nll(x[0], 1) + nll(x[2], 3)) / divisor, rel=1e-5)
    np.testing.assert_allclose(prob.sum(axis=1), 1, rtol=1e-6)


def test_softmax_loss_over_an_image_divides_by_its_pixels():
    x, labels = rand(2, 3, 2, 2), np.float32([[[0, 1], [2, 0]], [[1, 1], [2, 2]]])
    (loss,) = forward("SoftmaxWithLoss", "", [x, labels])
    total = sum(
        nll(x[n, :, i, j], int(labels[n, i, j]))
        for n in range(2)
        for i in range(2)
        for j in range(2)
    )
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)


def test_softmax_loss_of_an_impossible_class_stops_at_the_smallest_float():
    (loss,) = forward("SoftmaxWithLoss", "", [np.float32([[0, 1000]]), np.float32([0])])
    assert loss.item() == pytest.approx(-math.log(np.finfo(np.float32).tiny), rel=1e-6)


def test_labels_beyond_the_classes_are_named():
    with pytest.raises(NetError, match=r"layer 'l'.*labels 0 to 4; 4 classes allow 0 to 3"):
        forward("SoftmaxWithLoss", "", [rand(2, 4), np.float32([0, 4])])


def test_infogain_loss_from_a_bottom_and_from_a_file(tmp_path: Path):
    x, labels, gain = rand(2, 3), np.float32([2, 0]), np.abs(rand(3, 3, seed=1))
    prob = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    want = -sum((gain[int(k)] * np.log(p)).sum() for k, p in zip(labels, prob, strict=True)) / 2
    (loss,) = forward("InfogainLoss", "", [x, labels, gain])
    assert loss.item() == pytest.approx(want, rel=1e-5)
    source = tmp_path / "gain.binaryproto"
    source.write_bytes(BlobProto(data=gain.reshape(-1).tolist()).SerializeToString())
    (loss,) = forward("InfogainLoss", f'infogain_loss_param {{ source: "{source}" }}', [x, labels])
    assert loss.item() == pytest.approx(want, rel=1e-5)
    with pytest.raises(NetError, match="cannot read the matrix 'none'"):
        forward("InfogainLoss", 'infogain_loss_param { source: "none" }', [x, labels])


def test_multinomial_and_contrastive_and_hinge_losses():
    prob = np.float32([[0.5, 0.5], [1, 0]])
    (loss,) = forward("MultinomialLogisticLoss", "", [prob, np.float32([0, 1])])
    assert loss.item() == pytest.approx((math.log(2) - math.log(1e-20)) / 2, rel=1e-5)
    a, b = np.float32([[3, 4], [0.3, 0.4]]), np.zeros((2, 2), np.float32)
    (loss,) = forward("ContrastiveLoss", "", [a, b, np.float32([1, 0])])
    assert loss.item() == pytest.approx((25 + 0.5**2) / 4, rel=1e-5)
    (loss,) = forward(
        "ContrastiveLoss",
        "contrastive_loss_param { legacy_version: true }",
        [a, b, np.float32([1, 0])],
    )
    assert loss.item() == pytest.approx((25 + 0.75) / 4, rel=1e-5)
    (loss,) = forward(
        "HingeLoss", "hinge_loss_param { norm: L2 }", [np.float32([[0.5, 2, -3]]), np.float32([1])]
    )
    assert loss.item() == pytest.approx(1.5**2)


def test_sigmoid_loss_ignores_and_normalizes():
    x, target = np.float32([[100, -100, 0]]), np.float32([[1, -1, 0]])
    (loss,) = forward(
        "SigmoidCrossEntropyLoss",
        "loss_param { ignore_label: -1 normalization: VALID }",
        [x, target],
    )
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-5)


def test_accuracy_counts_a_tie_against_the_label():
    scores = np.float32([[1, 1, 0], [0, 2, 1]])
    total, each = forward("Accuracy", "", [scores, np.float32([0, 1])], tops=2)
    assert total.item() == 0.5
    np.testing.assert_array_equal(each, [0, 1, 0])
    (total,) = forward("Accuracy", "accuracy_param { top_k: 2 }", [scores, np.float32([0, 1])])
    assert total.item() == 1
    (total,) = forward(
        "Accuracy", "accuracy_param { ignore_label: 0 }", [scores, np.float32([0, 1])]
    )
    assert total.item() == 1


# ---------------------------------------------------------------------------- selection


def test_argmax_takes_the_last_of_equal_values():
    x = np.float32([[1, 3, 3, 0]])
    (y,) = forward("ArgMax", "argmax_param { top_k: 3 out_max_val: true }", [x])
    np.testing.assert_array_equal(y, [[[2, 1, 0], [3, 3, 1]]])
    (y,) = forward("ArgMax", "argmax_param { top_k: 2 axis: -1 }", [x])
    np.testing.assert_array_equal(y, [[2, 1]])


def test_filter_keeps_the_chosen_items():
    x, labels = rand(4, 3), rand(4, 1, seed=1)
    a, b = forward("Filter", "", [x, labels, np.float32([0, 1, 0, 2])], tops=2)
    np.testing.assert_array_equal(a, x[[1, 3]])
    np.testing.assert_array_equal(b, labels[[1, 3]])


def test_eltwise_of_three_bottoms():
    x = [rand(2, 3, seed=k) for k in range(3)]
    for op, want in (
        ("SUM", x[0] - 2 * x[1] + x[2] / 2),
        ("PROD", x[0] * x[1] * x[2]),
        ("MAX", np.maximum.reduce(x)),
    ):
        coeff = "coeff: 1 coeff: -2 coeff: 0.5" if op == "SUM" else ""
        (y,) = forward("Eltwise", f"eltwise_param {{ operation: {op} {coeff} }}", x)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_power_of_zero_does_not_read_its_bottom():
    x = np.float32([np.nan, 1])
    (y,) = forward("Power", "power_param { power: 0 }", [x])
    np.testing.assert_array_equal(y, [1, 1])
    (y,) = forward("Power", "power_param { scale: 0 shift: 3 power: 2 }", [x])
    np.testing.assert_array_equal(y, [9, 9])


def test_crop_without_an_offset_and_with_one_for_all():
    x, like = rand(2, 3, 6, 7), rand(2, 3, 4, 5)
    (y,) = forward("Crop", "", [x, like])
    np.testing.assert_array_equal(y, x[:, :, :4, :5])
    (y,) = forward("Crop", "crop_param { axis: 2 offset: 2 }", [x, like])
    np.testing.assert_array_equal(y, x[:, :, 2:, 2:])
    (y,) = forward(
        "Crop", "crop_param { axis: 1 offset: 1 offset: 0 offset: 2 }", [x, rand(2, 2, 4, 5)]
    )
    np.testing.assert_array_equal(y, x[:, 1:, :4, 2:])


def test_legacy_names_of_concat_and_slice_axes():
    x, z = rand(2, 3), rand(1, 3)
    (y,) = forward("Concat", "concat_param { concat_dim: 0 }", [x, z])
    np.testing.assert_array_equal(y, np.concatenate([x, z]))
    a, b = forward("Slice", "slice_param { slice_dim: 0 }", [x], tops=2)
    np.testing.assert_array_equal(np.concatenate([a, b]), x)


# ---------------------------------------------------------------------------- sources, quantizing


def test_dummy_data_is_the_same_each_time():
    fillers = (
        "data_filler { type: 'constant' value: 3 } data_filler { type: 'gaussian' std: 2 } "
        "data_filler { type: 'uniform' min: -1 max: 1 }"
    )
    params = f"dummy_data_param {{ {fillers} shape {{ dim: 4 dim: 500 }} }}"
    a, b, c = forward("DummyData", params, [], tops=3)
    assert (a == 3).all()
    assert 1.9 < b.std() < 2.1
    assert -1 <= c.min() < -0.9 < 0.9 < c.max() <= 1
    again = forward("DummyData", params, [], tops=3)
    np.testing.assert_array_equal(again[1], b)


def test_parameter_is_its_blob():
    w = rand(3, 2)
    (y,) = forward("Parameter", "parameter_param { shape { dim: 3 dim: 2 } }", [], (w,))
    np.testing.assert_array_equal(y, w)


@pytest.mark.parametrize("device", DEVICES)
def test_quant(device: str):
    # 1 / 4 is exact, so s = 0.25; byte 0x83 is -125.
    x = np.float32([[-1.0, -0.75, 0, 0.124, 0.125, 0.375, 100, -0.8]])
    (y,) = forward("Quant", r'quant_param { scale: 4 offset: "\203" }', [x], device=device)
    np.testing.assert_array_equal(y, [[-0.75, -0.75, 0, 0, 0.25, 0.5, 63, -0.75]])


def test_dequant_rounds_through_sixteen_bits():
    deq, shift = np.float32([0.5, 2.0]), np.float32([1, 4])
    x = np.float32([[1.0, -1.5, 7.5, 1e6], [15.0, 17.0, -47.9, -1e9]]).reshape(1, 2, 2, 2)
    want = np.zeros((2, 4), np.float32)
    for c in range(2):
        for k, v in enumerate(x.reshape(2, 4)[c]):
            units = v / deq[c]
            q = math.copysign(math.floor(abs(units) + 0.5), units) / 2 ** shift[c]
            q = math.copysign(math.floor(abs(q) + 0.5), q)
            want[c, k] = min(max(q, -32768), 32767) * deq[c] * 2 ** shift[c]
    (y,) = forward(
        "DeQuant", "dequant_param { channel_wise: true }", [x], (deq, shift, np.zeros(2))
    )
    np.testing.assert_array_equal(y.reshape(2, 4), want)


def test_dequant_without_shift_is_the_identity_and_mixed_shifts_are_an_error():
    x, one = rand(2, 3), np.ones(1, np.float32)
    (y,) = forward("DeQuant", "", [x], (one * 7, one * 0, one))
    np.testing.assert_array_equal(y, x)
    (y,) = forward("AntiQuant", "", [x])
    np.testing.assert_array_equal(y, x)
    with pytest.raises(NetError, match="shift_bit must be all 0, or all whole"):
        forward(
            "DeQuant",
            "dequant_param { channel_wise: true }",
            [rand(1, 2, 1, 1)],
            (np.ones(2), np.float32([0, 3]), np.zeros(2)),
        )


def test_padding_on_one_axis_drops_the_last_window_of_both():
    """Caffe clips the last window on both axes where either is padded."""
    params = "pooling_param { pool: MAX kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 stride: 4 }"
    (y,) = forward("Pooling", params, [np.arange(30.0).reshape(1, 1, 6, 5)])
    # rows: ceil(5 / 4) + 1 = 3, but the third would begin at row 8, beyond the image
    assert y.shape == (1, 1, 2, 2)
