"""Handing a training net to a Caffe of the user's own, and taking back what it has trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import caffeio
from caffeio import Net
from caffeio.errors import NetError
from caffeio.proto import caffe_pb2
from caffeio.prototxt import format_text
from kernels import QuantParams, on_compile
from pipeline.config.load import Config, load_config
from pipeline.errors import ConfigError
from pipeline.jobs.data import input_shapes
from pipeline.jobs.files import (
    Writer,
    model_files,
    output_files,
    write_files,
    write_text,
)
from pipeline.jobs.stages import Clock, Ranges, calibrate, finish
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.qat.net import merge_phases, qat_net, ranges_of, without_qat
from pipeline.qat.plan import fake_plan
from pipeline.quantize.fuse import fuse
from pipeline.quantize.prepare import Prepared, as_configured, prepare, read_model, with_blobs
from pipeline.report.progress import Reporter
from pipeline.report.values import Report
from pipeline.runtime.executor import FloatNet

__all__ = ["emit_qat", "quantize_trained"]

_QAT_FILES = {
    "qat_prototxt": "_retrain_model.prototxt",
    "qat_weights": "_retrain_weights.caffemodel",
    "qat_solver": "_retrain_solver.prototxt",
}


@names_unknown_fields
def emit_qat(
    config: str | Path | Config,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Path]:
    """Write the training net with ActivationQAT and WeightQAT layers, its weights, and a solver.

    Parameters
    ----------
    config : path-like or Config
        With ``[retrain]``; with data in ``[calibrate]`` the ranges begin as calibrated.
    device : str
        One of `kernels.DEVICES`, for calibration.
    output : path-like, optional
        Folder to write to, instead of the config's.
    reporter : Reporter, optional

    Returns
    -------
    dict of str to Path
        What was written, by kind.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As `quantize_model`.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter = reporter or Reporter(quiet=True)
    settings = config.retrain
    if settings is None:
        raise ConfigError("[retrain] is missing: it names the solver")
    files = output_files(config, output, _QAT_FILES)
    solver = caffeio.read_solver(settings.solver, settings.root)
    train = as_configured(config, caffeio.read_solver_net(solver, "TRAIN", config.model.caffemodel))
    work = prepare(config, read_model(config))
    starts: dict[str, QuantParams] = {}
    if config.calibrate.data:
        with on_compile(device, reporter.compiling):
            net = FloatNet(work.fused.net, device=device)
            starts = calibrate(config, work, net, reporter).params
    plan = fake_plan(train, work, settings, starts)
    skip = settings.skip_fusion_layers

    def put_in(net: Net) -> Net:
        return qat_net(fuse(net, skip, training=True, fold=settings.do_fusion).net, plan)

    whole = put_in(train)
    if solver.test_net is not None:
        test = caffeio.read_solver_net(solver, "TEST", config.model.caffemodel)
        whole = merge_phases(whole, put_in(as_configured(config, test)))
    param = caffe_pb2.SolverParameter()
    param.CopyFrom(solver.param)
    for key in ("net_param", "train_net", "train_net_param", "test_net", "test_net_param"):
        param.ClearField(key)
    param.net = files["qat_prototxt"].name
    writers: dict[str, Writer] = {
        "qat_prototxt": lambda path: caffeio.write_prototxt(whole, path),
        "qat_weights": lambda path: caffeio.write_caffemodel(whole, path),
        "qat_solver": lambda path: write_text(path, format_text(param)),
    }
    write_files(files, writers)
    return files


@names_unknown_fields
def quantize_trained(
    config: str | Path | Config,
    prototxt: str | Path,
    caffemodel: str | Path,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Quantize a model by what a net with QAT layers has learned in Caffe.

    Parameters
    ----------
    config : path-like or Config
        Its ``[model]`` is the float model; it is given the trained weights.
    prototxt, caffemodel : path-like
        The net that `emit_qat` wrote, and a snapshot of its training.
    device, output, reporter
        As for `emit_qat`.

    Returns
    -------
    Report

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As `quantize_model`.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter = reporter or Reporter(quiet=True)
    files = output_files(config, output, model_files(config))
    clock = Clock()
    with on_compile(device, reporter.compiling):
        with clock.stage("read"):
            trained = caffeio.read_net(prototxt, caffemodel, "TRAIN")
            before = read_model(config)
            work = _work(config, before, trained)
            shapes = input_shapes(config, work, FloatNet(work.fused.net, device=device))
        ranges = Ranges(ranges_of(trained), shapes, 0)
        return finish(config, work, ranges, files, clock, reporter, device=device, before=before)


def _work(config: Config, before: Net, trained: Net) -> Prepared:
    """Return the float model, folded, with the trained weights, and the layers to quantize."""
    chosen = config.retrain or config.calibrate
    skip = chosen.skip_fusion_layers
    fused = fuse(before, skip, training=True, fold=chosen.do_fusion)
    plain = {layer.name: layer.blobs for layer in without_qat(trained).layers if layer.blobs}
    ranges = ranges_of(trained)
    net = with_blobs(fused.net, plain)
    absent = sorted(ranges.keys() - {layer.name for layer in net.layers})
    if absent:
        raise NetError(f"was trained, but '{before.name}' has no such layer", absent[0])
    rest = tuple(layer.name for layer in net.layers if layer.name not in ranges)
    settings = config.calibrate.model_copy(update={"skip_layers": rest, "do_fusion": False})
    work = prepare(config.model_copy(update={"calibrate": settings, "retrain": None}), net)
    channel_wise = {
        layer.name.removesuffix("_weight_qat"): layer.param.retrain_weight_quant_param.channel_wise
        for layer in trained.layers
        if layer.type == "WeightQAT"
    }
    plans = {
        name: replace(plan, channel_wise=channel_wise.get(name, plan.channel_wise))
        for name, plan in work.plans.items()
    }
    return replace(work, fused=replace(fused, net=net), plans=plans)
