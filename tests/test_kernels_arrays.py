"""Arrays of other libraries go in as NumPy's do, uncopied, and errors say what to write."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import kernel_cases as cases
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import ChannelParams, OutputStage, QuantParams
from kernels.checks import as_array
from kernels.hfmg import hfmg_search


class OnlyArray:
    """An array that is known by ``__array__`` alone, read-only, as JAX hands them out."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values.view()
        self.values.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)


class OnlyDlpack:
    """An array that is known by DLPack alone."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack__(self, **settings: Any) -> Any:
        return self.values.__dlpack__(**settings)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


def tensor(x: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(x)


WAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "torch": tensor,
    "__array__": OnlyArray,
    "__dlpack__": OnlyDlpack,
}

RNG = np.random.default_rng(5)
P = QuantParams(0.05, -3)
X, W = cases.normal(RNG, 2, 4, 6, 5), cases.normal(RNG, 6, 4, 3, 3)
XQ, WQ = cases.int8s(RNG, 2, 4, 6, 5), cases.int8s(RNG, 6, 4, 3, 3)
BIAS, BIAS_Q = cases.normal(RNG, 6), RNG.integers(-99, 99, 6).astype(np.int32)
ROWS, ROWS_Q, DENSE, DENSE_Q = X.reshape(8, 30), XQ.reshape(8, 30), W[:, :, 0, 0], WQ[:, :, 0, 0]
SCALES = RNG.uniform(0.01, 0.1, 6).astype(np.float32)
SUMS = RNG.integers(-99999, 99999, (2, 6, 5)).astype(np.int32)
COVARIANCE = np.cov(RNG.normal(size=(36, 99)))
GRID = kernels.ulq_grid(1.5, -1.0)
GEOMETRY = kernels.ConvGeometry((3, 3), (1, 1), (0, 0), (1, 1), 1, (4, 3))
COLUMNS = kernels.column_moments(XQ, 3, GEOMETRY, np.arange(24))
STAGE = OutputStage(0.01)


def observed(*arrays: Any) -> Any:
    hist = kernels.Histogram(64, 8)
    for x in arrays:
        hist.update(x)
    return hist.counts, hist.smallest, hist.low


def ifmr_pass(x: Any) -> Any:
    second = kernels.IfmrPass(kernels.ifmr_candidates(-1.0, 1.0, kernels.Ifmr()))
    second.update(x)
    return second.losses


def best(losses: Any) -> Any:
    return kernels.ifmr_candidates(0.0, 1.0, kernels.Ifmr((0.5, 1.5), 0.5)).best(losses)


def shifts(*arguments: Any) -> Any:
    search = kernels.ShiftSearch(6)
    search.update(*arguments)
    return search.best(), search.errors


def moments(gain: Any) -> Any:
    found = kernels.channel_moments(X, X + 1)
    return found.shift(gain), found.noise(gain, gain)


def staged(scale: Any, shift: Any) -> Any:
    return kernels.inner_product_int8(
        DENSE_Q, DENSE_Q, output=OutputStage(scale, shift, params=QuantParams(5.0))
    )


def prepared(w: Any, bias: Any, x: Any) -> Any:
    return kernels.prepare_conv2d((2, 4, 6, 5), w, bias)(x)


k = kernels
#: What takes arrays: each public function by its name, and methods and parameters beside them.
CALLS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "arq": (k.arq, (W,)),
    "arq_fake_quantize": (k.arq_fake_quantize, (W,)),
    "avg_pool2d": (lambda x: k.avg_pool2d(x, 2), (X,)),
    "avg_pool2d_int8": (lambda x: k.avg_pool2d_int8(x, 2, output=STAGE), (XQ,)),
    "best_levels": (lambda mass: k.best_levels(mass, 4), (RNG.random(256),)),
    "channel_moments": (k.channel_moments, (X, X + 1)),
    "column_moments": (lambda x, at: k.column_moments(x, 3, GEOMETRY, at), (XQ, np.arange(24))),
    "column_moments of floats": (
        lambda x, at: k.column_moments(x, 0, GEOMETRY, at), (X, np.arange(24)),
    ),
    "compensated_rounding": (
        lambda w, s, levels: k.compensated_rounding(w, s, COLUMNS, levels=levels),
        (W.reshape(1, 6, 36), SCALES[None], np.array([-9, 0, 4], np.int8)),
    ),
    "conv2d": (k.conv2d, (X, W, BIAS)),
    "conv2d_int8": (k.conv2d_int8, (XQ, WQ, BIAS_Q)),
    "decompositions": (k.decompositions, (W, COVARIANCE, np.arange(1.0, 7.0))),
    "deconv2d": (k.deconv2d, (X, W.transpose(1, 0, 2, 3), BIAS)),
    "deconv2d_int8": (k.deconv2d_int8, (XQ, WQ.transpose(1, 0, 2, 3), BIAS_Q)),
    "dequantize": (lambda q: k.dequantize(q, P), (XQ,)),
    "dequantize uint8": (lambda q: k.dequantize(q, P), (XQ.view(np.uint8),)),
    "dequantize_weights": (k.dequantize_weights, (WQ, SCALES)),
    "entropy_bits": (k.entropy_bits, (WQ,)),
    "fake_quantize": (lambda x: k.fake_quantize(x, P), (X,)),
    "fake_quantize_weights": (k.fake_quantize_weights, (W, SCALES)),
    "ifmr": (k.ifmr, (X,)),
    "inner_product": (k.inner_product, (DENSE, DENSE, BIAS)),
    "inner_product_int8": (k.inner_product_int8, (DENSE_Q, DENSE_Q, BIAS_Q)),
    "level_table": (k.level_table, (np.array([-9, 0, 4], np.int8),)),
    "max_pool2d": (lambda x: k.max_pool2d(x, 2), (X,)),
    "output_error": (k.output_error, (W, W * np.float32(1.1), COVARIANCE, np.arange(1.0, 7.0))),
    "prepare_conv2d": (prepared, (W, BIAS, X)),
    "prepare_conv2d of integers": (prepared, (WQ, BIAS_Q, XQ)),
    "quantize": (lambda x: k.quantize(x, P), (X,)),
    "quantize_weights": (k.quantize_weights, (W, SCALES)),
    "requantize": (lambda acc, s: k.requantize(acc, s, P), (SUMS, SCALES)),
    "ulq_backward": (lambda x, g: k.ulq_backward(x, g, GRID), (X, X * 2)),
    "ulq_forward": (lambda x: k.ulq_forward(x, GRID), (X,)),
    "ChannelMoments": (moments, (np.arange(4.0),)),
    "ChannelParams": (lambda s, o: k.quantize(DENSE, ChannelParams(s, o, axis=0)),
                      (SCALES, np.arange(6))),
    "Histogram": (observed, (X, ROWS[:, ::2])),
    "IfmrCandidates": (best, (np.array([3.0, 1.0, 2.0]),)),
    "IfmrPass": (ifmr_pass, (X,)),
    "OutputStage": (staged, (SCALES, np.arange(6))),
    "ShiftSearch": (shifts, (SUMS,)),
    "ShiftSearch of floats": (shifts, (SUMS.astype(np.float32), SCALES)),
    "hfmg_search": (lambda counts: hfmg_search(counts, -1.0, 1.0).params, (np.arange(99),)),
}  # fmt: skip


def plain(result: Any) -> Any:
    """Return a result in a form that compares bit by bit; arrays must be NumPy's."""
    if isinstance(result, np.ndarray):
        return result.dtype, result.shape, result.tobytes()
    if isinstance(result, tuple | list):
        return [plain(r) for r in result]
    if isinstance(result, dict):
        return {key: plain(r) for key, r in result.items()}
    if hasattr(result, "__dataclass_fields__"):
        return plain({name: getattr(result, name) for name in result.__dataclass_fields__})
    assert isinstance(result, int | float | bool | None)
    return result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_any_library_give_the_same(name: str, way: str):
    call, arrays = CALLS[name]
    assert plain(call(*(WAYS[way](a) for a in arrays))) == plain(call(*arrays))


