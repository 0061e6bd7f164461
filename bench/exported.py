"""How far ONNX Runtime is from our integer net: ``python -m bench.exported config.toml ...``.

Each config's net is quantized and written as ONNX; both run on the evaluation samples. On the first
batch each quantized layer is given what it reads in our net, by itself, with ONNX Runtime's
optimizations off: its output may differ by rounding in float32 only, said in steps of 1/255 of
its range. In the whole net such differences flip integers of later layers; logits and top-1 show
what comes of it, as written and with optimizations, exact (``session.x64quantprecision``) and by
default, which on a processor without VNNI adds pairs of products in 16 bits.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import pipeline
from bench.peers import onnx_session
from caffeio.data import Batch
from pipeline import Int8Net
from pipeline.config.load import load_config
from pipeline.export.onnx_graph import to_onnx
from pipeline.layers import layer_type
from pipeline.quantize.feed import open_feed
from pipeline.quantize.measure import Closeness, TopK

__all__ = ["main"]

Inputs = dict[str, np.ndarray]
Run = Callable[[Inputs], np.ndarray]


def _run_as_written(model: Any, outputs: list[str]) -> Run:
    """Return what runs a graph with nothing fused or replaced, and gives its first output."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(outputs, x)[0]


def layer_steps(net: Int8Net, model: Any, inputs: Inputs) -> dict[str, float]:
    """Return how far each layer is from ours on what it reads there, in steps of its output.

    Layers that read quantized data which another layer has had quantized are left out.
    """
    onnx = import_module("onnx")
    reads: dict[str, np.ndarray] = {}
    writes: dict[str, tuple[str, np.ndarray]] = {}

    def keep(i: int, layer: Any, bottoms: Any, tops: Any) -> None:
        if layer.name in net.layers:
            reads[layer.name] = np.ascontiguousarray(bottoms[0])
            writes[layer.name] = str(net.net.links[i].writes[0]), np.array(tops[0])

    net.forward(inputs, observer=keep)
    sources = {
        n.output[0].removesuffix(".data_int8"): n.input[0]
        for n in model.graph.node
        if n.op_type == "QuantizeLinear"
    }
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model))
    found = {}
    for name, source in sources.items():
        output, ours = writes[name]
        part = extractor.extract_model([source], [output])
        theirs = _run_as_written(part, [output])({source: reads[name]})
        step = (float(ours.max()) - float(ours.min())) / 255 or 1.0
        found[name] = float(np.abs(theirs.reshape(ours.shape) - ours).max()) / step
    return found


def _row(name: str, run: Run, batches: list[Batch], ours: list[np.ndarray]) -> tuple[str, ...]:
    closeness, rank = Closeness(), TopK()
    for batch, y in zip(batches, ours, strict=True):
        theirs = np.asarray(run(batch.inputs)).reshape(y.shape)
        closeness.update(y, theirs)
        if batch.labels is not None and batch.labels.ndim == 1:
            rank.update(theirs.reshape(len(theirs), -1), batch.labels)
    near = "exact" if closeness.sample_sqnr == np.inf else f"{closeness.sample_sqnr:.1f}"
    return name, near, f"{rank.top1:.2f}" if rank.samples else ""


def rows(path: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for the layers of one net, and one for each way to run it."""
    config = load_config(path)
    assert config.evaluate is not None
    with tempfile.TemporaryDirectory() as folder:
        report = pipeline.quantize_model(config, output=folder)
    whole = report.int8_net().net
    logits = whole.with_layers(
        tuple(
            x for x in whole.layers if not (layer_type(x).saturates and x.tops[0] in whole.outputs)
        )
    )
    net = Int8Net.of_fused(logits, report.record)
    model = to_onnx(net.net, numbers=net.layers)
    feed = open_feed(net.net, config.evaluate.data, config.transform, "evaluate.data")
    batches = [*feed.batches(config.evaluate.batch_size, config.evaluate.batch_num)]
    feed.close()
    output = net.net.outputs[-1]
    ours = [net.forward(b.inputs, [output])[output] for b in batches]
    steps = layer_steps(net, model, batches[0].inputs)
    worst = max(steps, key=lambda name: steps[name])
    yield report.net, f"{len(steps)} layers, {worst}: {steps[worst]:.1e}", "", "", ""
    index, data = len(net.net.outputs) - 1, model.SerializeToString()
    plain = _run_as_written(model, [model.graph.output[index].name])
    sides: tuple[tuple[str, Run], ...] = (
        ("ours", lambda x: net.forward(x, [output])[output]),
        ("as written", plain),
        ("exact", lambda x: onnx_session(data, 2, exact=True).run(None, x)[index]),
        ("default", lambda x: onnx_session(data, 2).run(None, x)[index]),
    )
    for name, run in sides:
        yield ("", "", *_row(name, run, batches, ours))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.exported", description=__doc__)
    parser.add_argument("configs", nargs="+", help="with [calibrate] and [evaluate]")
    options = parser.parse_args()
    console, table = Console(width=110), Table()
    for title in ("net", "largest difference of a layer, steps", "run", "dB to ours", "top-1 %"):
        table.add_column(title)
    for path in options.configs:
        for row in rows(path):
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
