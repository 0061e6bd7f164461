"""Convolutions of a float net as two of lower rank each, by the data that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

import kernels
from caffeio import Layer, Net
from caffeio.proto.caffe_pb2 import LayerParameter, ParamSpec
from kernels import ColumnMoments, ConvGeometry, LowRank
from pipeline.config.decompose import DecomposeConfig
from pipeline.config.names import is_named, named_layers
from pipeline.errors import ConfigError
from pipeline.layers import Shape
from pipeline.layers.convolution import conv_params
from pipeline.log import log
from pipeline.quantize.fuse import shared_parameters
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.state import State

__all__ = ["Columns", "LayerRank", "decomposable", "decompose", "observe_columns", "with_pairs"]

#: Output positions of a batch that a layer's columns are taken at, at most.
_POSITIONS = 2048
#: The share of batches that only judge is one in so many.
_HELD = 5
#: A channel that varies less than this share of the one that varies most counts as if it did.
_DEAD = 1e-3


@dataclass(frozen=True)
class LayerRank:
    """What became of one convolution.

    Attributes
    ----------
    layer : str
    form : str
        One of `kernels.decomposition.FORMS`; empty if it stays as it is.
    rank : int
        Channels between the two.
    error : float
        Of its output, relative to how much it varies, on the data seen.
    macs, macs_before : int
        Of one sample.
    """

    layer: str
    form: str
    rank: int
    error: float
    macs: int
    macs_before: int


@dataclass(frozen=True)
class Columns:
    """What a convolution reads and how it goes over it.

    Attributes
    ----------
    moments, judge : ColumnMoments
        What a decomposition is computed from, and what its error is measured on.
    geometry : ConvGeometry
    size : (int, int)
        Height and width of its input.
    """

    moments: ColumnMoments
    judge: ColumnMoments
    geometry: ConvGeometry
    size: tuple[int, int]


def decomposable(net: Net, settings: DecomposeConfig) -> tuple[str, ...]:
    """Return the convolutions that can be decomposed and are to be.

    Two spatial axes, one group, weights of their own.

    Raises
    ------
    ConfigError
        If the settings name another layer.
    """
    shared = shared_parameters(net)
    able = [
        x.name
        for x in net.layers
        if x.type == "Convolution"
        and x.blobs
        and x.blobs[0].ndim == 4
        and x.param.convolution_param.group in (0, 1)
        and x.param.convolution_param.axis == 1
        and x.name not in shared
        and len(x.bottoms) == len(x.tops) == 1
    ]
    for key in ("layers", "skip_layers"):
        for name in getattr(settings, key):
            if not named_layers(name, able):
                raise ConfigError(
                    f"decompose.{key}: '{name}' is no Convolution of one group with weights of "
                    f"its own in net '{net.name}'"
                )
    chosen = [n for n in able if not settings.layers or is_named(n, settings.layers)]
    return tuple(n for n in chosen if not is_named(n, settings.skip_layers))


def observe_columns(
    net: Net,
    names: Sequence[str],
    batches: Iterable[Mapping[str, np.ndarray]],
    count: int = 1,
) -> dict[str, Columns]:
    """Return the moments of what some convolutions read, over a few batches.

    Parameters
    ----------
    net : Net
    names : sequence of str
        From `decomposable`.
    batches : sequence or iterable of dict of blob name to array
    count : int
        How many batches there are: the last fifth of them only judges, if there are two or more.
    """
    parts: dict[tuple[str, bool], ColumnMoments] = {}
    places: dict[str, tuple[ConvGeometry, tuple[int, int]]] = {}
    rng = np.random.default_rng(0)
    held = max(count // _HELD, 1) if count > 1 else 0
    judging = False

    def watch(
        i: int, layer: Layer, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        if layer.name not in names:
            return
        x = np.ascontiguousarray(bottoms[0], np.float32)
        geometry = _geometry(layer, x.shape, tops[0].shape)
        positions = len(x) * prod(geometry.out_size)
        chosen = np.sort(rng.choice(positions, min(positions, _POSITIONS), replace=False))
        seen = kernels.column_moments(x, 0, geometry, chosen)
        key = (layer.name, judging)
        parts[key] = parts[key] + seen if key in parts else seen
        places[layer.name] = geometry, (x.shape[2], x.shape[3])

    runner, state = FloatNet(net), State()
    for i, inputs in enumerate(batches):
        judging = i >= count - held
        runner.forward(inputs, observer=watch, state=state)
    return {
        name: Columns(parts[name, False], parts.get((name, True), parts[name, False]), *place)
        for name, place in places.items()
    }


def _geometry(layer: Layer, bottom: Shape, top: Shape) -> ConvGeometry:
    p = conv_params(layer, bottom)
    kernel, stride, pad, dilation = ((v[0], v[1]) for v in (p.kernel, p.stride, p.pad, p.dilation))
    return ConvGeometry(kernel, stride, pad, dilation, p.group, (top[2], top[3]))


def decompose(
    net: Net, seen: Mapping[str, Columns], settings: DecomposeConfig
) -> tuple[dict[str, tuple[Layer, Layer]], tuple[LayerRank, ...]]:
    """Choose form and rank of each convolution.

    Parameters
    ----------
    net : Net
    seen : mapping of layer name to Columns
    settings : DecomposeConfig

    Returns
    -------
    pairs : dict of layer name to (Layer, Layer)
        What takes the place of the layers that are decomposed, see `with_pairs`.
    ranks : tuple of LayerRank
        Of every convolution looked at, in the order of the net.
    """
    pairs, ranks = {}, []
    for layer in net.layers:
        if layer.name not in seen:
            continue
        rank, pair = _decomposed(layer, seen[layer.name], settings)
        ranks.append(rank)
        log.debug("%s", rank)
        if pair is not None:
            pairs[layer.name] = pair
    return pairs, tuple(ranks)


def _decomposed(
    layer: Layer, seen: Columns, settings: DecomposeConfig
) -> tuple[LayerRank, tuple[Layer, Layer] | None]:
    w, covariance = layer.blobs[0], seen.moments.covariance()[0]
    judging = seen.judge.covariance()[0]
    # each channel of the output counts alike, however much it varies: what follows evens it out
    m = w.reshape(len(w), -1).astype(np.float64)
    deviation = np.sqrt(np.maximum(((m @ covariance) * m).sum(axis=1), 0.0))
    weight = 1 / np.maximum(deviation, max(_DEAD * deviation.max(), 1e-30))
    before = _macs(w.shape, seen, "", 0)
    best = LayerRank(layer.name, "", 0, 0.0, before, before)
    chosen: LowRank | None = None
    for form, low in kernels.decompositions(w, covariance, weight).items():
        allowed = _largest_rank(w.shape, seen, form, before * (1 - settings.min_saving))
        rank = int(np.argmax(low.left <= settings.max_error))
        if not 0 < rank <= allowed:
            continue

        def error(rank: int, low: LowRank = low) -> float:
            return kernels.output_error(w, low.product(rank), judging, weight)

        found = _least_rank(error, rank, allowed, settings.max_error)
        if found is None:
            continue
        macs = _macs(w.shape, seen, form, found[0])
        if macs < best.macs:
            best = LayerRank(layer.name, form, *found, macs, before)
            chosen = low
    if chosen is None:
        return best, None
    return best, _pair(layer, seen, best.form, chosen, best.rank)


def _least_rank(
    error: Callable[[int], float], low: int, high: int, bound: float
) -> tuple[int, float] | None:
    """Return the least rank from `low` to `high` whose error is within the bound, and that."""
    if (last := error(high)) > bound:
        return None
    while low < high:
        middle = (low + high) // 2
        value = error(middle)
        if value <= bound:
            high, last = middle, value
        else:
            low = middle + 1
    return high, last


def _macs(shape: Shape, seen: Columns, form: str, rank: int) -> int:
    """Return the MACs of a form for one sample; of the convolution itself without one."""
    outs, ins, kh, kw = shape
    (height, width), (out_h, out_w) = seen.size, seen.geometry.out_size
    if form == "rows, columns":
        return rank * (ins * kh * out_h * width + outs * kw * out_h * out_w)
    if form == "narrow, full":
        return rank * (ins * height * width + outs * kh * kw * out_h * out_w)
    if form == "full, narrow":
        return rank * (ins * kh * kw + outs) * out_h * out_w
    return outs * ins * kh * kw * out_h * out_w


def _largest_rank(shape: Shape, seen: Columns, form: str, macs: float) -> int:
    """Return the largest rank that needs at most so many MACs."""
    return int(macs // _macs(shape, seen, form, 1))


def _pair(layer: Layer, seen: Columns, form: str, low: LowRank, rank: int) -> tuple[Layer, Layer]:
    """Return the two convolutions; the second keeps the layer's name and top."""
    first, second = low.cut(rank)
    bias = layer.blobs[1].reshape(-1) if len(layer.blobs) > 1 else np.zeros(len(second), np.float32)
    # what the columns are on average is not lost: the bias takes it
    seen_all = seen.moments if seen.judge is seen.moments else seen.moments + seen.judge
    mean = seen_all.sums[0] / seen_all.count
    lost = layer.blobs[0].astype(np.float64) - low.product(rank).reshape(layer.blobs[0].shape)
    bias = (bias + lost.reshape(len(second), -1) @ mean).astype(np.float32)
    name = f"{layer.name}_first"
    g = seen.geometry
    here, there = _split(form, g)
    one = _convolution(layer, name, layer.bottoms[0], name, first, here)
    two = _convolution(layer, layer.name, name, layer.tops[0], second, there)
    one.param.convolution_param.bias_term = False
    two.param.convolution_param.bias_term = True
    specs = list(layer.param.param)
    if specs:
        one.param.param.append(specs[0])
        two.param.param.extend(specs if len(specs) > 1 else [specs[0], ParamSpec()])
    return replace(one, blobs=(first,)), replace(two, blobs=(second, bias))


