"""What makes the original tool's Caffe abort, or train wrongly, on a net with QAT layers.

Facts of those layers, of nothing here: the shapes of their blobs by their parameters, the strict
check of shared parameters, the record file of each ActivationQAT, what ifmr_init does to clip_min on
the CPU, and what its solver needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format

from caffeio import Net
from caffeio.proto import caffe_pb2

__all__ = ["check_net", "check_solver"]


def check_net(net: Net, batch_num: int = 1) -> list[str]:
    """Return what is wrong with a net of one phase, as that Caffe would set it up."""
    return [*_activations(net), *_weights(net), *_shared(net), *_order(net)]


def _activations(net: Net) -> Iterator[str]:
    paths: dict[str, str] = {}
    for layer in net.layers:
        if layer.type != "ActivationQAT":
            continue
        p = layer.param.retrain_data_quant_param
        if not p.record_file_path:
            yield f"{layer.name}: record_file_path is empty"
        elif p.record_file_path in paths:
            yield f"{layer.name}: shares record_file_path with {paths[p.record_file_path]}"
        elif "/" in p.record_file_path or not p.record_file_path.isprintable():
            yield f"{layer.name}: record_file_path lies in a folder that may not be there"
        paths[p.record_file_path] = layer.name
        if [b.shape for b in layer.blobs] != [(1,), (1,)]:
            yield f"{layer.name}: needs two blobs of one element"
            continue
        high, low = (float(b[0]) for b in layer.blobs)
        if p.ifmr_init and (p.clip_min != 0 or low != 0):
            yield f"{layer.name}: ifmr_init takes the old clip_min, which is not 0"
        if not p.ifmr_init and not high > low:
            yield f"{layer.name}: clip_max is not above clip_min"
        if not p.ifmr_init and (p.clip_max, p.clip_min) != (high, low):
            yield f"{layer.name}: parameter and blob disagree"
        if not p.object_layer:
            yield f"{layer.name}: names no object_layer"


def _weights(net: Net) -> Iterator[str]:
    for layer in net.layers:
        if layer.type != "WeightQAT":
            continue
        p = layer.param.retrain_weight_quant_param
        shape = (
            (p.cout, p.cin, p.h, p.w) if p.HasField("h") and p.HasField("w") else (p.cout, p.cin)
        )
        if [b.shape for b in layer.blobs] != [shape, shape]:
            yield f"{layer.name}: its parameters make blobs {shape}, the file has others"
        if len(layer.param.param) < 1 or not layer.param.param[0].name:
            yield f"{layer.name}: its first parameter has no name to share it by"


def _shared(net: Net) -> Iterator[str]:
    """Parameters of one name have one shape, axis by axis: the check is strict by default."""
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in net.layers:
        for spec, blob in zip(layer.param.param, layer.blobs, strict=False):
            if not spec.name:
                continue
            name, shape = first.setdefault(spec.name, (layer.name, blob.shape))
            if shape != blob.shape:
                yield f"{layer.name}: shares '{spec.name}' with {name}, of another shape"


def _order(net: Net) -> Iterator[str]:
    """Whatever reads a QAT layer comes after it; the layer served shares its parameter."""
    made = {
        x.param.param[0].name: x.name for x in net.layers if x.type == "WeightQAT" and x.param.param
    }
    users = [
        s.name for x in net.layers if x.type != "WeightQAT" for s in x.param.param if s.name in made
    ]
    for name, layer in made.items():
        if users.count(name) != 1:
            yield f"{layer}: {users.count(name)} layers share '{name}', one must"
    seen = set(net.inputs)
    for layer in net.layers:
        for bottom in layer.bottoms:
            if bottom not in seen:
                yield f"{layer.name}: reads '{bottom}' before it is made"
        seen.update(layer.tops)


def check_solver(path: Path, batch_num: int = 1) -> list[str]:
    """Return what is wrong with a solver."""
    solver = text_format.Parse(path.read_text(), caffe_pb2.SolverParameter())
    wrong = []
    if not solver.net or solver.train_net or solver.test_net or solver.HasField("net_param"):
        wrong.append("the solver needs net:, and no other")
    if not solver.test_interval > 0:
        wrong.append("test_interval must be above 0")
    if not solver.test_iter or not solver.test_iter[0] > batch_num:
        wrong.append("test_iter must be above batch_num")
    if solver.test_initialization:
        wrong.append("test_initialization must be false")
    return wrong
