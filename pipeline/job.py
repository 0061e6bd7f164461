"""One run from the config to the files: the stages in order, each stage a module."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

import caffeio
from caffeio import SOURCE_TYPES, Net
from caffeio.record import LayerRecord, Record, write_record
from kernels import on_compile
from pipeline.calibrate import observe, search, search_exactly
from pipeline.config import CalibrateConfig, Config, EvaluateConfig, load_config
from pipeline.eligibility import Verdict, judge
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluate import (
    LayerError,
    ModelScore,
    Runnable,
    compare,
    compared_blobs,
    layer_errors,
)
from pipeline.executor import FloatNet
from pipeline.export import deploy_net, fakequant_net, node_map
from pipeline.feed import open_feed
from pipeline.fuse import Fused, fuse
from pipeline.int8 import Int8Net
from pipeline.plan import NetCost, net_cost
from pipeline.progress import Reporter
from pipeline.quantize import layer_record
from pipeline.report import LayerReport, Report, to_json
from pipeline.settings import LayerPlan, check_names, layer_plan, with_quant_cfg

__all__ = ["plan_model", "quantize_model"]

#: Samples at a time when the error of each layer is measured: it holds every layer's output.
_LAYER_BATCH = 4


@dataclass(frozen=True)
class _Prepared:
    """The net, and what is to be done with it; `unfused` could have taken others in."""

    net: Net
    fused: Fused
    unfused: frozenset[str]
    verdicts: tuple[Verdict, ...]
    plans: dict[str, LayerPlan]
    calibrate: CalibrateConfig
    notes: tuple[str, ...]


@dataclass
class _Clock:
    """Seconds that each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def quantize_model(
    config: str | Path | Config,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Quantize a Caffe model as a config says; what ``python -m pipeline.run`` does.

    Parameters
    ----------
    config : path-like or Config
    device : str
        One of `kernels.DEVICES`.
    output : path-like, optional
        Folder to write to, instead of the config's.
    reporter : Reporter, optional
        Shows progress; by default nothing is shown.

    Returns
    -------
    Report
        With ``record``, ``accuracy``, ``layers`` and ``files``.

    Raises
    ------
    ConfigError
        If the config is wrong.
    PipelineError, caffeio.CaffeFileError, caffeio.NetError
        If the work cannot be done. Nothing has been written then.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter = reporter or Reporter(quiet=True)
    files = _files(config, output)
    with on_compile(device, reporter.compiling):
        return _quantize_model(config, device, files, reporter)


def _quantize_model(
    config: Config, device: str, files: dict[str, Path], reporter: Reporter
) -> Report:
    clock = _Clock()
    with clock.stage("read"):
        work = _prepare(config)
        net = FloatNet(work.fused.net, device=device)
    with clock.stage("calibrate"):
        record, samples = _calibrate(config, work, net, reporter)
    with clock.stage("quantize"):
        int8 = Int8Net(work.net, record, device=device)
    with clock.stage("evaluate"):
        accuracy, errors = _evaluate(config, work, net, int8, reporter)
    layers = tuple(
        LayerReport(
            v.layer,
            v.type,
            v.quantize,
            v.reason,
            work.fused.origin(v.layer)[1:],
            record.layers[v.layer].scale_d if v.quantize else None,
            record.layers[v.layer].offset_d if v.quantize else None,
            errors.get(v.layer),
        )
        for v in work.verdicts
    )
    report = Report(
        work.net.name or config.model.prototxt.stem,
        record,
        accuracy,
        layers,
        files,
        samples,
        clock.seconds,
        work.notes,
    )
    _write(report, work, int8)
    return report


def plan_model(config: str | Path | Config) -> tuple[NetCost, Config]:
    """Return what a run would do, without computing; errors as `quantize_model`."""
    config = config if isinstance(config, Config) else load_config(config)
    work = _prepare(config)
    net = FloatNet(work.fused.net)
    shapes: dict[str, tuple[int, ...]] = {}
    if any(x.type in SOURCE_TYPES - {"Input"} for x in net.net.layers):
        # a data layer does not say what it makes: the first sample does
        feed = open_feed(work.net, config.calibrate.data, config.transform, "calibrate.data")
        try:
            shapes = {name: x.shape for name, x in next(feed.batches(1, 1)).inputs.items()}
        finally:
            feed.close()
    cost = net_cost(net, work.verdicts, work.plans, shapes)
    return cost, config.model_copy(update={"calibrate": work.calibrate})


def _prepare(config: Config) -> _Prepared:
    net = caffeio.read_net(config.model.prototxt, config.model.caffemodel, config.model.phase)
    if broken := caffeio.nonfinite_blobs(net):
        raise PipelineError(f"{config.model.caffemodel}: {broken[0]}; the training has diverged?")
    calibrate, notes = with_quant_cfg(config.calibrate)
    check_names(calibrate, net)
    everything = fuse(net)
    fused = fuse(net, calibrate.skip_fusion_layers) if calibrate.do_fusion else Fused(net, ())
    unfused = {f.layer for f in everything.fusions} - {f.layer for f in fused.fusions}
    verdicts = judge(fused.net, calibrate.skip_layers, calibrate.skip_layer_types)
    wanted = {v.layer for v in verdicts if v.quantize}
    plans = {x.name: layer_plan(x, calibrate) for x in fused.net.layers if x.name in wanted}
    if not plans:
        raise PipelineError(
            f"net '{net.name}' has no layer to quantize; --plan shows the rule for each layer"
        )
    notes = (*net.notes, *notes, *_batch_norm_notes(net))
    if config.evaluate is None:
        notes = (*notes, "no [evaluate] in the config: compared on the calibration samples")
    return _Prepared(net, fused, frozenset(unfused), verdicts, plans, calibrate, notes)


def _batch_norm_notes(net: Net) -> tuple[str, ...]:
    return tuple(
        f"layer '{x.name}': use_global_stats is false: it normalizes with the batch's own "
        "statistics, so results depend on the batch; set it to true for inference"
        for x in net.layers
        if x.type == "BatchNorm"
        and x.param.batch_norm_param.HasField("use_global_stats")
        and not x.param.batch_norm_param.use_global_stats
    )


def _calibrate(
    config: Config, work: _Prepared, net: FloatNet, reporter: Reporter
) -> tuple[Record, int]:
    c = work.calibrate
    feed = open_feed(work.net, config.calibrate.data, config.transform, "calibrate.data")
    try:

        def batches(what: str) -> Iterator[Mapping[str, np.ndarray]]:
            found = feed.batches(c.batch_size, c.batch_num)
            return (feed.for_net(b) for b in reporter.track(found, what, c.batch_num))

        seen = observe(net, work.plans, batches("calibrate"), c.batch_num)
        if c.exact:
            params = search_exactly(net, work.plans, seen, batches("calibrate, exactly"))
        else:
            params = search(net.net, work.plans, seen, net.device)
    finally:
        feed.close()
    layers: dict[str, LayerRecord] = {}
    for layer, link in zip(net.net.layers, net.net.links, strict=True):
        if layer.name in work.plans:
            layers[layer.name] = layer_record(
                layer,
                params[layer.name],
                channel_wise=work.plans[layer.name].channel_wise,
                shape=seen.shapes[link.reads[0]],
                skip_fusion=layer.name in work.unfused,
            )
    return Record(layers), seen.samples


def _evaluate(
    config: Config, work: _Prepared, net: FloatNet, int8: Int8Net, reporter: Reporter
) -> tuple[tuple[ModelScore, ...], dict[str, LayerError]]:
    e = config.evaluate or _on_calibration_data(work.calibrate)
    blobs = compared_blobs(work.net, e.outputs)
    models: dict[str, Runnable] = {
        "float": FloatNet(work.net, device=net.device),
        "fakequant": FloatNet(fakequant_net(net.net, int8.layers), device=net.device),
        "int8": int8,
    }
    feed = open_feed(work.net, e.data, config.transform, "evaluate.data")
    try:
        if not len(feed):
            raise PipelineError("evaluate.data holds no samples from 'start' on")
        size = min(_LAYER_BATCH, max(e.layer_samples, 1), len(feed))
        few = min(e.layer_samples, len(feed)) // size
        samples = islice(feed.batches(size), few)
        tracked = reporter.track(samples, "error of each layer", few)
        errors = layer_errors(net, int8, (feed.for_net(b) for b in tracked))
        count = e.batch_num or -(-len(feed) // e.batch_size)
        tracked = reporter.track(feed.batches(e.batch_size, e.batch_num), "evaluate", count)
        return compare(models, tracked, blobs), errors
    finally:
        feed.close()


def _on_calibration_data(c: CalibrateConfig) -> EvaluateConfig:
    return EvaluateConfig(data=c.data, batch_size=c.batch_size, batch_num=c.batch_num)


def _files(config: Config, output: str | Path | None) -> dict[str, Path]:
    """Return what will be written, having checked that it may be.

    Raises
    ------
    ConfigError
        If a file exists already and must not be overwritten.
    PipelineError
        If the folder cannot be made or written.
    """
    folder = Path(output) if output is not None else config.output.directory
    prefix = config.output.prefix
    names = {
        "record": f"{prefix}_record.txt",
        "fakequant_prototxt": f"{prefix}_fake_quant_model.prototxt",
        "fakequant_weights": f"{prefix}_fake_quant_weights.caffemodel",
        "deploy_prototxt": f"{prefix}_deploy_model.prototxt",
        "deploy_weights": f"{prefix}_deploy_weights.caffemodel",
        "node_map": f"{prefix}_quant.json",
        "report": "report.json",
    }
    files = {kind: folder / name for kind, name in names.items()}
    taken = [path for path in files.values() if path.exists()]
    if taken and not config.output.overwrite:
        raise ConfigError(
            f"{taken[0]} exists already; set output.overwrite = true, or write to another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be written: {error.strerror}") from None
    return files


def _write(report: Report, work: _Prepared, int8: Int8Net) -> None:
    """Write all files to a temporary folder, then give each its name: all of them or none."""
    fake, deploy = (make(int8.net, int8.layers) for make in (fakequant_net, deploy_net))
    nodes = [asdict(pair) for pair in node_map(work.fused, int8.layers)]
    writers: dict[str, Callable[[Path], None]] = {
        "record": lambda path: write_record(report.record, path),
        "fakequant_prototxt": lambda path: caffeio.write_prototxt(fake, path),
        "fakequant_weights": lambda path: caffeio.write_caffemodel(fake, path),
        "deploy_prototxt": lambda path: caffeio.write_prototxt(deploy, path),
        "deploy_weights": lambda path: caffeio.write_caffemodel(deploy, path),
        "node_map": lambda path: _write_text(path, json.dumps({"nodes": nodes}, indent=1) + "\n"),
        "report": lambda path: _write_text(path, to_json(report)),
    }
    folder = report.files["report"].parent
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        for kind, path in report.files.items():
            writers[kind](Path(temporary) / path.name)
        for path in report.files.values():
            os.replace(Path(temporary) / path.name, path)


def _write_text(path: Path, text: str) -> None:
    with caffeio.atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