def test_the_table_has_every_function_that_takes_arrays():
    functions = [n for n in kernels.__all__ if inspect.isfunction(getattr(kernels, n))]
    taking = {
        name
        for name in functions
        for p in inspect.signature(getattr(kernels, name)).parameters.values()
        if "Array" in str(p.annotation)
    }
    assert taking <= set(CALLS)
    assert len(taking) > 25


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_that_requires_a_gradient_is_refused_by_name(name: str):
    torch = pytest.importorskip("torch")
    call, arrays = CALLS[name]
    for i, x in enumerate(arrays):
        if x.dtype.kind != "f":
            continue
        given = [torch.from_numpy(a) for a in arrays]
        given[i] = given[i].requires_grad_()
        with pytest.raises(TypeError, match=r"([\w.]+) requires a gradient.*: pass \1\.detach\(\)"):
            call(*given)
        with torch.no_grad(), pytest.raises(TypeError, match=r"\.detach\(\)"):
            call(*given)


# -------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "x",
    [X, X.transpose(3, 1, 0, 2), X[:, ::2, 1:], X[:0], np.ones((), np.float32), WQ, XQ.view("u1")],
    ids=lambda x: f"{x.dtype} {x.shape}",
)
def test_memory_is_shared(x: np.ndarray, way: str):
    got = as_array("x", WAYS[way](x))
    assert type(got) is np.ndarray
    assert (got.dtype, got.shape) == (x.dtype, x.shape)
    assert got.tobytes() == x.tobytes()
    if x.size:
        assert np.shares_memory(got, x)
        assert got.strides == x.strides


