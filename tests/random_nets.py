"""Random nets for differential tests: each layer is tried on the values that are there.

A net grows layer by layer. What a layer makes is computed at once, alone, in NumPy on the
device `reference`; these values are what every other way of running the net is held against.

About half of the nets compute on small whole numbers and binary fractions. As long as the sums of
a layer stay below 2**24 units they are exact in float32 in whatever order they are taken, so that
all ways must agree bit for bit, also behind layers that jump (Threshold, ArgMax, the places of
maxima). In the others each value has a tolerance, found by running the net on slightly other
numbers; layers that jump are left out there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from google.protobuf import text_format

import caffeio
from caffeio import Layer, Net, Value
from caffeio.errors import NetError
from caffeio.proto import caffe_pb2 as pb
from pipeline.layers import layer_type
from pipeline.retrain.layers import torch_layer

__all__ = ["RandomNet", "random_net", "random_values"]

#: Values of a blob, at most.
LARGEST = 6000
#: Units in which sums are exact in float32.
EXACT_UNITS = 1 << 24
#: Numbers of channels: around the widths of vectors, few of them, for each is compiled.
CHANNELS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 17, 33)


@dataclass(frozen=True)
class Blob:
    """What is known of a blob's present value.

    Attributes
    ----------
    value : Value
    array : float32 array
    unit : float
        Of which its values are multiples, if it is exact; 0 if it is not.
    positive : bool
        Values are above 0, and not by far.
    """

    value: Value
    array: np.ndarray
    unit: float
    positive: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(frozen=True)
class RandomNet:
    """A net with its inputs and all its values.

    Attributes
    ----------
    seed : int
    net : Net
    inputs : dict of blob name to float32 array
    values : dict of Value to float32 array
        As `reference` computes them, one layer after the other.
    exact : frozenset of Value
        Those that every way of computing must give bit for bit.
    """

    seed: int
    net: Net
    inputs: dict[str, np.ndarray]
    values: dict[Value, np.ndarray]
    exact: frozenset[Value]

    @property
    def last(self) -> dict[str, Value]:
        """The last value of each blob name."""
        return {v.blob: v for v in sorted(self.values)}


@dataclass
class Growing:
    """A net as it grows."""

    rng: np.random.Generator
    whole: bool
    layers: list[Layer] = field(default_factory=list)
    blobs: dict[str, Blob] = field(default_factory=dict)
    unsure: dict[str, Blob] = field(default_factory=dict)
    first: str | None = None
    values: dict[Value, np.ndarray] = field(default_factory=dict)
    exact: set[Value] = field(default_factory=set)

    # choosing

    def one_of(self, *choices):
        """Return one of some values, as Python has it."""
        return choices[self.rng.integers(len(choices))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(
        self, test: Callable[[Blob], bool] = lambda b: True, any_size: bool = False
    ) -> str | None:
        """Return the name of a blob that passes a test; late ones are likelier.

        Where a layer takes any size, it may be one whose number of items depends on data. The
        one that `first` names is taken where it passes.
        """
        if self.first is not None and self.first in self.blobs and test(self.blobs[self.first]):
            return self.first
        some = self.unsure if any_size and self.unsure and self.chance(0.3) else self.blobs
        names = [name for name, b in some.items() if test(b)]
        if not names:
            return None
        recent = names[-3:] if self.chance(0.7) else names
        return self.one_of(*recent)

    def rank(self, *ranks: int) -> str | None:
        return self.pick(lambda b: b.array.ndim in ranks)

    def blob(self, name: str) -> Blob:
        return self.blobs[name] if name in self.blobs else self.unsure[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.blob(name).shape

    def axis(self, ndim: int, first: int = 0) -> int:
        """Return an axis, counted from either end."""
        a = int(self.rng.integers(first, ndim))
        return a - ndim if self.chance(0.25) else a

    def numbers(self, *shape: int, low: int = -2, high: int = 2) -> np.ndarray:
        """Return random weights or data: whole numbers, or real ones of about that range."""
        if self.whole:
            return self.rng.integers(low, high + 1, shape).astype(np.float32)
        return (self.rng.normal(size=shape) * (high - low) / 4 + (high + low) / 2).astype(
            np.float32
        )

    # growing

    def source(self, name: str, array: np.ndarray) -> None:
        dims = " ".join(f"dim: {d}" for d in array.shape)
        param = pb.LayerParameter()
        text_format.Parse(
            f'name: "in_{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }}',
            param,
        )
        self.layers.append(Layer(f"in_{name}", "Input", (), (name,), param))
        value = Value(name)
        unit = 1.0 if self.whole else 0.0
        self.blobs[name] = Blob(value, array, unit)
        self.values[value] = array
        if unit:
            self.exact.add(value)

    def counts(self, name: str, most: int, *shape: int) -> None:
        """Add an input of whole numbers from 0."""
        array = self.rng.integers(0, most + 1, shape).astype(np.float32)
        self.source(name, array)
        value = Value(name)
        self.blobs[name] = Blob(value, array, 1.0)
        self.exact.add(value)

    def add(self, proposal: Proposal) -> bool:
        """Try a layer; return whether it fits."""
        bottoms = [self.blob(name) for name in proposal.bottoms]
        try:
            layer = self._layer(proposal, [b.shape for b in bottoms])
            kind = layer_type(layer)
            shapes = kind.shapes(layer, [b.shape for b in bottoms])
            if any(np.prod(s) > LARGEST or 0 in s for s in shapes):
                return False
            with np.errstate(all="ignore"):
                arrays = kind.forward(layer, [b.array for b in bottoms], "reference")
        except (NetError, ValueError):  # or a label is out of range
            return False
        arrays = tuple(np.asarray(y) for y in arrays)
        assert all(y.dtype == np.float32 for y in arrays), layer.type
        if not kind.data_dependent:
            assert [y.shape for y in arrays] == [tuple(s) for s in shapes], layer.type
        if not all(y.size for y in arrays):
            return False
        if not all(np.isfinite(y).all() and np.abs(y).max(initial=0) < 1e6 for y in arrays):
            return False
        unit = self._unit(layer, proposal, bottoms)
        if proposal.jumps and not all(b.unit for b in bottoms):
            return False
        self.layers.append(layer)
        for name, array in zip(layer.tops, arrays, strict=True):
            known = name in self.blobs or name in self.unsure
            value = Value(name, self.blob(name).value.version + 1 if known else 0)
            # what is written again is the newest
            unsure = kind.data_dependent or any(n in self.unsure for n in proposal.bottoms)
            self.blobs.pop(name, None)
            (self.unsure if unsure else self.blobs)[name] = Blob(
                value, array, unit, proposal.positive
            )
            self.values[value] = array
            if unit:
                self.exact.add(value)
        return True

    def _layer(self, p: Proposal, shapes: Sequence[tuple[int, ...]]) -> Layer:
        number = len(self.layers)
        name = f"{p.type.lower()}{number}"
        tops = tuple(f"{name}_{i}" for i in range(p.tops)) if p.tops > 1 else (name,) * p.tops
        if p.in_place and self.chance(0.5):
            tops = p.bottoms[:1]
        ends = "".join(f' bottom: "{b}"' for b in p.bottoms) + "".join(f' top: "{t}"' for t in tops)
        param = pb.LayerParameter()
        text_format.Parse(f'name: "{name}" type: "{p.type}"{ends} {p.params}', param)
        layer = Layer(name, p.type, p.bottoms, tops, param)
        specs = torch_layer(layer).blobs(layer, list(shapes))
        if p.blobs is not None:
            return replace(layer, blobs=tuple(p.blobs(s.shape, i) for i, s in enumerate(specs)))
        scale = 1.0
        if not self.whole and specs:
            scale = 1 / np.sqrt(max(1, np.prod(specs[0].shape[1:])))
        blobs = [self.numbers(*s.shape) * np.float32(scale) for s in specs]
        if self.chance(0.1):  # as old files have them
            blobs = [b.reshape((1,) * (4 - b.ndim) + b.shape) if b.ndim < 3 else b for b in blobs]
        return replace(layer, blobs=tuple(blobs))

    def _unit(self, layer: Layer, p: Proposal, bottoms: Sequence[Blob]) -> float:
        """Return the unit of what a layer makes, 0 if its sums may not be exact."""
        if p.unit == 0 or not all(b.unit for b in bottoms) or not self.whole:
            return 0.0
        unit = p.unit * min((b.unit for b in bottoms), default=1.0)
        if p.type in ("Eltwise", "Scale", "Axpy") and p.product:
            unit = p.unit * float(np.prod([b.unit for b in bottoms]))
        # no sum is larger than that of all magnitudes
        sure = replace(layer, blobs=tuple(map(np.abs, layer.blobs)))
        with np.errstate(all="ignore"):
            sizes = [np.asarray(np.abs(b.array)) for b in bottoms]
            tops = layer_type(layer).forward(sure, sizes, "reference")
        most = max((float(np.abs(y).max(initial=0)) for y in tops), default=0.0)
        return unit if most / unit < EXACT_UNITS / 4 else 0.0


@dataclass(frozen=True)
class Proposal:
    """A layer that might fit.

    Attributes
    ----------
    type, params : str
    bottoms : tuple of str
    tops : int
    unit : float
        The unit of the tops if the bottoms have 1; 0: they are not exact.
    in_place : bool
        May overwrite its first bottom.
    jumps : bool
        A small change of a bottom may change a top much.
    product : bool
        Multiplies bottoms.
    positive : bool
        Its top is above 0 and not far from it.
    blobs : callable or None
        ``blobs(shape, index)`` makes its weights.
    """

    type: str
    bottoms: tuple[str, ...]
    params: str = ""
    tops: int = 1
    unit: float = 0.0
    in_place: bool = False
    jumps: bool = False
    product: bool = False
    positive: bool = False
    blobs: Callable[[tuple[int, ...], int], np.ndarray] | None = None


Maker = Callable[[Growing], Proposal | None]


def _windows(g: Growing, pads: bool = True, dilates: bool = False) -> str:
    """Return kernel, stride, pad and dilation, in one of their spellings."""
    kh, kw = int(g.rng.integers(1, 5)), int(g.rng.integers(1, 5))
    sh, sw = int(g.rng.integers(1, 4)), int(g.rng.integers(1, 4))
    ph, pw = (int(g.rng.integers(0, 3)), int(g.rng.integers(0, 3))) if pads else (0, 0)
    square = g.chance(0.5)
    if square:
        text = f"kernel_size: {kh} stride: {sh}" + (f" pad: {ph}" if ph else "")
    else:
        text = f"kernel_h: {kh} kernel_w: {kw} stride_h: {sh} stride_w: {sw}"
        text += f" pad_h: {ph} pad_w: {pw}" if ph or pw else ""
    if dilates and g.chance(0.3):
        text += f" dilation: {g.one_of(1, 2, 3)}"
        text += f" dilation: {g.one_of(1, 2)}" if g.chance(0.5) else ""
    return text


def convolution(g: Growing, kind: str) -> Proposal | None:
    x = g.rank(3, 4, 4, 4, 4, 5)
    if x is None:
        return None
    shape = g.shape(x)
    axis = 1 if g.chance(0.9) else g.axis(len(shape), 1)
    channels, spatial = shape[axis], len(shape) - 1 - axis % len(shape)
    depthwise = kind in ("ConvolutionDepthwise", "DepthwiseConvolution") or g.chance(0.2)
    divisors = [d for d in (1, 1, 1, 2, 3, 4) if channels % d == 0]
    group = channels if depthwise else g.one_of(*divisors)
    outs = group * g.one_of(1, 2, 3) if group > 1 else g.one_of(*CHANNELS)
    outs = channels if depthwise and g.chance(0.8) else outs
    if spatial == 2:
        windows = _windows(g, dilates=True)
    else:
        windows = f"kernel_size: {g.one_of(1, 2, 3)} stride: {g.one_of(1, 2)} pad: {g.one_of(0, 1)}"
    bias = "" if g.chance(0.7) else "bias_term: false"
    where = "" if axis == 1 else f"axis: {axis}"
    params = f"convolution_param {{ num_output: {outs} group: {group} {windows} {bias} {where} }}"
    more = [n for n, b in g.blobs.items() if n != x and b.shape == shape]
    bottoms = (x, more[0]) if more and g.chance(0.1) else (x,)
    return Proposal(kind, bottoms, params, tops=len(bottoms), unit=1.0)


def im2col(g: Growing) -> Proposal | None:
    x = g.rank(4)
    params = f"convolution_param {{ {_windows(g, dilates=True)} }}"
    return x and Proposal("Im2col", (x,), params, unit=1.0)


def inner_product(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    ndim = len(g.shape(x))
    axis = 1 if ndim > 1 and g.chance(0.75) else g.axis(ndim)
    params = f"num_output: {g.one_of(*CHANNELS)} axis: {axis}"
    params += " bias_term: false" * g.chance(0.3) + " transpose: true" * g.chance(0.2)
    return Proposal("InnerProduct", (x,), f"inner_product_param {{ {params} }}", unit=1.0)


def embed(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.unit >= 1 and b.array.min() >= 0 and b.array.max() < 12)
    params = f"embed_param {{ input_dim: 12 num_output: {g.one_of(2, 3)} }}"
    return x and Proposal("Embed", (x,), params, unit=1.0, jumps=True)


def pooling(g: Growing) -> Proposal | None:
    x = g.rank(4)
    method = g.one_of("MAX", "MAX", "AVE", "AVE", "STOCHASTIC")
    if x is None:
        return None
    h, w = g.shape(x)[2:]
    if g.chance(0.15):
        area, windows = h * w, "global_pooling: true"
    elif g.chance(0.3):
        area, windows = 4, "kernel_size: 2 stride: 2"
    else:
        area, windows = 0, _windows(g, pads=method != "STOCHASTIC")
        windows += " round_mode: FLOOR" * g.chance(0.2)
    dyadic = area in (1, 2, 4, 8, 16) and (area != 4 or (h % 2 == 0 and w % 2 == 0))
    unit = 1.0 if method == "MAX" else 1 / area if method == "AVE" and dyadic else 0.0
    tops = 2 if method == "MAX" and g.chance(0.15) else 1
    params = f"pooling_param {{ pool: {method} {windows} }}"
    jumps = tops == 2 or method == "STOCHASTIC"
    return Proposal("Pooling", (x,), params, tops=tops, unit=unit, jumps=jumps)


def spp(g: Growing) -> Proposal | None:
    x = g.rank(4)
    params = f"spp_param {{ pyramid_height: {g.one_of(1, 2, 3)} pool: {g.one_of('MAX', 'AVE')} }}"
    return x and Proposal("SPP", (x,), params)


def relu(g: Growing) -> Proposal | None:
    x = g.pick(any_size=True)
    slope = 0.5 if g.chance(0.2) else 0
    params = f"relu_param {{ negative_slope: {slope} }}" if slope else ""
    return x and Proposal("ReLU", (x,), params, unit=0.5 if slope else 1.0, in_place=True)


def relu6(g: Growing) -> Proposal | None:
    x = g.pick(any_size=True)
    params = "relu6_param { negative_slope: 0.5 }" if g.chance(0.1) else ""
    return x and Proposal("ReLU6", (x,), params, unit=0.5 if params else 1.0, in_place=True)


def clip(g: Growing) -> Proposal | None:
    x = g.pick(any_size=True)
    low, high = g.one_of((0, 6), (-1.5, 2), (-3, 0.5), (0, 0))
    params = f"clip_param {{ min: {low} max: {high} }}"
    return x and Proposal("Clip", (x,), params, unit=0.5, in_place=True)


def prelu(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 2)
    shared = "prelu_param { channel_shared: true }" if g.chance(0.2) else ""
    return x and Proposal("PReLU", (x,), shared, unit=1.0, in_place=True)


def mapped(g: Growing) -> Proposal | None:
    kind = g.one_of("AbsVal", "BNLL", "ELU", "Sigmoid", "Swish", "TanH", "Dropout")
    x = g.pick(any_size=True)
    unit = 1.0 if kind in ("AbsVal", "Dropout") else 0.0
    return x and Proposal(kind, (x,), unit=unit, in_place=True, positive=kind in ("Sigmoid",))


def exp(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.size > 0 and np.abs(b.array).max() < 8)
    base = g.one_of("", "base: 2", "base: 2 shift: 1", "scale: 0.5")
    return x and Proposal("Exp", (x,), f"exp_param {{ {base} }}", in_place=True, positive=True)


def log(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.positive and b.array.min() > 0.01)
    return x and Proposal(
        "Log", (x,), g.one_of("", "log_param { base: 2 shift: 1 }"), in_place=True
    )


def power(g: Growing) -> Proposal | None:
    x = g.pick(any_size=True)
    power, scale, shift = g.one_of((1, 2, 1), (1, 0.5, -1), (2, 1, 0), (0, 1, 1), (1, 0, 3))
    params = f"power_param {{ power: {power} scale: {scale} shift: {shift} }}"
    unit = 0.0 if power == 2 else 0.5
    return x and Proposal("Power", (x,), params, unit=unit, in_place=True)


def threshold(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.unit > 0)
    return x and Proposal("Threshold", (x,), "", unit=1.0, in_place=True, jumps=True)


def eltwise(g: Growing) -> Proposal | None:
    x = g.pick()
    if x is None:
        return None
    alike = [n for n, b in g.blobs.items() if b.shape == g.shape(x)]
    bottoms = (x, *(g.one_of(*alike) for _ in range(g.one_of(1, 1, 1, 2))))
    bottoms = bottoms if g.chance(0.5) else bottoms[::-1]
    operation = g.one_of("SUM", "SUM", "SUM", "MAX", "PROD")
    params, unit = f"operation: {operation}", 1.0
    if operation == "SUM" and g.chance(0.3):
        params += "".join(f" coeff: {g.one_of(1, -1, 0.5, 2)}" for _ in bottoms)
        unit = 0.5
    params = f"eltwise_param {{ {params} }}"
    product = operation == "PROD"
    return Proposal("Eltwise", bottoms, params, unit=unit, in_place=True, product=product)


def scale(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    kind = g.one_of("Scale", "Scale", "Bias")
    shape = g.shape(x)
    axis = 1 if len(shape) > 1 and g.chance(0.8) else g.axis(len(shape))
    p = f"axis: {axis}"
    bottoms = (x,)
    other = g.pick(lambda b: b.shape == shape[axis:][: b.array.ndim] and b.array.ndim > 0)
    if other and g.chance(0.2):
        bottoms = (x, other)
    elif axis >= 0 and g.chance(0.2):
        p += f" num_axes: {g.one_of(-1, *range(len(shape) - axis + 1))}"
    if kind == "Scale" and g.chance(0.6):
        p += " bias_term: true"
    product = kind == "Scale" and len(bottoms) == 2
    params = f"{kind.lower()}_param {{ {p} }}"
    return Proposal(kind, bottoms, params, unit=1.0, in_place=True, product=product)


def axpy(g: Growing) -> Proposal | None:
    x = g.rank(4)
    if x is None:
        return None
    shape = g.shape(x)
    a = g.pick(lambda b: b.shape in (shape[:2], (*shape[:2], 1, 1)))
    y = g.pick(lambda b: b.shape == shape)
    return a and y and Proposal("Axpy", (a, x, y), unit=1.0, product=True)


def _varies(x: np.ndarray, axis: int) -> bool:
    """Whether each part of an axis varies by more than a small part of the largest value."""
    spread = x.std(axis=tuple(a for a in range(x.ndim) if a != axis))
    return bool((spread > 0.05 * np.abs(x).max()).all())


def batch_norm(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    # by its own statistics a channel that hardly varies shows nothing but rounding
    own = x is not None and g.chance(0.2) and _varies(g.blob(x).array, 1)

    def blobs(shape: tuple[int, ...], index: int) -> np.ndarray:
        if index == 2:
            return np.full(shape, g.one_of(1, 1, 0, 2.5), np.float32)
        array = g.rng.normal(size=shape) if index == 0 else g.rng.uniform(0.3, 2, shape)
        return array.astype(np.float32)

    params = "batch_norm_param { use_global_stats: false }" if own else ""
    return x and Proposal("BatchNorm", (x,), params, in_place=True, blobs=blobs)


def lrn(g: Growing) -> Proposal | None:
    x = g.rank(4)
    region = "norm_region: WITHIN_CHANNEL" if g.chance(0.3) else ""
    params = f"lrn_param {{ local_size: {g.one_of(1, 3, 5)} alpha: 0.5 {region} }}"
    return x and Proposal("LRN", (x,), params)


def mvn(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 2 and _varies(b.array, 0))
    params = (
        f"mvn_param {{ across_channels: true normalize_variance: {g.one_of('true', 'false')} }}"
    )
    return x and Proposal("MVN", (x,), params)


def normalize(g: Growing) -> Proposal | None:
    x = g.rank(4)
    flags = (
        f"across_spatial: {g.one_of('true', 'false')} channel_shared: {g.one_of('true', 'false')}"
    )
    return x and Proposal("Normalize", (x,), f"norm_param {{ {flags} eps: 0.01 }}")


def softmax(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    params = x and f"softmax_param {{ axis: {g.axis(len(g.shape(x)))} }}"
    return x and Proposal("Softmax", (x,), params)


def concat(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    shape = g.shape(x)
    axis = 1 if len(shape) > 1 and g.chance(0.7) else g.axis(len(shape))
    at = axis % len(shape)

    def joins(b: Blob) -> bool:
        rest = b.shape[:at] + b.shape[at + 1 :]
        return b.array.ndim == len(shape) and rest == shape[:at] + shape[at + 1 :]

    alike = [n for n, b in g.blobs.items() if joins(b)]
    bottoms = tuple(g.one_of(*alike) for _ in range(g.one_of(1, 2, 2, 3)))
    field = "concat_dim" if axis >= 0 and g.chance(0.1) else "axis"
    return Proposal("Concat", bottoms, f"concat_param {{ {field}: {axis} }}", unit=1.0)


def slices(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    axis = g.axis(len(g.shape(x)))
    size = g.shape(x)[axis]
    tops = int(g.rng.integers(1, min(size, 4) + 1))
    points = sorted(g.rng.choice(np.arange(1, size), tops - 1, replace=False)) if tops > 1 else []
    text = "".join(f" slice_point: {p}" for p in points)
    text = "" if size % tops == 0 and g.chance(0.5) else text
    params = f"slice_param {{ axis: {axis}{text} }}"
    return Proposal("Slice", (x,), params, tops=tops, unit=1.0)


def reshape(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    shape = g.shape(x)
    if g.chance(0.4) and len(shape) > 1:
        a = int(g.rng.integers(0, len(shape)))
        return Proposal("Flatten", (x,), f"flatten_param {{ axis: {a} }}", unit=1.0)
    dims = [0 if g.chance(0.5) else d for d in shape]
    dims[g.rng.integers(len(dims))] = -1
    if g.chance(0.4) and len(dims) > 1:
        i = int(g.rng.integers(len(dims) - 1))
        dims[i : i + 2] = [-1 if -1 in dims[i : i + 2] else int(np.prod(shape[i : i + 2]))]
        dims = [d if d != 0 or j < i else shape[j + 1] for j, d in enumerate(dims)]
    if g.chance(0.2):
        dims.append(1)
    text = "".join(f" dim: {d}" for d in dims)
    return Proposal("Reshape", (x,), f"reshape_param {{ shape {{{text} }} }}", unit=1.0)


def moved(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 2)
    if x is None:
        return None
    shape = g.shape(x)
    order = g.rng.permutation(len(shape))
    axis = int(g.rng.integers(len(shape)))
    kind, params = g.one_of(
        ("Permute", "permute_param {" + "".join(f" order: {a}" for a in order) + " }"),
        ("Tile", f"tile_param {{ axis: {axis} tiles: {g.one_of(1, 2, 3)} }}"),
        ("ShuffleChannel", f"shuffle_channel_param {{ group: {g.one_of(1, 2, 3)} }}"),
        ("Reorg", f"reorg_param {{ stride: 2 reverse: {g.one_of('true', 'false')} }}"),
        ("Upsample", f"upsample_param {{ scale: {g.one_of(2, 3)} }}"),
        ("AntiQuant", ""),
    )
    return Proposal(kind, (x,), params, unit=1.0)


def interp(g: Growing) -> Proposal | None:
    x = g.rank(4)
    form = g.one_of("height: 5 width: 7", "zoom_factor: 2", "shrink_factor: 2")
    return x and Proposal("Interp", (x,), f"interp_param {{ {form} }}")


def crop(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 2)
    if x is None:
        return None
    shape, axis = g.shape(x), 2 if len(g.shape(x)) > 2 else 1
    like = g.pick(
        lambda b: b.array.ndim == len(shape) and all(map(int.__le__, b.shape[axis:], shape[axis:]))
    )
    return like and Proposal("Crop", (x, like), f"crop_param {{ axis: {axis} }}", unit=1.0)


def split(g: Growing) -> Proposal | None:
    x = g.pick()
    return x and Proposal("Split", (x,), tops=g.one_of(1, 2, 3), unit=1.0)


def silence(g: Growing) -> Proposal | None:
    x = g.pick()
    return x and Proposal("Silence", (x,), tops=0, unit=1.0)


def argmax(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.unit > 0 and b.array.ndim >= 1)
    where = "" if x is None or g.chance(0.5) else f"axis: {g.axis(len(g.shape(x)))}"
    params = f"argmax_param {{ {where} out_max_val: {g.one_of('true', 'false')} }}"
    return x and Proposal("ArgMax", (x,), params, unit=1.0, jumps=True)


def reduction(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    operation = g.one_of("SUM", "ASUM", "SUMSQ", "MEAN")
    params = f"axis: {g.axis(len(g.shape(x)))} operation: {operation} coeff: {g.one_of(1, 0.5)}"
    unit = 0.5 if operation in ("SUM", "ASUM") else 0.0
    return Proposal("Reduction", (x,), f"reduction_param {{ {params} }}", unit=unit)


def reindex(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    n = g.shape(x)[0]
    index = g.pick(
        lambda b: b.array.ndim == 1 and b.unit >= 1 and b.array.min() >= 0 and b.array.max() < n
    )
    return index and Proposal("BatchReindex", (x, index), unit=1.0, jumps=True)


def made(g: Growing) -> Proposal | None:
    """Layers without bottoms."""
    some = [b.shape for b in g.blobs.values() if b.array.ndim]
    shape = g.one_of(*some)
    dims = " ".join(f"dim: {d}" for d in (1, *shape[1:]) if d) if g.chance(0.3) else None
    dims = dims or " ".join(f"dim: {d}" for d in shape)
    if g.chance(0.5):
        return Proposal("Parameter", (), f"parameter_param {{ shape {{ {dims} }} }}", unit=1.0)
    filler = f'data_filler {{ type: "constant" value: {g.one_of(0, 1, 0.5)} }}'
    return Proposal(
        "DummyData", (), f"dummy_data_param {{ shape {{ {dims} }} {filler} }}", unit=0.5
    )


def recurrent(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 2)
    marks = lambda b: b.shape == g.shape(x)[:2] and b.unit >= 1 and b.array.max() <= 1  # noqa: E731
    cont = x and g.pick(marks)
    kind = g.one_of("LSTM", "RNN")
    return cont and Proposal(kind, (x, cont), f"recurrent_param {{ num_output: {g.one_of(2, 3)} }}")


def quant(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.unit > 0)
    params = 'quant_param { scale: 2 offset: "\\003" }'
    return x and Proposal("Quant", (x,), params, unit=0.5, jumps=True)


def loss(g: Growing) -> Proposal | None:
    x = g.pick(lambda b: b.array.ndim >= 1)
    if x is None:
        return None
    y = g.pick(lambda b: b.array.size == g.blobs[x].array.size and b.array.ndim >= 1)
    return y and Proposal(g.one_of("EuclideanLoss", "SigmoidCrossEntropyLoss"), (x, y))


def labelled(g: Growing) -> Proposal | None:
    """Layers that compare scores with labels."""
    if "labels" not in g.blobs or g.blobs["labels"].value.version:
        return None
    n = g.shape("labels")[0]
    x = g.pick(
        lambda b: (
            b.array.size == n * b.array[:1, :, ...].size and b.shape[1] > 2
            if b.array.ndim >= 2 and b.shape[0] == n
            else False
        )
    )
    if x is None:
        return None
    kind = g.one_of("SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "Accuracy")
    jumps = kind == "Accuracy"
    return Proposal(kind, (x, "labels"), unit=0.0, jumps=jumps)


def chosen(g: Growing) -> Proposal | None:
    """Filter: how many items pass depends on the data."""
    by = g.pick(lambda b: b.unit > 0 and b.array.ndim == 1)
    x = by and g.pick(lambda b: b.array.ndim >= 1 and b.shape[:1] == g.shape(by))
    return x and Proposal("Filter", (x, by), unit=1.0, jumps=True)


def regions(g: Growing) -> Proposal | None:
    x = g.rank(4)
    rois = g.pick(lambda b: b.shape[1:] == (5,) and b.unit >= 1 and not b.array[:, 0].any())
    sizes = f"pooled_h: {g.one_of(1, 2, 3)} pooled_w: {g.one_of(1, 2)} spatial_scale: 0.5"
    params = f"roi_pooling_param {{ {sizes} }}"
    return x and rois and Proposal("ROIPooling", (x, rois), params, unit=1.0)


def priors(g: Growing) -> Proposal | None:
    x, image = g.rank(4), g.rank(4)
    params = "prior_box_param { min_size: 3 max_size: 5 aspect_ratio: 2 }"
    return x and image and Proposal("PriorBox", (x, image), params)


#: Makers with how often they are tried.
MAKERS: tuple[tuple[Maker, int], ...] = (
    (partial(convolution, kind="Convolution"), 12),
    (partial(convolution, kind="Deconvolution"), 5),
    (partial(convolution, kind="ConvolutionDepthwise"), 2),
    (partial(convolution, kind="DepthwiseConvolution"), 1),
    (im2col, 1), (inner_product, 5), (embed, 1), (pooling, 8), (spp, 1), (relu, 7), (relu6, 2),
    (clip, 2), (prelu, 3), (mapped, 4), (exp, 1), (log, 1), (power, 2), (threshold, 1),
    (eltwise, 7), (scale, 6), (axpy, 1), (batch_norm, 5), (lrn, 2), (mvn, 1), (normalize, 1),
    (softmax, 2), (concat, 5), (slices, 4), (reshape, 3), (moved, 3), (interp, 1), (crop, 1),
    (split, 2), (silence, 1), (argmax, 1), (reduction, 1), (reindex, 1), (made, 2),
    (recurrent, 2), (quant, 1), (loss, 1), (labelled, 4), (chosen, 1), (regions, 2), (priors, 1),
)  # fmt: skip


def _first_inputs(g: Growing) -> None:
    """Give the net its inputs: mostly images, of sizes down to 1 x 1."""
    batch = int(g.rng.integers(1, 6))
    for i in range(g.one_of(1, 1, 1, 2)):
        if g.chance(0.85):
            h, w = (int(g.rng.integers(1, 14)) for _ in range(2))
            shape: tuple[int, ...] = (batch, g.one_of(*CHANNELS), h, w)
        else:
            shape = (batch, *(int(g.rng.integers(1, 7)) for _ in range(g.one_of(0, 1, 2, 4))))
        if i and g.chance(0.3):
            shape = (int(g.rng.integers(1, 6)), *shape[1:])
        g.source(f"data{i or ''}", g.numbers(*shape, low=-4, high=4))
    images = g.shape("data")
    if g.chance(0.3):
        g.counts("labels", 2, *images[:1])
    if g.chance(0.15):
        g.counts("marks", 1, *images[:2])
    if g.chance(0.1) and len(images) == 4:
        g.counts("regions", 5, int(g.rng.integers(1, 4)), 5)
        g.blobs["regions"].array[:, 0] = 0


#: What often stands behind a product, to be folded or taken into its output stage.
CHAINS: tuple[tuple[Maker, ...], ...] = (
    (batch_norm,), (batch_norm, scale), (batch_norm, scale, relu), (scale,), (scale, relu),
    (relu,), (prelu,), (eltwise,), (eltwise, relu), (batch_norm, eltwise, clip), (relu6,),
)  # fmt: skip


def _followed(g: Growing, kind: str) -> None:
    """Let a chain of layers follow a product, each reading the one before."""
    if kind not in ("Convolution", "Deconvolution", "InnerProduct", "Pooling", "Eltwise"):
        return
    for maker in g.one_of(*CHAINS, ()):
        g.first = g.layers[-1].tops[0]
        proposal = maker(g)
        fits = proposal is not None and g.add(proposal)
        g.first = None
        if not fits:
            return


def random_net(seed: int) -> RandomNet:
    """Return the random net of a seed: the same one wherever it is made."""
    rng = np.random.default_rng(seed)
    g = Growing(rng, whole=bool(rng.random() < 0.5))
    _first_inputs(g)
    wanted = len(g.layers) + int(rng.integers(4, 29))
    makers, weights = zip(*MAKERS, strict=True)
    share = np.array(weights) / sum(weights)
    for _ in range(8 * wanted):
        proposal = makers[rng.choice(len(makers), p=share)](g)
        if proposal is not None and g.add(proposal):
            _followed(g, proposal.type)
        if len(g.layers) >= wanted:
            break
    net = Net(f"random{seed}", tuple(g.layers))
    # through the file's text, as a user's net comes
    read = caffeio.parse_net(caffeio.to_prototxt(net))
    blobs = {layer.name: layer.blobs for layer in net.layers}
    net = read.with_layers(tuple(replace(x, blobs=blobs[x.name]) for x in read.layers))
    inputs = {name: g.values[Value(name)] for name in net.inputs}
    return RandomNet(seed, net, inputs, g.values, frozenset(g.exact))


def random_values(
    net: Net, inputs: dict[str, np.ndarray], nudge: np.random.Generator | None = None
) -> dict[Value, np.ndarray]:
    """Return all values of a net, one layer after the other on `reference`.

    With `nudge`, inputs and weights are changed by about a millionth first.
    """

    def near(x: np.ndarray) -> np.ndarray:
        if nudge is None:
            return x
        return (x * (1 + 1e-6 * nudge.choice((-1, 1), x.shape))).astype(np.float32)

    values = {}
    for layer, link in zip(net.layers, net.links, strict=True):
        if layer.type == "Input":
            values.update((v, near(inputs[v.blob])) for v in link.writes)
            continue
        changed = replace(layer, blobs=tuple(map(near, layer.blobs)))
        bottoms = [values[v] for v in link.reads]
        with np.errstate(all="ignore"):
            tops = layer_type(layer).forward(changed, bottoms, "reference")
        values.update(zip(link.writes, map(np.asarray, tops), strict=True))
    return values
