"""A float net with fewer multiplications, to be trained on and quantized: ``--decompose``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import caffeio
from caffeio import Layer, Net
from caffeio.proto.caffe_pb2 import SolverParameter
from caffeio.prototxt import format_text
from pipeline.config.decompose import DecomposeConfig
from pipeline.config.load import Config, load_config
from pipeline.config.retrain import RetrainConfig
from pipeline.jobs.data import calibration_feed, evaluation, evaluation_feed
from pipeline.jobs.evaluation import check_evaluation, evaluator_of
from pipeline.jobs.files import output_files, write_text
from pipeline.jobs.stages import Clock
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.jobs.writing import Writer, write_files
from pipeline.layers import Shape
from pipeline.qat.net import merge_phases
from pipeline.quantize.activations import Activations
from pipeline.quantize.decompose import (
    Columns,
    decomposable,
    decompose,
    observe_columns,
    with_pairs,
)
from pipeline.quantize.eligibility import judge
from pipeline.quantize.evaluate import DecodedOnce, ModelScore, Runnable, compare
from pipeline.quantize.outputs import compared_blobs, detection_blobs
from pipeline.quantize.prepare import Prepared, as_configured, prepare, read_model
from pipeline.report.cost import net_cost
from pipeline.report.progress import Reporter
from pipeline.report.ranks import Decomposed
from pipeline.runtime.executor import FloatNet

__all__ = ["decompose_model"]

_FILES = {"prototxt": "_decomposed.prototxt", "weights": "_decomposed.caffemodel"}
_TRAIN_FILES = {
    "train_prototxt": "_decomposed_train.prototxt",
    "solver": "_decomposed_solver.prototxt",
}
#: Bytes of evaluation samples held in memory from one model to the next.
_MEMORY = 64 << 20


@names_unknown_fields
def decompose_model(
    config: str | Path | Config,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Decomposed:
    """Split convolutions into two of lower rank where that saves enough for a small error.

    Parameters
    ----------
    config : path-like or Config
        ``[decompose]`` says what is enough and what is small; the ranks are chosen on the
        calibration samples. With ``[retrain]`` the solver's nets are decomposed likewise.
    device : str
        One of `kernels.DEVICES`, for the evaluation.
    output : path-like, optional
        Folder to write to, instead of the config's.
    reporter : Reporter, optional

    Returns
    -------
    Decomposed

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As `quantize_model`.
    """
    config = config if isinstance(config, Config) else load_config(config)
    names = _FILES if config.retrain is None else {**_FILES, **_TRAIN_FILES}
    with output_files(config, output, names) as files:
        return _decompose(config, files, device, reporter or Reporter(quiet=True))


def _decompose(
    config: Config, files: dict[str, Path], device: str, reporter: Reporter
) -> Decomposed:
    settings, clock = config.decompose or DecomposeConfig(), Clock()
    with reporter.compiling(device):
        with clock.stage("read"):
            net = read_model(config)
            work = replace(prepare(config, net), net=net)
            chosen = decomposable(net, settings)
            check_evaluation(config, work)
        with clock.stage("decompose"):
            seen = _seen(config, work, chosen, reporter)
            reporter.say(f"decomposing {len(chosen)} convolutions ...")
            pairs, ranks = decompose(net, seen, settings)
            smaller = with_pairs(net, pairs)
        with clock.stage("evaluate"):
            scores = _compare(config, work, smaller, device, reporter)
        shapes = _one_batch(config, work)
        costs = [net_cost(FloatNet(n), judge(n), {}, shapes) for n in (net, smaller)]
    writers: dict[str, Writer] = {
        "prototxt": lambda path: caffeio.write_prototxt(smaller, path),
        "weights": lambda path: caffeio.write_caffemodel(smaller, path),
    }
    if config.retrain is not None:
        writers |= _training_writers(config, config.retrain, pairs, files)
    write_files(files, writers, overwrite=config.output.overwrite)
    notes = (*net.notes, *(() if pairs else ("no layer saves enough: the net is as it was",)))
    macs_before, macs = (c.macs for c in costs)
    weights_before, weights = (
        sum(blob.size for layer in n.layers for blob in layer.blobs) for n in (net, smaller)
    )
    return Decomposed(
        net.name or config.model.prototxt.stem,
        ranks,
        macs_before,
        macs,
        weights_before,
        weights,
        scores,
        files,
        clock.seconds,
        notes,
    )


def _seen(
    config: Config, work: Prepared, names: Sequence[str], reporter: Reporter
) -> dict[str, Columns]:
    """Return what convolutions read in the calibration samples."""
    c = work.calibrate
    feed = calibration_feed(config, work)
    try:
        batches = reporter.track(feed.batches(c.batch_size, c.batch_num), "observe", c.batch_num)
        return observe_columns(work.net, names, (feed.for_net(b) for b in batches), c.batch_num)
    finally:
        feed.close()


def _compare(
    config: Config, work: Prepared, smaller: Net, device: str, reporter: Reporter
) -> tuple[ModelScore, ...]:
    """Compare the net with the one that it has become."""
    e = evaluation(config, work)
    models: dict[str, Callable[[], Runnable]] = {
        "float": lambda: FloatNet(work.net, device=device),
        "decomposed": lambda: FloatNet(smaller, device=device),
    }
    feed = evaluation_feed(config, work)
    count = e.batch_num or -(-len(feed) // e.batch_size)
    try:
        with Activations(_MEMORY) as values:
            batches = feed.batches(e.batch_size, e.batch_num)
            decoded = DecodedOnce((replace(b, inputs=feed.for_net(b)) for b in batches), values)
            return compare(
                models,
                lambda name: reporter.track(decoded, f"evaluate {name}", count),
                compared_blobs(work.net, e.outputs),
                detections=detection_blobs(work.net),
                evaluator=evaluator_of(e),
            )
    finally:
        feed.close()


def _one_batch(config: Config, work: Prepared) -> dict[str, Shape]:
    """Return the shapes of a batch of the net's inputs."""
    feed = evaluation_feed(config, work)
    try:
        batch = next(feed.batches(min(evaluation(config, work).batch_size, len(feed)), 1))
        return {name: x.shape for name, x in feed.for_net(batch).items()}
    finally:
        feed.close()


def _training_writers(
    config: Config,
    retrain: RetrainConfig,
    pairs: Mapping[str, tuple[Layer, Layer]],
    files: Mapping[str, Path],
) -> dict[str, Writer]:
    """Return what writes a training net of the same layers, and a solver for it."""
    solver = caffeio.read_solver(retrain.solver, retrain.root)
    whole = with_pairs(as_configured(config, caffeio.read_solver_net(solver, "TRAIN")), pairs)
    if solver.test_net is not None:
        test = as_configured(config, caffeio.read_solver_net(solver, "TEST"))
        whole = merge_phases(whole, with_pairs(test, pairs))
    param = SolverParameter()
    param.CopyFrom(solver.param)
    for key in ("net_param", "train_net", "train_net_param", "test_net", "test_net_param"):
        param.ClearField(key)
    param.net = files["train_prototxt"].name
    return {
        "train_prototxt": lambda path: caffeio.write_prototxt(whole, path),
        "solver": lambda path: write_text(path, format_text(param)),
    }
