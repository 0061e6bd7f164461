"""One training from the config to the trained weights, and on to the quantized model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import caffeio
from caffeio import Net
from kernels import QuantParams
from pipeline.config.load import Config, load_config
from pipeline.errors import ConfigError
from pipeline.jobs.convert_config import original_config
from pipeline.jobs.data import input_shapes
from pipeline.jobs.evaluation import check_evaluation
from pipeline.jobs.files import model_files, output_files
from pipeline.jobs.finish import finish
from pipeline.jobs.stages import Clock, Ranges, calibrate
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.jobs.writing import Writer, write_files
from pipeline.qat.plan import fake_plan, trained_channel_wise
from pipeline.qat.trained import plan_of, with_trained
from pipeline.quantize.assign import LayerPlan
from pipeline.quantize.prepare import Prepared, prepare, read_model, with_blobs
from pipeline.report.curve import Training, draw_curve, write_curve
from pipeline.report.progress import Reporter
from pipeline.report.values import Report
from pipeline.retrain.fake import clips_by_layer
from pipeline.retrain.group import Group, join, leads_here
from pipeline.retrain.plan import Plan, Test
from pipeline.retrain.setup import Setup, set_up, set_up_test, training_device
from pipeline.retrain.snapshot import contents_of, fingerprint
from pipeline.retrain.solver_state import read_state, trained_net
from pipeline.retrain.trainer import Trainer
from pipeline.runtime.executor import FloatNet

__all__ = ["Trained", "retrain_model", "train_model"]

_COURSE_FILES = {
    "trained_weights": "_trained.caffemodel",
    "course": "_training.csv",
    "picture": "_training.png",
    "last_weights": "_last.caffemodel",
    "last_state": "_last.solverstate",
}
_INTERVAL = 1000


@dataclass(frozen=True)
class Trained:
    """What a training ends with.

    Attributes
    ----------
    net : str
    iterations : int
        Done.
    metric : str
        What tests measure; empty without tests.
    first, best : float or None
        The metric before the first iteration, and of the state that was kept.
    at : int or None
        The iteration of that state.
    files : dict of str to Path
        What was written, by kind.
    notes : tuple of str
    """

    net: str
    iterations: int
    metric: str
    first: float | None
    best: float | None
    at: int | None
    files: dict[str, Path]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Done:
    """A training that has ended, and what is to be quantized by it."""

    setup: Setup
    trainer: Trainer
    test: Test | None
    work: Prepared | None
    before: Net | None
    samples: int


@names_unknown_fields
def train_model(
    config: str | Path | Config,
    *,
    output: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: bool | str | Path = False,
) -> Trained | None:
    """Train a Caffe net as ``[retrain]`` says, and hand over its float weights.

    For ``quantize = false``, and for fewer than 8 bits, which no deployed model has.

    Parameters
    ----------
    config : path-like or Config
    output : path-like, optional
        Folder to write to, instead of the config's.
    reporter : Reporter, optional
        Shows progress; by default nothing is shown.
    resume : bool or path-like
        True: go on from the last snapshot. A .solverstate of Caffe's, or of another training
        here (``<prefix>_last.solverstate``): begin where that ended, with its weights.

    Returns
    -------
    Trained or None
        None in those processes of a group that do not lead.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        If the work cannot be done.
    Interrupted
        On Ctrl-C or SIGTERM; a snapshot has been written.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter = reporter or Reporter(quiet=True)
    with _files(config, output, _COURSE_FILES, resume) as files:
        with join(_device(config)) as group:
            done = _train(config, group, files, reporter, resume)
        if not group.leads:
            return None
        write_files(files, _course_writers(done, files), overwrite=config.output.overwrite)
        _remove_snapshots(files["course"])
    return _trained(done, files)


