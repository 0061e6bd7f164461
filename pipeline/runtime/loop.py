"""The loop over the layers of a net, which defines what it computes.

It keeps the values, hands them to the layers and frees them after their last reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from caffeio.errors import NetError
from caffeio.graph import Layer, Net
from pipeline.runtime.schedule import Schedule

__all__ = ["Forward", "Observer", "guarded", "owned", "run"]

#: The computation of one layer: its bottoms in, its tops out.
Forward = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, ...]]

#: ``observer(position, layer, bottoms, tops)``; it must not change the arrays.
Observer = Callable[[int, Layer, Sequence[np.ndarray], Sequence[np.ndarray]], None]


def run(
    net: Net,
    plan: Schedule,
    inputs: Mapping[str, np.ndarray],
    forward_of: Callable[[int], Forward],
    observer: Observer | None = None,
) -> dict[str, np.ndarray]:
    """Run the layers of a plan.

    Parameters
    ----------
    net : Net
    plan : Schedule
        From `schedule`, for the names in `inputs`.
    inputs : mapping of str to ndarray
        Clean arrays: what the first layers read.
    forward_of : callable
        ``forward_of(position)`` returns the computation of that layer.
    observer : callable, optional
        Called after each layer with its position, the layer, bottoms and tops.

    Returns
    -------
    dict of str to ndarray
        The plan's results; they may share memory with inputs, weights and each other.

    Raises
    ------
    caffeio.NetError
        If a layer fails: with its name, type and the shapes it was given.
    """
    values = {
        v: inputs[v.blob]
        for layer, link in zip(net.layers, net.links, strict=True)
        if layer.is_source
        for v in link.writes
        if v.blob in inputs
    }
    for i, dead in zip(plan.layers, plan.frees, strict=True):
        layer, link = net.layers[i], net.links[i]
        bottoms = [values[v] for v in link.reads]
        tops = guarded(layer, bottoms, forward_of(i))
        values.update(zip(link.writes, tops, strict=True))
        if observer is not None:
            observer(i, layer, bottoms, tops)
        del bottoms, tops
        for value in dead:
            del values[value]
    return {name: values[value] for name, value in plan.results.items()}


def guarded(
    layer: Layer, bottoms: Sequence[np.ndarray], forward: Forward
) -> tuple[np.ndarray, ...]:
    """Run a layer; what goes wrong becomes a `caffeio.NetError` that names it."""
    try:
        # Overflow and division by zero give inf and NaN in Caffe, too: not a warning.
        with np.errstate(all="ignore"):
            # NumPy makes numbers, not arrays, of what has no axes
            return tuple(
                np.asarray(y) if isinstance(y, np.generic) else y for y in forward(bottoms)
            )
    except (NetError, MemoryError):
        raise
    except Exception as error:
        shapes = ", ".join(str(x.shape) for x in bottoms) or "no bottoms"
        raise NetError(f"{layer.type} failed on {shapes}: {error}", layer.name) from error


def owned(
    found: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Copy those results that share memory with an input, a weight or each other."""
    used_ids = {id(x) for x in inputs.values()}
    results = {}
    for name, x in found.items():
        shared = x.base is not None or id(x) in used_ids
        results[name] = x.copy() if shared else x
        used_ids.add(id(results[name]))
    return results