#: Stride, padding and dilation of a convolution, each (rows, columns).
_Steps = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _split(form: str, g: ConvGeometry) -> tuple[_Steps, _Steps]:
    """Return how each of the two goes over its input: an axis goes with the kernel's."""
    still: _Steps = ((1, 1), (0, 0), (1, 1))
    whole: _Steps = (g.stride, g.pad, g.dilation)
    if form == "narrow, full":
        return still, whole
    if form == "full, narrow":
        return whole, still
    (sh, sw), (ph, pw), (dh, dw) = whole
    return ((sh, 1), (ph, 0), (dh, 1)), ((1, sw), (0, pw), (1, dw))


def _convolution(
    layer: Layer, name: str, bottom: str, top: str, w: np.ndarray, steps: _Steps
) -> Layer:
    param = LayerParameter(name=name, type="Convolution", bottom=[bottom], top=[top])
    param.include.extend(layer.param.include)
    param.exclude.extend(layer.param.exclude)
    own, p = layer.param.convolution_param, param.convolution_param
    for key in ("weight_filler", "bias_filler"):
        if own.HasField(key):
            getattr(p, key).CopyFrom(getattr(own, key))
    p.num_output = len(w)
    stride, pad, dilation = steps
    p.kernel_h, p.kernel_w = w.shape[2:]
    p.stride_h, p.stride_w = stride
    p.pad_h, p.pad_w = pad
    if dilation != (1, 1):
        p.dilation.extend(dilation)
    return Layer(name, "Convolution", (bottom,), (top,), param)


