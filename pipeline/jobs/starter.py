"""A first config for a net: what it reads, what there is to fill in, what would be quantized."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import caffeio
from caffeio import Net, NetError
from pipeline.config.write import toml_value
from pipeline.layers import Shape
from pipeline.quantize.eligibility import check_float, judge
from pipeline.quantize.fuse import fuse
from pipeline.report.cost import LayerCost, NetCost, net_cost
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.shapes import input_shapes

__all__ = ["starter_config"]

_TRANSFORM = """\
[transform]                     # (x - mean) * scale / std, as in the net's training: fill in
# resize = 256                  # the shorter side; or [height, width]
{crop}
{order:32}# what the net reads: "BGR" (Caffe's own), "RGB", "GRAY"
# mean = [104, 117, 123]        # one a channel in that order, or a .binaryproto or .npy file
# scale = 1.0                   # 0.00390625 for pixels from 0 to 1
# std = [58.4, 57.1, 57.4]      # one a channel, divides
"""


def starter_config(
    prototxt: str | Path, caffemodel: str | Path | None = None, folder: str | Path = "."
) -> str:
    """Return a commented config for a net, TOML.

    Parameters
    ----------
    prototxt, caffemodel : path-like
        The net and, if there are any yet, its weights.
    folder : path-like
        Where the config will lie: its paths begin there.

    Raises
    ------
    caffeio.CaffeFileError, caffeio.NetError
        If a file cannot be read, or the net is quantized already.
    """
    net = caffeio.read_net(prototxt, caffemodel)
    check_float(net)
    weights = caffemodel if caffemodel is not None else Path(prototxt).with_suffix(".caffemodel")
    missing = "" if caffemodel is not None else "   # not looked at: is that its name?"
    shapes = input_shapes(net)
    lines = [
        f"# {net.name or Path(prototxt).stem}: {len(net.layers)} layers",
        *(f"# input '{name}': {_size(shapes.get(name))}" for name in net.inputs),
        *(f"# output '{name}'" for name in net.outputs),
        *(f"# {note}" for note in net.notes),
        "",
        "[model]",
        f"prototxt = {toml_value(_relative(prototxt, folder))}",
        f"caffemodel = {toml_value(_relative(weights, folder))}{missing}",
        "",
        _transform(net, shapes),
        *_calibrate(net),
        "[evaluate]                      # samples with labels, to measure the accuracy",
        'data.source = "val.txt"         # a list of lines "path label"; see data tables',
        "",
        "[output]",
        'directory = "quantized"',
        "# overwrite = true              # a second run may replace the files of the first",
        f"prefix = {toml_value(_prefix(net, prototxt))}",
        "",
        "# [fallback]                    # leave the fewest layers in float that keep the accuracy",
        "# max_drop = 0.5                # points of top-1 below float",
    ]
    return "\n".join(lines) + "\n"


def _relative(path: str | Path, folder: str | Path) -> str:
    """Return a path as seen from a folder; one that is absolute stays so."""
    return str(path) if os.path.isabs(path) else os.path.relpath(path, folder)


def _calibrate(net: Net) -> Iterator[str]:
    fused = fuse(net)
    verdicts = judge(fused.net)
    yield "[calibrate]"
    yield "batch_num = 4                   # 32 to 128 samples in all are a good choice"
    yield "batch_size = 8"
    yield 'effort = "standard"             # "original": the numbers of the Ascend tool; "best"'
    for i, name in enumerate(blob for blob in net.inputs if blob != "label"):
        if i == 0 and len(net.inputs) == 1:
            yield 'data.source = "calibration"     # folder, list, LMDB, HDF5, .npy, .bin, ...'
        else:
            yield f'# data = [{{ input = {toml_value(name)}, source = "..." }}, ...]'
    if any(v.quantize for v in verdicts):
        yield "skip_layers = [                 # take the # off to leave a layer in float"
        cost = _cost(net, fused.net)
        rows = cost.layers if cost else ()
        quantized = [c for c in rows if c.quantize]
        width = max((len(toml_value(c.layer)) for c in quantized), default=0) + 1
        for c in quantized:
            yield f"    # {toml_value(c.layer) + ',':{width}}  # {_what(c)}"
        if cost is None:
            for v in (v for v in verdicts if v.quantize):
                yield f"    # {toml_value(v.layer)},  # {v.type}"
        yield "]"
    else:
        yield "# no layer of this net can be quantized; --plan shows the rule for each"
    yield ""


def _cost(net: Net, fused: Net) -> NetCost | None:
    """Return what the layers cost; None if the shapes are only known with data."""
    try:
        return net_cost(FloatNet(fused), judge(fused), {}, {})
    except NetError:
        return None


def _what(cost: LayerCost) -> str:
    size = "×".join(map(str, cost.top[1:]))
    return f"{cost.type} {size}, {cost.macs / 1e6:,.3g} million MACs"


def _size(shape: Shape | None) -> str:
    return "×".join(map(str, shape)) if shape else "its size is not declared"


def _transform(net: Net, shapes: Mapping[str, Shape | None]) -> str:
    shape = next((s for s in map(shapes.get, net.inputs) if s is not None and len(s) == 4), None)
    if shape is None:
        crop = "# crop = 224                   # the centre"
    else:
        value = str(shape[2]) if shape[2] == shape[3] else f"[{shape[2]}, {shape[3]}]"
        crop = f"{f'crop = {value}':32}# the centre, as the net declares its input"
    gray = shape is not None and shape[1] == 1
    order = 'channel_order = "GRAY"' if gray else '# channel_order = "BGR"'
    return _TRANSFORM.format(crop=crop, order=order)


def _prefix(net: Net, prototxt: str | Path) -> str:
    name = net.name or Path(prototxt).stem
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
