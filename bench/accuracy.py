"""What INT8 costs a net beside other quantizers: ``python -m bench.accuracy config.toml``.

The float net, our three efforts and what is installed of ONNX Runtime, NNCF and OpenCV are
calibrated on the config's calibration samples and compared on its evaluation samples: mean of
the samples' SQNR at the logits, top-1, seconds to quantize. Peers get the net in ONNX, BatchNorm
and Scale folded, and run exactly: ONNX Runtime without pairs of products in 16 bits, which
saturate, and OpenVINO in float32 arithmetic elsewhere.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import caffeio
import pipeline
from bench.peers import missing, onnx_session, openvino_session
from bench.quantizers import nncf_int8, ort_int8
from caffeio import Net
from caffeio.data import Batch
from pipeline.config.load import Config, load_config
from pipeline.export.onnx_graph import to_onnx
from pipeline.jobs.data import calibration_feed
from pipeline.layers import layer_type
from pipeline.quantize.feed import open_feed
from pipeline.quantize.fuse import fuse
from pipeline.quantize.measure import Closeness, TopK
from pipeline.quantize.prepare import prepare

__all__ = ["main"]

#: Runs a quantized net on a batch of one image.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Job:
    """What all are given.

    Attributes
    ----------
    config : Config
    net : Net
        Without Softmax at its end.
    blob, output : str
        Input and logits.
    calibration : list of float32 array (1, C, H, W)
    batches : list of Batch
        To compare on.
    """

    config: Config
    net: Net
    blob: str
    output: str
    calibration: list[np.ndarray]
    batches: list[Batch]

    def onnx(self) -> bytes:
        """Return the folded net in ONNX, for one image."""
        return to_onnx(fuse(self.net).net, 1).SerializeToString()


def read_job(config: Config) -> Job:
    """Read net and samples."""
    read = caffeio.read_net(config.model.prototxt, config.model.caffemodel, config.model.phase)
    net = read.with_layers(
        tuple(x for x in read.layers if not (layer_type(x).saturates and x.tops[0] in read.outputs))
    )
    c, e = config.calibrate, config.evaluate
    assert e is not None
    feed = calibration_feed(config, prepare(config, read))
    (blob,) = net.inputs
    some = [b.inputs[blob] for b in feed.batches(c.batch_size, c.batch_num)]
    feed.close()
    feed = open_feed(read, e.data, config.transform, "evaluate.data")
    batches = [*feed.batches(e.batch_size, e.batch_num)]
    feed.close()
    images = [x[i : i + 1] for x in some for i in range(len(x))]
    return Job(config, net, blob, net.outputs[-1], images, batches)


def _ours(effort: str) -> Callable[[Job], Run]:
    def quantize(job: Job) -> Run:
        calibrate = job.config.calibrate.model_copy(update={"effort": effort})
        assert job.config.evaluate is not None
        evaluate = job.config.evaluate.model_copy(update={"batch_num": 1, "layer_samples": 0})
        config = job.config.model_copy(update={"calibrate": calibrate, "evaluate": evaluate})
        with tempfile.TemporaryDirectory() as folder:
            net = pipeline.quantize_model(config, output=folder).int8_net()
        return lambda x: net.forward({job.blob: x}, [job.output])[job.output]

    return quantize


def _float(job: Job) -> Run:
    net = pipeline.FloatNet(job.net)
    return lambda x: net.forward({job.blob: x})[job.output]


def _ort(method: str, **options: Any) -> Callable[[Job], Run]:
    def quantize(job: Job) -> Run:
        model = ort_int8(job.onnx(), job.calibration, method=method, **options)
        session = onnx_session(model, 2, exact=True)
        return _one_by_one(lambda x: session.run(None, {job.blob: x})[0])

    return quantize


def _nncf(**options: Any) -> Callable[[Job], Run]:
    def quantize(job: Job) -> Run:
        nncf: Any = import_module("nncf")
        if "preset" in options:
            options["preset"] = getattr(nncf.QuantizationPreset, options["preset"])
        model = nncf_int8(job.onnx(), job.calibration, **options)
        return _one_by_one(openvino_session(model, 2))

    return quantize


def _opencv(job: Job) -> Run:
    cv2: Any = import_module("cv2")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(job.onnx())
        net = cv2.dnn.readNetFromONNX(str(path))
    quantized = net.quantize(np.concatenate(job.calibration), cv2.CV_32F, cv2.CV_32F, True)

    def run(x: np.ndarray) -> np.ndarray:
        quantized.setInput(x)
        return quantized.forward()

    return _one_by_one(run)


def _one_by_one(run: Run) -> Run:
    return lambda x: np.concatenate([np.asarray(run(x[i : i + 1])) for i in range(len(x))])


#: Name, the peer that it needs, and how it quantizes.
_SIDES: tuple[tuple[str, str, Callable[[Job], Run]], ...] = (
    ("float", "", _float),
    ("ours, original", "", _ours("original")),
    ("ours, standard", "", _ours("standard")),
    ("ours, best", "", _ours("best")),
    ("ONNX Runtime, MinMax", "onnxruntime", _ort("MinMax")),
    ("ONNX Runtime, percentile", "onnxruntime", _ort("Percentile")),
    ("NNCF, default", "nncf", _nncf()),
    ("NNCF, mixed", "nncf", _nncf(preset="MIXED")),
    (
        "NNCF, mixed, full bias correction",
        "nncf",
        _nncf(preset="MIXED", fast_bias_correction=False),
    ),
    ("OpenCV, per channel", "opencv", _opencv),
)


def _rows(job: Job, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each side as soon as it is measured."""
    exact: list[np.ndarray] = []
    for name, peer, quantize in _SIDES:
        if names and not any(part in name for part in (*names, "float")):
            continue
        if peer and (why := missing(peer)):
            yield name, why, "", "", ""
            continue
        start = time.perf_counter()
        try:
            run = quantize(job)
            seconds = time.perf_counter() - start
            outputs = [run(batch.inputs[job.blob]) for batch in job.batches]
        except Exception as error:  # a peer that cannot is a row, not the end of the table
            if not peer:
                raise
            yield name, f"{type(error).__name__}: {error}"[:60], "", "", ""
            continue
        exact = exact or outputs
        closeness, rank = Closeness(), TopK()
        for batch, y, x in zip(job.batches, outputs, exact, strict=True):
            closeness.update(x, y.reshape(x.shape))
            if batch.labels is not None:
                rank.update(y.reshape(len(y), -1), batch.labels)
        top1 = f"{rank.top1:.2f}" if rank.samples else ""
        if name == "float":
            yield name, "", "", top1, ""
        else:
            worst = f"{min(closeness.decibels):.1f}"
            yield name, f"{closeness.sample_sqnr:.2f}", worst, top1, f"{seconds:.1f}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("config", help="with [calibrate] and [evaluate]")
    parser.add_argument("--only", nargs="*", default=[], help="sides whose names hold one of these")
    options = parser.parse_args()
    job = read_job(load_config(options.config))
    console = Console()
    count = sum(len(b.names) for b in job.batches)
    table = Table(title=f"{job.net.name}: {len(job.calibration)} calibrated, {count} compared")
    for title in ("quantizer", "mean dB", "worst dB", "top-1 %", "s"):
        table.add_column(title)
    for row in _rows(job, options.only):
        console.print(*row, sep="  ", highlight=False)
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