def with_pairs(net: Net, pairs: Mapping[str, tuple[Layer, Layer]]) -> Net:
    """Return a net with pairs of convolutions in the place of the layers of those names.

    Parameters
    ----------
    net : Net
        The one that was decomposed, or one that trains it: its layers have the same names.
    pairs : mapping of layer name to (Layer, Layer)

    Raises
    ------
    ConfigError
        If a name that the first of a pair needs is taken.
    """
    taken = {layer.name for layer in net.layers} | {t for x in net.layers for t in x.tops}
    layers: list[Layer] = []
    for layer in net.layers:
        pair = pairs.get(layer.name)
        if pair is None:
            layers.append(layer)
            continue
        one, two = (_at(x, layer) for x in pair)
        if one.name in taken:
            raise ConfigError(f"--decompose: net '{net.name}' has '{one.name}' already")
        layers += [
            replace(one, bottoms=layer.bottoms, param=_wired(one, layer.bottoms, one.tops)),
            replace(two, tops=layer.tops, param=_wired(two, two.bottoms, layer.tops)),
        ]
    return net.with_layers(tuple(layers))


def _at(layer: Layer, place: Layer) -> Layer:
    """Return a layer of a pair with the phases and learning rates of the layer in its place."""
    param = LayerParameter()
    param.CopyFrom(layer.param)
    for key in ("include", "exclude"):
        del getattr(param, key)[:]
        getattr(param, key).extend(getattr(place.param, key))
    specs = list(place.param.param)
    if specs:
        del param.param[:]
        param.param.extend((specs if len(specs) > 1 else [*specs, ParamSpec()])[: len(layer.blobs)])
    return replace(layer, param=param)


def _wired(layer: Layer, bottoms: tuple[str, ...], tops: tuple[str, ...]) -> LayerParameter:
    param = LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:], param.top[:] = bottoms, tops
    return param
