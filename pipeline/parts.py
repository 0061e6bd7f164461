"""How many images a compiled net should run at a time: as many as the caches hold.

Images do not depend on each other in most nets. A batch that is run in parts gives the same
numbers, and what one step writes is still near the core when the next one reads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from caffeio.graph import Layer, Net, Value
from pipeline.layers import Shape
from pipeline.layers.normalization import uses_global_stats

__all__ = ["images_at_once", "in_halves", "splits"]

Arrays = Mapping[str, np.ndarray]

#: What the largest values of a part may take together with what they are made of.
_CACHE_BYTES = 8 << 20

#: Types that treat every image alone, whatever their parameters.
_ALONE = frozenset(
    {
        "AbsVal", "Clip", "Dropout", "ELU", "Eltwise", "LRN", "PReLU", "Pooling", "Power", "ReLU",
        "ReLU6", "Sigmoid", "Split", "TanH",
    }
)  # fmt: skip
_CONVOLUTIONS = frozenset(
    {"Convolution", "ConvolutionDepthwise", "Deconvolution", "DepthwiseConvolution"}
)


def _alone(layer: Layer, rank: int) -> bool:
    """Whether a layer treats every image of a batch alone."""
    p = layer.param
    rules = {
        **dict.fromkeys(_CONVOLUTIONS, lambda: p.convolution_param.axis == 1),
        "InnerProduct": lambda: p.inner_product_param.axis % rank == 1,
        "Softmax": lambda: p.softmax_param.axis % rank != 0,
        "Concat": lambda: p.concat_param.axis == 1 and not p.concat_param.HasField("concat_dim"),
        "Scale": lambda: len(layer.bottoms) == 1 and p.scale_param.axis == 1,
        "BatchNorm": lambda: uses_global_stats(layer),
    }
    rule = rules.get(layer.type)
    return rule() if rule else layer.type in _ALONE


def splits(net: Net, layers: Sequence[int], shapes: Mapping[Value, Shape]) -> bool:
    """Whether a batch may be run in parts: every layer treats every image alone.

    Parameters
    ----------
    net : Net
    layers : sequence of int
        Positions of the layers that run.
    shapes : mapping of Value to shape
    """
    values = [v for i in layers for v in (*net.links[i].reads, *net.links[i].writes)]
    batches = {shapes[v][0] if shapes.get(v) else 0 for v in values}
    return len(batches) == 1 and all(
        _alone(net.layers[i], len(shapes.get(net.links[i].reads[0], (1,)))) for i in layers
    )


def images_at_once(net: Net, layers: Sequence[int], shapes: Mapping[Value, Shape]) -> int:
    """Return the size of parts in which to run a batch; the whole batch if it must stay one.

    Parameters
    ----------
    net, layers, shapes
        As for `splits`.
    """
    values = [v for i in layers for v in (*net.links[i].reads, *net.links[i].writes)]
    batch = max((shapes[v][0] if shapes.get(v) else 0 for v in values), default=1)
    if not splits(net, layers, shapes):
        return batch
    largest = max(4 * prod(shapes[v][1:]) for v in values)
    return min(batch, max(1, _CACHE_BYTES // (2 * largest)))


def in_halves(run: Callable[[Arrays], Arrays], inputs: Arrays, may_split: bool) -> Arrays:
    """Run a batch; where the device's memory does not suffice, its halves one after the other.

    Parameters
    ----------
    run : callable
        Takes inputs, returns results, by name.
    inputs : mapping of str to ndarray
    may_split : bool
        From `splits`.

    Raises
    ------
    MemoryError
        If one image is too much, or the batch must stay whole.
    """
    try:
        return run(inputs)
    except MemoryError:
        batch = max((len(x) for x in inputs.values() if x.ndim), default=1)
        if batch < 2 or not may_split:
            raise
    half = batch // 2
    warnings.warn(
        f"the device has not enough memory for a batch of {batch}; it is run in halves",
        stacklevel=2,
    )
    parts = [
        in_halves(run, {name: x[cut] for name, x in inputs.items()}, may_split)
        for cut in (slice(half), slice(half, None))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
