"""Convolution, deconvolution, inner product and pooling on a CUDA device or in the simulator."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import ConvGeometry, OutputStage, QuantParams, check_output, dispatch

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


def available() -> bool:
    """Whether there is a device, or the simulator stands for one."""
    try:
        return SIMULATED or dispatch.device_count("cuda") > 0
    except ImportError:
        return False


pytestmark = [
    pytest.mark.skipif(
        not available(), reason="needs a CUDA device, or NUMBA_ENABLE_CUDASIM=1 for the simulator"
    ),
    # the simulator's threads compute in NumPy, which warns of what a device does silently
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::Warning:numba"),
]
UNIT = QuantParams(0.05, -7)
OUTPUTS = {
    "sums": None,
    "float": OutputStage(1e-3),
    "relu": OutputStage(1e-3, clamp=(0, np.inf)),
    "int8": OutputStage(1e-3, clamp=(0, 6), params=UNIT),
    "shift": OutputStage(1e-3, np.array([5]), params=QuantParams(0.3, 1, 4)),
    "extreme": OutputStage(1e30, clamp=(-1e38, np.inf), params=QuantParams(1e-3)),
}


@pytest.fixture(scope="module", autouse=True)
def _short_turns():
    """Let the simulator's threads take turns often: they wait for each other all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module", autouse=True)
def _one_shared_array():
    """Let the simulator's threads find one shared array a line: two at once make one each."""
    if not SIMULATED:
        yield
        return
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    lock = threading.Lock()

    def array(self: Any, shape: Any, dtype: Any, alignment: None = None) -> np.ndarray:
        caller = sys._getframe(1)
        with lock:
            place = caller.f_code.co_filename, caller.f_lineno
            return self._allocations.setdefault(place, np.empty(shape, dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeCUDAShared, "array", array)
        yield


def held(x: np.ndarray) -> Any:
    """Return an array on the device."""
    from numba import cuda

    return cuda.to_device(np.ascontiguousarray(x).reshape(x.shape))


def agree(got: Any, want: np.ndarray, exact: bool = True) -> None:
    """Check dtype, shape and values: each bit of integers, floats that are sums to 1e-5."""
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if exact:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max(initial=0))


def both(call: Callable[..., Any], exact: bool = True) -> None:
    agree(call(device="cuda"), call(device="reference"), exact)


def operands(kind: str, x: tuple[int, ...], w: tuple[int, ...], outs: int, seed: int = 0) -> Any:
    """Return data, weights and bias of ``int8`` or ``float``."""
    rng = np.random.default_rng(seed)
    if kind == "float":
        return cases.normal(rng, *x), cases.normal(rng, *w), cases.normal(rng, outs)
    bias = rng.integers(-(2**12), 2**12, outs).astype(np.int32)
    return cases.int8s(rng, *x), cases.int8s(rng, *w), bias


# ------------------------------------------------------------------------------- convolution

