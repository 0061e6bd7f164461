"""How many images a compiled net should run at a time: as many as the caches hold.

Images do not depend on each other in most nets. A batch that is run in parts gives the same
numbers, and what one step writes is still near the core when the next one reads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod

import numpy as np

from caffeio.graph import Net, Value
from pipeline.layers import Shape, layer_type

__all__ = ["images_at_once", "in_halves", "splits"]

Arrays = Mapping[str, np.ndarray]

#: Bytes that the largest values of a part, with the bottoms they are computed from, may take.
_CACHE_BYTES = 8 << 20


def splits(
    net: Net,
    layers: Sequence[int],
    shapes: Mapping[Value, Shape],
    results: Collection[Value] = (),
) -> bool:
    """Whether a batch may be run in parts: every layer treats every image alone.

    Parameters
    ----------
    net : Net
    layers : sequence of int
        Positions of the layers that run.
    shapes : mapping of Value to shape
    results : collection of Value
        What is returned, which may be inputs that no layer reads.
    """
    if not all(net.links[i].reads for i in layers):
        return False  # the top of a layer without bottoms has no batch axis
    batches = _batches(net, layers, shapes, results)
    return (
        len(batches) == 1
        and 0 not in batches
        and all(
            layer_type(net.layers[i]).per_image(net.layers[i], len(shapes[net.links[i].reads[0]]))
            for i in layers
        )
    )


def _batches(
    net: Net, layers: Sequence[int], shapes: Mapping[Value, Shape], results: Collection[Value]
) -> set[int]:
    """Return the sizes of the first axis of all values of a run; 0 for one without axes."""
    values = {v for i in layers for v in (*net.links[i].reads, *net.links[i].writes)}
    return {shapes[v][0] if shapes.get(v) else 0 for v in values | {*results}}


def images_at_once(
    net: Net,
    layers: Sequence[int],
    shapes: Mapping[Value, Shape],
    results: Collection[Value] = (),
) -> int | None:
    """Return the size of parts in which to run a batch; None if it must stay whole.

    Parameters
    ----------
    net, layers, shapes, results
        As for `splits`.
    """
    if not layers or not splits(net, layers, shapes, results):
        return None
    values = [v for i in layers for v in (*net.links[i].reads, *net.links[i].writes)]
    (batch,) = _batches(net, layers, shapes, results)
    largest = max(4 * prod(shapes[v][1:]) for v in values)
    return min(batch, max(1, _CACHE_BYTES // (2 * max(largest, 1))))


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