def test_arrays_of_numpy_and_what_is_no_array_are_left_alone():
    for x in (X, X.T, np.float32(1), [1.0], 2.5, "x", None):
        assert as_array("x", x) is x


@pytest.mark.parametrize("wrong", [[1.0], (1.0,), 1.0, "x", None, np.float32(1)])
def test_lists_and_scalars_are_no_arrays(wrong: Any):
    with pytest.raises(TypeError, match=f"x must be a NumPy array, not {type(wrong).__name__}"):
        kernels.quantize(wrong, P)


@cases.examples(60)
@given(st.data())
def test_views_of_tensors_quantize_as_those_of_arrays(data: st.DataObject):
    torch = pytest.importorskip("torch")
    x = cases.normal(np.random.default_rng(data.draw(st.integers(0, 99))), 4, 5, 6) * np.float32(9)
    t = torch.from_numpy(x.copy())
    axes = data.draw(st.permutations(range(3)))
    x, t = x.transpose(axes), t.permute(axes)
    for axis in range(3):
        first, step = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
        part = (slice(None),) * axis + (slice(first, None, step),)
        x, t = x[part], t[part]
    for device in cases.DEVICES:
        for call in (kernels.quantize, kernels.fake_quantize):
            assert plain(call(t, P, device=device)) == plain(call(x, P, device=device))


@pytest.mark.parametrize("device", cases.DEVICES)
def test_a_tensor_is_filled_and_returned(device: str):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X)
    for call, data, dtype in (
        (kernels.quantize, x, torch.int8),
        (kernels.fake_quantize, x, torch.float32),
        (kernels.dequantize, torch.from_numpy(XQ), torch.float32),
    ):
        out = torch.zeros(x.shape, dtype=dtype)
        assert call(data, P, out=out, device=device) is out
        assert out.numpy().tobytes() == call(data.numpy(), P, device=device).tobytes()
    again = x.clone()
    assert kernels.fake_quantize(again, P, out=again, device=device) is again
    assert (again.numpy() == kernels.fake_quantize(X, P, device=device)).all()
    inside = again.view(torch.int8).reshape(-1)[: x.numel()].view(x.shape)
    with pytest.raises(ValueError, match="out overlaps the input"):
        kernels.quantize(again, P, out=inside, device=device)


def test_an_out_that_can_only_be_copied_is_refused():
    class Copied:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.zeros(X.shape, np.int8)

    with pytest.raises(TypeError, match="out is a Copied that NumPy can only copy"):
        kernels.quantize(X, P, out=Copied())
    with pytest.raises(ValueError, match="out is read-only"):
        kernels.quantize(X, P, out=OnlyArray(np.zeros(X.shape, np.int8)))


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4"])
def test_other_floats_are_refused_with_the_conversion(dtype: str):
    message = r"^{0} must be float32, not {1}: convert it with {0}\.astype\(np\.float32\)$"
    with pytest.raises(TypeError, match=message.format("x", dtype)):
        kernels.quantize(X.astype(dtype), P)
    with pytest.raises(TypeError, match=message.format("bias", dtype)):
        kernels.conv2d(X, W, BIAS.astype(dtype))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_floats_of_torch_are_refused_with_the_conversion(dtype: str):
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    message = rf"^x must be float32, not torch\.{dtype}: convert it with x\.float\(\)$"
    for call in (
        lambda: kernels.quantize(x, P),
        lambda: kernels.Histogram().update(x),
        lambda: kernels.inner_product(x, DENSE),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_other_dtypes_are_named_without_advice():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"^x must be float32, not torch\.int64$"):
        kernels.quantize(torch.zeros(2, dtype=torch.int64), P)
    with pytest.raises(TypeError, match=r"^q must be int8, not torch\.bfloat16$"):
        kernels.dequantize(torch.zeros(2, dtype=torch.bfloat16), P)
    with pytest.raises(TypeError, match=r"^x must be float32, not complex64$"):
        kernels.quantize(X.astype(np.complex64), P)


def test_dtypes_of_torch_name_no_result():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"dtype must be np\.int8 or np\.uint8, not torch\.uint8"):
        kernels.quantize(X, P, dtype=torch.uint8)


def test_tensors_that_numpy_cannot_read_are_refused_by_name():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X)
    for odd in (x.to_sparse(), x._neg_view()):
        with pytest.raises(TypeError, match="x cannot be read as a NumPy array: "):
            kernels.quantize(odd, P)
