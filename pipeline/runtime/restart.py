"""A net from one layer on: what is behind it runs, what it needs of the rest is given.

To see what a change of one layer does to the outputs, only what lies behind that layer must run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from caffeio import Layer, Net, Value
from caffeio.proto import caffe_pb2
from pipeline.layers.int8 import QuantizedLayer
from pipeline.runtime.executor import Executor
from pipeline.runtime.schedule import last_values

__all__ = ["Rest", "rest_behind"]


@dataclass(frozen=True)
class Rest:
    """What lies behind a layer.

    Attributes
    ----------
    top : Value
        What the layer makes.
    needs : tuple of Value
        What must be given, by ``str(value)``: that, and values made elsewhere.
    results : dict of str to Value
        Of the blobs asked for, those that depend on the layer.
    runner : Executor or None
        None if nothing has to run: the results are what the layer makes.
    """

    top: Value
    needs: tuple[Value, ...]
    results: dict[str, Value]
    runner: Executor | None


def rest_behind(
    net: Net,
    position: int,
    blobs: Collection[str],
    numbers: Mapping[str, QuantizedLayer],
    *,
    device: str = "cpu",
) -> Rest:
    """Return what has to run behind a layer of one top for the last values of some blobs.

    Parameters
    ----------
    net : Net
    position : int
        The layer's; it does not run.
    blobs : collection of str
    numbers : mapping of layer name to QuantizedLayer
        Layers that run on integers.
    device : str
    """
    values = last_values(net)
    last = {blob: values[blob] for blob in blobs}
    (top,) = net.links[position].writes
    touched = {top}
    behind = []
    for i in range(position + 1, len(net.layers)):
        if touched.intersection(net.links[i].reads):
            behind.append(i)
            touched.update(net.links[i].writes)
    results = {blob: value for blob, value in last.items() if value in touched}
    wanted = {*results.values()}
    layers = []
    for i in reversed(behind):
        if wanted.intersection(net.links[i].writes):
            layers.append(i)
            wanted.update(net.links[i].reads)
    layers.reverse()
    made = {v for i in layers for v in net.links[i].writes}
    needs = tuple(sorted(wanted - made))
    if not layers:
        return Rest(top, needs, results, None)
    renamed = tuple(_renamed(net, i) for i in layers)
    part = Net(net.name, (_inputs(needs), *renamed), net.phase)
    own = {layer.name: numbers[layer.name] for layer in renamed if layer.name in numbers}
    return Rest(top, needs, results, Executor(part, own, device=device))


def _renamed(net: Net, position: int) -> Layer:
    """Return a layer that names values instead of blobs: none is overwritten."""
    layer, link = net.layers[position], net.links[position]
    bottoms, tops = (tuple(map(str, values)) for values in (link.reads, link.writes))
    param = caffe_pb2.LayerParameter()
    param.CopyFrom(layer.param)
    param.bottom[:] = bottoms
    param.top[:] = tops
    return replace(layer, bottoms=bottoms, tops=tops, param=param)


def _inputs(values: tuple[Value, ...]) -> Layer:
    names = tuple(map(str, values))
    param = caffe_pb2.LayerParameter(name="given", type="Input", top=names)
    return Layer("given", "Input", (), names, param)
