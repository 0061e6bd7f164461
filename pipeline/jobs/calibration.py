"""One run from the config to the files: the stages in order, each stage a module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.config.load import Config, load_config
from pipeline.export import check_formats
from pipeline.jobs.convert_config import original_config
from pipeline.jobs.data import looked_at
from pipeline.jobs.evaluation import check_evaluator
from pipeline.jobs.fallback import fall_back
from pipeline.jobs.files import model_files, output_files
from pipeline.jobs.finish import finish
from pipeline.jobs.keeper import Keeper, keeper_of
from pipeline.jobs.nuq import chosen_layers, non_uniform
from pipeline.jobs.stages import Clock, calibrate, improved
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.quantize.prepare import Prepared, prepare, read_model
from pipeline.report.progress import Reporter
from pipeline.report.values import Report
from pipeline.runtime.executor import FloatNet

__all__ = ["quantize_model"]


@names_unknown_fields
def quantize_model(
    config: str | Path | Config,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
) -> Report:
    """Quantize a Caffe model by calibration, as a config says.

    Parameters
    ----------
    config : path-like or Config
        Its ``[retrain]`` is left aside: see `retrain_model`.
    device : str
        One of `kernels.DEVICES`.
    output : path-like, optional
        Folder to write to, instead of the config's.
    reporter : Reporter, optional
        Shows progress; by default nothing is shown.
    resume : bool
        Go on from what a run that did not end has observed.

    Returns
    -------
    Report
        With ``record``, ``accuracy``, ``layers`` and ``files``.

    Raises
    ------
    ConfigError
        If the config is wrong.
    PipelineError, caffeio.CaffeFileError, caffeio.NetError
        If the work cannot be done, or there is nothing to go on from. Nothing has been written
        then but what was observed, if that took long.
    KeyboardInterrupt
        On Ctrl-C; the message says what is kept.
    """
    config = config if isinstance(config, Config) else load_config(config)
    config = config.model_copy(update={"retrain": None})
    reporter = reporter or Reporter(quiet=True)
    with output_files(config, output, model_files(config)) as files:
        keeper = keeper_of(config, files["record"].parent, reporter, resume=resume)
        with reporter.compiling(device), keeper.kept():
            return _quantized(config, files, keeper, reporter, device)


def _quantized(
    config: Config, files: dict[str, Path], keeper: Keeper, reporter: Reporter, device: str
) -> Report:
    """Run the stages, one after the other."""
    clock = Clock()
    with clock.stage("read"):
        work = prepare(config, read_model(config))
        _check(config, work)
        work = looked_at(config, work, device=device)[0]
        check_evaluator(config, work, device=device)
        for warning in work.warnings:  # now, too: the rest may take long
            reporter.say(f"WARNING: {warning}", style="bold red")
    with clock.stage("calibrate"):
        net = FloatNet(work.fused.net, device=device)
        ranges = calibrate(config, work, net, reporter, keeper=keeper)
        work = replace(work, notes=(*work.notes, *keeper.notes))
    better = improved(config, work, ranges, reporter, clock, device=device)
    tried = None
    if config.fallback is not None:
        with clock.stage("fallback"):
            done = fall_back(config, work, ranges, better, reporter, clock, device=device)
        work, ranges, better, tried = done.work, done.ranges, done.improvements, done.result
    few = None
    if config.nuq is not None:
        with clock.stage("nuq"):
            better, few = non_uniform(
                config,
                work,
                better,
                lambda levels: improved(
                    config, work, ranges, reporter, Clock(), device=device, levels=levels
                ),
                reporter,
                device=device,
            )
    return finish(
        config,
        work,
        ranges,
        files,
        clock,
        reporter,
        device=device,
        improvements=better,
        fallback=tried,
        nuq=few,
    )


def _check(config: Config, work: Prepared) -> None:
    """Raise, before the long work, what would be raised after it."""
    check_formats(config.output.formats, work.fused.net, work.calibrate.joint_quant)
    original_config(config, work)
    if config.nuq is not None:
        chosen_layers(config.nuq, work)
