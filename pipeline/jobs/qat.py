"""Handing a training net to a Caffe of the user's own, and taking back what it has trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import caffeio
from caffeio import Net, Solver
from caffeio.errors import CaffeFileError, NetError
from caffeio.proto import caffe_pb2
from caffeio.prototxt import format_text
from kernels import Ifmr, QuantParams
from pipeline.config.base import DataConfig
from pipeline.config.load import Config, load_config
from pipeline.config.retrain import RetrainConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.jobs.data import input_shapes
from pipeline.jobs.files import model_files, output_files, write_text
from pipeline.jobs.finish import finish
from pipeline.jobs.stages import Clock, Ranges, calibrate
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.jobs.writing import Writer, write_files
from pipeline.layers.source import declared_batch
from pipeline.qat.net import merge_phases, qat_net, ranges_of, without_qat
from pipeline.qat.plan import fake_plan
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.calibrate import search
from pipeline.quantize.feed import open_feed
from pipeline.quantize.fuse import fuse
from pipeline.quantize.observe import RangeObserver
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
        With ``[retrain]``; with data in ``[calibrate]`` the ranges begin as calibrated, else as
        searched on the first batch of the training data.
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
    if config.retrain is None:
        raise ConfigError("[retrain] is missing: it names the solver")
    with output_files(config, output, _QAT_FILES) as files:
        _emit(config, config.retrain, files, device, reporter or Reporter(quiet=True))
    return files


def _emit(
    config: Config, settings: RetrainConfig, files: dict[str, Path], device: str, reporter: Reporter
) -> None:
    solver = caffeio.read_solver(settings.solver, settings.root)
    if solver.test_net is None:
        raise ConfigError(
            f"'{solver.path}' does not test, which the original's training needs: give it "
            "test_iter and test_interval, and its net a TEST phase"
        )
    train = as_configured(config, caffeio.read_solver_net(solver, "TRAIN", config.model.caffemodel))
    test = as_configured(config, caffeio.read_solver_net(solver, "TEST", config.model.caffemodel))
    work = prepare(config, read_model(config))
    skip = settings.skip_fusion_layers

    def folded(net: Net) -> Net:
        return fuse(net, skip, training=True, fold=settings.do_fusion).net

    with reporter.compiling(device):
        starts, notes = _starts(config, work, folded(train), solver, device, reporter)
    plan = fake_plan(train, work, settings, starts)
    whole = merge_phases(qat_net(folded(train), plan), qat_net(folded(test), plan))
    for note in notes:
        reporter.say(f"note: {note}")
    head = "".join(f"# {line}\n" for line in (*_HEAD, *notes))
    writers: dict[str, Writer] = {
        "qat_prototxt": lambda path: write_text(path, head + caffeio.to_prototxt(whole)),
        "qat_weights": lambda path: caffeio.write_caffemodel(whole, path),
        "qat_solver": lambda path: write_text(
            path, head + _solver_text(solver, files["qat_prototxt"].name)
        ),
    }
    write_files(files, writers, overwrite=config.output.overwrite)


#: What whoever trains with the emitted files should know.
_HEAD = (
    "For training with quantization in the Ascend tool's Caffe, started in this folder.",
    "Each ActivationQAT layer makes its record_file_path here. The TEST net shares its blobs with",
    "the TRAIN net: at its first forward it writes the quantized weights over the float masters,",
    "which are quantized anew from then on; test_initialization stays false.",
)


def _solver_text(solver: Solver, net: str) -> str:
    """Return the solver for the emitted net: one net for both phases, no test at the beginning."""
    param = caffe_pb2.SolverParameter()
    param.CopyFrom(solver.param)
    for key in ("net_param", "train_net", "train_net_param", "test_net", "test_net_param"):
        param.ClearField(key)
    param.net = net
    param.test_initialization = False
    # the original's own retraining wants more test batches than its batch_num, which is 1 here
    param.test_iter[:] = [max(solver.test_iter, 2)]
    return format_text(param)


def _starts(
    config: Config, work: Prepared, train: Net, solver: Solver, device: str, reporter: Reporter
) -> tuple[dict[str, QuantParams], tuple[str, ...]]:
    """Return the ranges to begin with: as calibrated, or of the first batch of training data.

    Also notes: where there is neither, Caffe searches the ranges itself.
    """
    if config.calibrate.data:
        net = FloatNet(work.fused.net, device=device)
        return calibrate(config, work, net, reporter).params, ()
    try:
        batch = _first_batch(config, train, solver)
    except (ConfigError, PipelineError, CaffeFileError, NetError, ImportError) as error:
        return {}, (
            f"The training data cannot be read here ({error}): Caffe searches the ranges on "
            "its first batch (ifmr_init).",
        )
    plans = {name: LayerPlan(Ifmr(), False) for name in work.plans}
    observer = RangeObserver(FloatNet(train, device=device), plans, 1)
    observer.feed(0, batch)
    return search(train, plans, observer.seen, device), (
        "Ranges begin as IFMR finds them on the first batch of the training data.",
    )


def _first_batch(config: Config, train: Net, solver: Solver) -> dict[str, np.ndarray]:
    """Read a batch of the training data: what the config names, or the net's data layer."""
    settings = config.retrain
    assert settings is not None
    own = DataConfig(kind="net", root=settings.root or solver.train_net.parent)
    tables = settings.data or (own,)
    feed = open_feed(train, tables, config.transform, "retrain.data")
    try:
        size = (settings.batch_size if settings.data else None) or declared_batch(train.layers)
        return feed.for_net(next(feed.batches(size or 32, 1)))
    finally:
        feed.close()


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
    clock, names = Clock(), model_files(config)
    with output_files(config, output, names) as files, reporter.compiling(device):
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