CONVOLUTIONS = {
    "point": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "five": ((1, 5, 1, 1), (3, 5, 1, 1), {}),
    "odd": ((2, 5, 4, 5), (3, 5, 3, 2), {"stride": (2, 1), "pad": (1, 2), "dilation": (1, 2)}),
    "tiles": ((2, 4, 3, 3), (18, 4, 2, 2), {"pad": 1}),
    "groups": ((1, 6, 3, 3), (4, 3, 2, 2), {"group": 2, "pad": (0, 1)}),
    "depthwise": ((2, 3, 4, 3), (3, 1, 3, 3), {"group": 3, "pad": 1, "stride": (1, 2)}),
    "multiple": ((1, 2, 4, 4), (4, 1, 3, 3), {"group": 2, "dilation": (1, 1)}),
    "one channel": ((1, 1, 5, 4), (9, 1, 2, 3), {"stride": 2, "pad": (1, 0)}),
    "border alone": ((1, 2, 2, 2), (2, 2, 1, 1), {"pad": 2, "stride": 3}),
    "empty": ((0, 3, 4, 4), (2, 3, 3, 3), {}),
    "empty depthwise": ((0, 3, 4, 4), (3, 1, 3, 3), {"group": 3}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("kind", ["int8", "float"])
def test_convolution(name: str, kind: str):
    x_shape, w_shape, form = CONVOLUTIONS[name]
    x, w, bias = operands(kind, x_shape, w_shape, w_shape[0])
    if kind == "float":
        both(partial(kernels.conv2d, x, w, bias, **form), exact=False)
        return
    for offset, output in ((0, None), (-128, OUTPUTS["int8"])):
        both(partial(kernels.conv2d_int8, x, w, bias, x_offset=offset, output=output, **form))


@pytest.mark.parametrize("offset", [-128, 127])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("ends", [(-128, -128), (-128, 127), (127, 127)], ids=str)
def test_the_ends_of_int8(offset: int, group: int, ends: tuple[int, int]):
    x = np.full((1, 4, 3, 3), ends[0], np.int8)
    w = np.full((4, 4 // group, 2, 2), ends[1], np.int8)
    form = {"x_offset": offset, "pad": 1, "group": group}
    both(partial(kernels.conv2d_int8, x, w, **form))
    both(partial(kernels.deconv2d_int8, x, w, **form))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("group", [1, 5])
def test_output_stages(output: str, group: int):
    x, w, bias = operands("int8", (1, 5, 3, 3), (5, 5 // group, 2, 2), 5)
    both(partial(kernels.conv2d_int8, x, w, bias, x_offset=3, output=OUTPUTS[output], group=group))


def test_numbers_a_channel():
    x, w, bias = operands("int8", (1, 4, 2, 2), (3, 4, 1, 1), 3)
    scale, shift = np.array([1e-3, 2e-4, 3e-2], np.float32), np.array([0, 3, 16])
    for params in (None, UNIT):
        both(partial(kernels.conv2d_int8, x, w, bias, output=OutputStage(scale, shift, params=params)))  # fmt: skip


@cases.examples(12)
@given(st.data())
def test_convolutions_at_random(data: st.DataObject):
    group, per = data.draw(st.sampled_from([(1, 1), (1, 3), (1, 5), (2, 2), (3, 1)]))
    kernel, stride = data.draw(cases.pairs(1, 3)), data.draw(cases.pairs(1, 3))
    pad, dilation = data.draw(cases.pairs(0, 2)), data.draw(cases.pairs(1, 2))
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + data.draw(st.integers(0, 3))
        for k, p, d in zip(kernel, pad, dilation, strict=True)
    ]
    outs = group * data.draw(st.integers(1, 3))
    x, w, bias = operands("int8", (1, group * per, *size), (outs, per, *kernel), outs, 3)
    offset, case = data.draw(st.integers(-128, 127)), data.draw(cases.stages(outs))
    both(
        partial(
            kernels.conv2d_int8,
            x,
            w,
            bias,
            x_offset=offset,
            output=case.output,
            stride=stride,
            pad=pad,
            dilation=dilation,
            group=group,
        )
    )


# ----------------------------------------------------------------------------- deconvolution

DECONVOLUTIONS = {
    "point": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "two": ((2, 5, 3, 2), (5, 3, 3, 3), {"stride": 2, "pad": 1}),
    "gaps": ((1, 3, 2, 2), (3, 2, 2, 1), {"stride": (3, 2)}),
    "dilated": ((1, 4, 3, 2), (4, 3, 3, 2), {"stride": (2, 3), "dilation": (2, 1), "group": 2}),
    "bilinear": ((1, 3, 2, 3), (3, 1, 4, 4), {"stride": 2, "pad": 1, "group": 3}),
    "depthwise": ((2, 2, 3, 3), (2, 2, 3, 2), {"stride": 2, "dilation": (2, 1), "group": 2}),
    "cut": ((1, 2, 1, 1), (2, 3, 3, 3), {"stride": 4, "pad": 1}),
    "nothing reaches": ((1, 3, 1, 1), (3, 2, 2, 2), {"stride": 3, "dilation": 2, "pad": 1}),
    "empty": ((0, 3, 2, 2), (3, 2, 2, 2), {"stride": 2}),
}


@pytest.mark.parametrize("name", DECONVOLUTIONS)
@pytest.mark.parametrize("kind", ["int8", "float"])
def test_deconvolution(name: str, kind: str):
    x_shape, w_shape, form = DECONVOLUTIONS[name]
    x, w, bias = operands(kind, x_shape, w_shape, w_shape[1] * form.get("group", 1))
    if kind == "float":
        both(partial(kernels.deconv2d, x, w, bias, **form), exact=False)
        return
    for offset, output in ((0, None), (127, OUTPUTS["int8"])):
        both(partial(kernels.deconv2d_int8, x, w, bias, x_offset=offset, output=output, **form))


@cases.examples(8)
@given(st.data())
def test_deconvolutions_at_random(data: st.DataObject):
    group, per = data.draw(st.sampled_from([(1, 1), (1, 5), (2, 2), (3, 1)]))
    kernel, stride = data.draw(cases.pairs(1, 4)), data.draw(cases.pairs(1, 3))
    dilation, size = data.draw(cases.pairs(1, 2)), data.draw(cases.pairs(1, 3))
    w_shape = (group * per, data.draw(st.integers(1, 3)), *kernel)
    x, w, bias = operands("int8", (1, group * per, *size), w_shape, w_shape[1] * group, 5)
    most = [
        (s * (n - 1) + d * (k - 1)) // 2
        for s, n, d, k in zip(stride, size, dilation, kernel, strict=True)
    ]
    pad = tuple(data.draw(st.integers(0, min(m, 2))) for m in most)
    both(
        partial(
            kernels.deconv2d_int8,
            x,
            w,
            bias,
            x_offset=data.draw(st.integers(-128, 127)),
            stride=stride,
            pad=pad,
            dilation=dilation,
            group=group,
        )
    )


# ----------------------------------------------------------------------------- inner product


@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 3, 2), (3, 9, 5), (9, 7, 2), (17, 5, 18)])
def test_inner_product(shape: tuple[int, int, int]):
    rows, depth, outs = shape
    x, w, bias = operands("float", (rows, depth), (outs, depth), outs)
    both(partial(kernels.inner_product, x, w, bias), exact=False)
    x, w, bias = operands("int8", (rows, depth), (outs, depth), outs)
    for offset, output in ((127, None), (-128, OUTPUTS["int8"]), (0, OUTPUTS["shift"])):
        both(partial(kernels.inner_product_int8, x, w, bias, x_offset=offset, output=output))


# ----------------------------------------------------------------------------------- pooling

POOLS = {
    "point": ((1, 1, 1, 1), 1, {}),
    "caffe": ((1, 2, 5, 4), 3, {"stride": 2, "pad": 1}),
    "floor": ((1, 2, 5, 4), (2, 3), {"stride": (2, 1), "ceil_mode": False}),
    "all": ((2, 3, 7, 6), (7, 6), {}),
    "large": ((1, 1, 9, 8), (8, 7), {"pad": (2, 3)}),
    "empty": ((0, 2, 4, 4), 2, {}),
}


@pytest.mark.parametrize("name", POOLS)
def test_average(name: str):
    shape, window, form = POOLS[name]
    rng = np.random.default_rng(1)
    both(partial(kernels.avg_pool2d, cases.normal(rng, *shape), window, **form), exact=False)
    x, scale = cases.int8s(rng, *shape), np.full(shape[1], 0.03, np.float32)
    for offset, params in ((-128, None), (127, UNIT), (5, QuantParams(1e-2, -8, 4))):
        output = OutputStage(scale, clamp=(-1, 5), params=params)
        both(partial(kernels.avg_pool2d_int8, x, window, x_offset=offset, output=output, **form))


@pytest.mark.parametrize("name", POOLS)
def test_maximum(name: str):
    shape, window, form = POOLS[name]
    x = np.round(cases.normal(np.random.default_rng(2), *shape) * 2)
    if x.size > 10:
        x.reshape(-1)[[0, 3, 7]] = np.nan, -np.inf, np.inf
    one, two = (
        kernels.max_pool2d(x, window, return_indices=True, device=d, **form)
        for d in ("reference", "cuda")
    )
    for got, want in zip(two, one, strict=True):
        agree(got, want)


# ---------------------------------------------------------------------------------- variants


@pytest.fixture
def warps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the simulator a warp's product, by the layout that its instruction documents."""
    tensor = dispatch.backend("cuda", "gemm.mma")
    given: dict[int, Any] = {}

    def octets(words: tuple) -> np.ndarray:
        return np.array(words, np.int32).view(np.int8).astype(np.int64)

    def mma(a: Any, b: Any, c: Any) -> Any:
        cuda = tensor.cuda  # what stands for it while a kernel runs
        thread = cuda.threadIdx.x
        given[thread] = a, b
        cuda.syncthreads()
        warp, group, quad = thread // 32 * 32, thread % 32 // 4, thread % 4
        row = [given[warp + group * 4 + j][0] for j in range(4)]
        low = octets([r[0] for r in row] + [r[2] for r in row])
        high = octets([r[1] for r in row] + [r[3] for r in row])
        columns = []
        for column in (2 * quad, 2 * quad + 1):
            part = [given[warp + column * 4 + j][1] for j in range(4)]
            columns.append(octets([p[0] for p in part] + [p[1] for p in part]))
        sums = [int(line @ column) for line in (low, high) for column in columns]
        cuda.syncthreads()
        return tuple(np.int32(int(old) + new) for old, new in zip(c, sums, strict=True))

    if SIMULATED:
        monkeypatch.setattr(tensor, "mma", mma)


@pytest.mark.usefixtures("warps")
@pytest.mark.parametrize("variant", ["plain", "dp4a", "mma"])
@pytest.mark.parametrize("transposed", [False, True])
def test_variants_agree(variant: str, transposed: bool):
    gemm, arrays = dispatch.backend("cuda", "gemm.layer"), dispatch.backend("cuda", "arrays")
    group, per, outs = 2, 9, 66 if variant == "mma" else 6  # more than one tile of channels
    form = {"stride": (2, 1), "pad": (1, 0), "group": group}
    w_shape = (group * per, outs // group, 2, 2) if transposed else (outs, per, 2, 2)
    x, w, bias = operands("int8", (2, group * per, 3, 4), w_shape, outs)
    call = kernels.deconv2d_int8 if transposed else kernels.conv2d_int8
    want = call(x, w, bias, x_offset=-3, output=OUTPUTS["int8"], device="reference", **form)
    g = ConvGeometry((2, 2), (2, 1), (1, 0), (1, 1), group, want.shape[2:])
    made = gemm.Layer.make(
        (3, 4), arrays.on_device(w), bias, -3, g, check_output(OUTPUTS["int8"], outs, -3),
        floats=False, transposed=transposed, variant=variant,
    )  # fmt: skip
    agree(made(arrays.on_device(x)).copy_to_host(), want)


@pytest.mark.usefixtures("warps")
def test_tensor_cores_with_more_channels_than_a_tile():
    gemm, arrays = dispatch.backend("cuda", "gemm.layer"), dispatch.backend("cuda", "arrays")
    x, w, bias = operands("int8", (1, 67, 2, 65), (65, 67, 1, 1), 65)
    want = kernels.conv2d_int8(x, w, bias, x_offset=100, device="reference")
    g = ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1, (2, 65))
    made = gemm.Layer.make(
        (2, 65), arrays.on_device(w), bias, 100, g, check_output(None, 65, 100),
        floats=False, variant="mma",
    )  # fmt: skip
    agree(made(arrays.on_device(x)).copy_to_host(), want)


def test_the_choice_of_a_variant():
    choose = dispatch.backend("cuda", "gemm.layer").choose
    assert choose(True, 512, 512, (9, 0)) == "float"
    assert choose(False, 512, 512, (9, 0)) == choose(False, 64, 144, (8, 0)) == "mma"
    assert choose(False, 64, 2, (9, 0)) == choose(False, 512, 512, (7, 5)) == "dp4a"
    assert choose(False, 512, 512, (5, 0)) == "plain"


def test_images_beyond_the_numbers_of_pixels_are_run_in_parts(monkeypatch: pytest.MonkeyPatch):
    gemm = dispatch.backend("cuda", "gemm.layer")
    monkeypatch.setattr(gemm, "_MOST_PIXELS", 13)
    x, w, bias = operands("int8", (5, 5, 3, 2), (3, 5, 1, 1), 3)
    both(partial(kernels.conv2d_int8, x, w, bias))


# ------------------------------------------------------------------------------------- where


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["int8", "float"])
@pytest.mark.parametrize("group", [1, 5])
def test_prepared_convolutions(kind: str, last: bool, group: int):
    x, w, bias = operands(kind, (2, 5, 3, 4), (10, 5 // group, 2, 2), 10)
    form = {"pad": 1, "group": group, "channels_last": last}
    if kind == "int8":
        form |= {"x_offset": 4, "output": OUTPUTS["int8"]}
    run, want = (
        kernels.prepare_conv2d(x.shape, w, bias, device=d, **form) for d in ("cuda", "reference")
    )
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x
    agree(run(x), want(x), kind == "int8")
    agree(run(held(x)).copy_to_host(), want(x), kind == "int8")
    with pytest.raises(ValueError, match="only the device 'cpu' computes in place"):
        run.in_place()


def test_device_arrays_stay_on_the_device():
    x, w, bias = operands("int8", (9, 8, 3, 3), (4, 8, 2, 2), 4)
    f, v, b = operands("float", (9, 8, 3, 3), (8, 4, 2, 2), 4)
    flat, rows = f.reshape(9, -1), v.reshape(4, -1)[:, :32].repeat(3, axis=1)[:, :72]
    for call, arrays in (
        (partial(kernels.conv2d_int8, output=OUTPUTS["int8"]), (x, w, bias)),
        (kernels.deconv2d_int8, (x, w.transpose(1, 0, 2, 3).copy(), bias)),
        (kernels.conv2d, (f, v.transpose(1, 0, 2, 3).copy(), b)),
        (kernels.deconv2d, (f, v, b)),
        (kernels.inner_product, (flat, rows, b)),
        (kernels.inner_product_int8, (x.reshape(9, -1), w[:, :, 0, 0].repeat(9, 1), bias)),
        (partial(kernels.avg_pool2d, kernel=2), (f,)),
        (partial(kernels.avg_pool2d_int8, kernel=2, output=OUTPUTS["float"]), (x,)),
        (partial(kernels.max_pool2d, kernel=2), (f,)),
    ):
        parts = [np.ascontiguousarray(a) for a in arrays]
        got = call(*(held(a) for a in parts), device="cuda")
        assert not isinstance(got, np.ndarray)
        exact = parts[0].dtype == np.int8 or len(parts) == 1
        agree(got.copy_to_host(), call(*parts, device="reference"), exact)
        if len(parts) == 3:  # data of the host, weights of the device
            mixed = call(parts[0], *(held(a) for a in parts[1:]), device="cuda")
            agree(mixed, got.copy_to_host())


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_device_arrays_are_refused_elsewhere(device: str):
    x, w, bias = operands("int8", (1, 2, 3, 3), (2, 2, 1, 1), 2)
    f = x.astype(np.float32)
    for call in (
        partial(kernels.conv2d_int8, held(x), w),
        partial(kernels.conv2d_int8, x, held(w)),
        partial(kernels.conv2d_int8, x, w, held(bias)),
        partial(kernels.deconv2d_int8, x, held(w)),
        partial(kernels.inner_product_int8, x[:, :, 0, 0], held(w[:, :, 0, 0])),
        partial(kernels.prepare_conv2d, x.shape, held(w)),
        partial(kernels.avg_pool2d, held(f), 2),
        partial(kernels.max_pool2d, held(f), 2),
        lambda device: kernels.prepare_conv2d(x.shape, w, device=device)(held(x)),
    ):
        with pytest.raises(TypeError, match="lies on a CUDA device"):
            call(device=device)


def test_sums_beyond_int32_are_refused_wherever_the_weights_lie():
    x = np.zeros((1, 70_000), np.int8)
    w, bias = np.full((1, 70_000), -128, np.int8), np.zeros(1, np.int32)
    for weights in (w, held(w)):
        with pytest.raises(OverflowError, match="output channel 0"):
            kernels.inner_product_int8(x, weights, device="cuda")
    huge = np.full(1, 2**31 - 1, np.int32)
    with pytest.raises(OverflowError, match="output channel 0"):
        kernels.inner_product_int8(x[:, :9], held(w[:, :9]), held(huge), device="cuda")
    few = held(np.where(np.arange(70_000) < 9, w, 0).astype(np.int8))
    assert kernels.inner_product_int8(x, few, held(bias), device="cuda").tolist() == [[0]]


def test_dtypes_and_shapes_of_device_arrays_are_checked():
    x, w, bias = operands("int8", (1, 2, 3, 3), (2, 2, 1, 1), 2)
    with pytest.raises(TypeError, match="bias must be int32"):
        kernels.conv2d_int8(x, w, held(bias.astype(np.float32)), device="cuda")
    with pytest.raises(ValueError, match=r"bias must be int32 of shape \(2,\)"):
        kernels.conv2d_int8(x, w, held(np.zeros(3, np.int32)), device="cuda")
    with pytest.raises(TypeError, match="w must be int8"):
        kernels.conv2d_int8(x, held(w.astype(np.float32)), device="cuda")