@names_unknown_fields
def retrain_model(
    config: str | Path | Config,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: bool | str | Path = False,
) -> Report | None:
    """Train a Caffe net with fake quantization in place, then quantize it with what it learned.

    Parameters
    ----------
    config, output, reporter, resume
        As for `train_model`.
    device : str
        One of `kernels.DEVICES`, for calibration and evaluation.

    Returns
    -------
    Report or None
        None in those processes of a group that do not lead.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError, Interrupted
        As for `train_model`.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter = reporter or Reporter(quiet=True)
    clock, names = Clock(), {**model_files(config), **_COURSE_FILES}
    with _files(config, output, names, resume) as files, reporter.compiling(device):
        with clock.stage("train"), join(_device(config)) as group:
            done = _train(config, group, files, reporter, resume, device)
        if not group.leads:
            return None
        report = _quantize(done, config, device, files, reporter, clock)
        _remove_snapshots(files["course"])
    return report


def _device(config: Config) -> str:
    if config.retrain is None:
        raise ConfigError("[retrain] is missing: it names the solver")
    return training_device(config.retrain)


def _train(
    config: Config,
    group: Group,
    files: Mapping[str, Path],
    reporter: Reporter,
    resume: bool | str | Path,
    device: str = "cpu",
) -> _Done:
    """Set up, calibrate, and train."""
    settings = config.retrain
    assert settings is not None
    reporter = reporter if group.leads else Reporter(quiet=True)
    work = before = fake = None
    samples = 0
    model: object = None
    follows = None if isinstance(resume, bool) else Path(resume)
    with ExitStack() as opened:
        setup = set_up(config, group, opened)
        if follows is not None:
            state, weights = read_state(follows)
            last = caffeio.read_solver_net(setup.solver, "TRAIN", weights, partial=True)
            setup.module.load_blobs(last)
        if settings.quantize:
            before = with_blobs(read_model(config), setup.module.trained_blobs())
            work = _prepared(config, before)
            original_config(config, work)  # raises what it would after the training
            if settings.deployable:
                check_evaluation(config, work)
            starts: dict[str, QuantParams] = {}
            if config.calibrate.data and resume is not True:
                net = FloatNet(work.fused.net, device=device)
                ranges = calibrate(config, work, net, reporter, settings.data_bits)
                starts, samples = ranges.params, ranges.samples
            fake = fake_plan(setup.net, work, settings, starts)
        elif setup.qat is not None:
            fake = plan_of(setup.qat)
        if fake is not None:
            model = [(d.layers, d.fixed_min) for d in fake.data], sorted(fake.weights.items())
            setup.module.fake_quantize(fake)
        test = set_up_test(setup, opened)
        snapshots = _snapshot_path(files["course"])
        interval = settings.snapshot_interval or setup.solver.param.snapshot or _INTERVAL
        prints = [*setup.feed.prints(), *(test.feed.prints() if test else ())]
        made_of = {**setup.fingerprint(), **fingerprint(model=model), **contents_of(prints)}
        plan = Plan(snapshots, made_of, interval, settings.patience)
        with reporter.training(test.metric if test else "") as show:
            trainer = Trainer(
                setup.module, setup.solver, setup.feed, group, plan, test=test, report=show
            )
            if follows is not None:
                trainer.follow(state, follows)
            elif resume:
                trainer.resume()
            if resume:
                reporter.say(f"going on from iteration {trainer.iteration}")
            trainer.run()
    return _Done(setup, trainer, test, work, before, samples)


def _prepared(config: Config, net: Net) -> Prepared:
    """Prepare as for calibration, with the weight settings of ``[retrain]``."""
    settings = config.retrain
    assert settings is not None
    work = prepare(config, net)
    plans = {
        name: LayerPlan(plan.method, trained_channel_wise(net.layer(name), settings))
        for name, plan in work.plans.items()
    }
    return replace(work, plans=plans)


def _quantize(
    done: _Done,
    config: Config,
    device: str,
    files: dict[str, Path],
    reporter: Reporter,
    clock: Clock,
) -> Report:
    """Quantize the trained net by the ranges that it learned, evaluate, and write."""
    assert done.work is not None
    assert done.before is not None
    module = done.setup.module
    with clock.stage("read"):
        work = _prepared(config, with_blobs(done.work.net, module.trained_blobs()))
        work = replace(work, notes=(*work.notes, *_notes(done)))
        shapes = input_shapes(config, work, FloatNet(work.fused.net, device=device))
    return finish(
        config,
        work,
        Ranges(module.ranges_by_layer(), shapes, done.samples),
        files,
        clock,
        reporter,
        device=device,
        before=None if config.model.caffemodel is None else done.before,
        more=_course_writers(done, files),
        training=_course(done).thinned(),
    )


def _course_writers(done: _Done, files: Mapping[str, Path]) -> dict[str, Writer]:
    module, trainer = done.setup.module, done.trainer
    trained = _with_blobs(done.setup, module.trained_blobs(), clips_by_layer(module.ranges))
    last = _with_blobs(done.setup, trainer.blobs, trainer.clips)
    state = trainer.state(files["last_weights"].name)
    course, name = _course(done), done.setup.net.name or done.setup.solver.train_net.stem
    return {
        "trained_weights": lambda path: caffeio.write_caffemodel(trained, path),
        "course": lambda path: write_curve(course.points, path),
        "picture": lambda path: draw_curve(course, path, f"Training of {name}"),
        "last_weights": lambda path: caffeio.write_caffemodel(last, path),
        "last_state": lambda path: caffeio.write_solver_state(state, path),
    }


def _course(done: _Done) -> Training:
    best = done.trainer.best
    at = best.iteration if done.test is not None and best.iteration >= 0 else None
    return Training(done.test.metric if done.test else "", tuple(done.trainer.points), at)


def _with_blobs(
    setup: Setup,
    blobs: Mapping[str, tuple[np.ndarray, ...]],
    clips: Mapping[str, tuple[float, float]],
) -> Net:
    """Return the training net with blobs; QAT layers with what they have learned."""
    if setup.qat is not None:
        return with_trained(setup.qat, blobs, clips)
    return trained_net(setup.net, dict(blobs))


def _trained(done: _Done, files: dict[str, Path]) -> Trained:
    best = done.trainer.best
    tested = done.test is not None and best.iteration >= 0
    points = done.trainer.points
    return Trained(
        done.setup.net.name or done.setup.solver.train_net.stem,
        done.trainer.iteration,
        done.test.metric if done.test else "",
        points[0].metric if points else None,
        best.metric if tested else None,
        best.iteration if tested else None,
        files,
        (*done.setup.solver.notes, *done.setup.net.notes, *_notes(done)),
    )


def _notes(done: _Done) -> tuple[str, ...]:
    best, trainer = done.trainer.best, done.trainer
    if done.test is None:
        return (f"trained {trainer.iteration} iterations; the solver does not test",)
    return (
        f"trained {trainer.iteration} iterations; the best test, {done.test.metric} "
        f"{best.metric:.4f} at iteration {best.iteration}, was kept",
    )


@contextmanager
def _files(
    config: Config,
    output: str | Path | None,
    names: dict[str, str],
    resume: bool | str | Path,
) -> Iterator[dict[str, Path]]:
    with output_files(config, output, names, held=leads_here()) as files:
        snapshot = _snapshot_path(files["course"])
        if snapshot.exists() and resume is not True and not config.output.overwrite:
            raise ConfigError(
                f"{snapshot} is left from a training that did not end: --resume goes on from it; "
                "remove it, or set output.overwrite = true, to start anew"
            )
        yield files


def _snapshot_path(course: Path) -> Path:
    return course.with_name(course.name.replace("_training.csv", "_snapshot.pt"))


def _remove_snapshots(course: Path) -> None:
    """Remove what only an unfinished training needs, and what a killed one has half written."""
    snapshot = _snapshot_path(course)
    for path in Plan(snapshot, {}, 1).all_for_caffe():
        path.unlink()
    for path in (snapshot, snapshot.with_name(snapshot.name.replace("snapshot", "best"))):
        path.unlink(missing_ok=True)
        for part in path.parent.glob(f".{path.name}.*.tmp"):
            part.unlink()
