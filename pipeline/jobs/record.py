"""Models from a record that is there already, without calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import caffeio
from caffeio import Net
from caffeio.record import Record
from pipeline.config.load import Config, load_config
from pipeline.config.unused import unused_settings
from pipeline.errors import ConfigError
from pipeline.jobs.data import has_evaluation, input_shapes
from pipeline.jobs.evaluation import check_evaluation
from pipeline.jobs.files import model_files, output_files
from pipeline.jobs.finish import finish
from pipeline.jobs.quantized import QuantizedModel
from pipeline.jobs.stages import Clock, Ranges
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.manifest import changed_since
from pipeline.quantize.convert import Fold, prepare_record, size_doubts
from pipeline.quantize.corrections import Corrected
from pipeline.quantize.improve import Improved
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.prepare import Prepared, read_model
from pipeline.report.progress import Reporter
from pipeline.report.values import Report
from pipeline.runtime.executor import FloatNet

__all__ = ["convert_model", "prepare_from_record", "quantize_from_record"]

_SCALES_ONLY = (
    "by the record: weights are rounded to the nearest step and biases stay as they are; "
    "corrections of effort standard and best are in the models they were made for, not in a record"
)


@names_unknown_fields
def quantize_from_record(
    config: str | Path | Config,
    *,
    device: str = "cpu",
    output: str | Path | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Quantize a model by the factors of a record.

    Parameters
    ----------
    config : path-like or Config
        With ``[record]``. Models are compared if ``[evaluate]`` or ``[calibrate]`` names data.
    device : str
        One of `kernels.DEVICES`.
    output : path-like, optional
        Folder to write to, instead of the config's.
    reporter : Reporter, optional
        Shows progress; by default nothing is shown.

    Returns
    -------
    Report

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As `quantize_model`; and if record and net do not belong together.
    """
    config = config if isinstance(config, Config) else load_config(config)
    reporter = reporter or Reporter(quiet=True)
    clock, names = Clock(), model_files(config)
    with output_files(config, output, names) as files, reporter.compiling(device):
        with clock.stage("read"):
            work, record = prepare_from_record(config)
            for warning in work.warnings:
                reporter.say(f"WARNING: {warning}", style="bold red")
        given = Corrected(work.fused.net, record)
        return finish(
            config,
            work,
            Ranges({}, {}, 0),
            files,
            clock,
            reporter,
            device=device,
            improvements=Improved(work.fused, given, (), ()),
        )


def prepare_from_record(config: Config) -> tuple[Prepared, Record]:
    """Read net and record, check that they belong together, and look at the data if there is any.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As `quantize_from_record`.
    """
    if config.record is None:
        raise ConfigError("[record] is missing: it names the record")
    record = caffeio.read_record(config.record.file)
    work = prepare_record(read_model(config), record, config.record.fold)
    if said := changed_since(config.record.file):
        work = replace(work, warnings=(*work.warnings, f"{config.record.file} {said}"))
    c = config.calibrate
    # where to read samples from, if any are read
    sizes = {"data": c.data, "batch_num": c.batch_num, "batch_size": c.batch_size}
    where = work.calibrate.model_copy(update={**sizes, "samples": c.samples, "seed": c.seed})
    work = replace(
        work, calibrate=where, notes=(*work.notes, _SCALES_ONLY, *unused_settings(config))
    )
    if not has_evaluation(config):
        note = "no [evaluate] in the config: models are not compared"
        return replace(work, notes=(*work.notes, note)), record
    check_evaluation(config, work)
    net = FloatNet(work.fused.net)
    doubts = size_doubts(net, record, input_shapes(config, work, net))
    return replace(work, warnings=(*work.warnings, *doubts)), record


def convert_model(
    net: Net, record: Record | str | Path, *, fold: Fold = "all", device: str = "cpu"
) -> QuantizedModel:
    """Quantize a float net by the factors of a record, without calibration.

    Parameters
    ----------
    net : Net
        Float, with weights, as `caffeio.read_net` returns it.
    record : Record or path-like
        Layers that it does not name stay in float.
    fold : "all" or "convolution"
        What BatchNorm and Scale layers are folded into, but for layers with ``skip_fusion``:
        whatever calibration folds, or Convolution alone, as the original tool's conversion does.
    device : str
        One of `kernels.DEVICES`, to run it on.

    Returns
    -------
    QuantizedModel
        ``save("Both", "results/net")`` writes it, ``int8.forward`` runs it.

    Raises
    ------
    PipelineError
        If the record names a layer that the net has not, or that cannot be quantized, or its
        factors do not fit the layer.
    caffeio.CaffeFileError, caffeio.NetError
        If the record cannot be read, or the net is quantized already.

    Examples
    --------
    >>> net = caffeio.read_net("deploy.prototxt", "net.caffemodel")  # doctest: +SKIP
    >>> pipeline.convert_model(net, "record.txt").save("Both", "results/net")  # doctest: +SKIP
    """
    record = record if isinstance(record, Record) else caffeio.read_record(record)
    work = prepare_record(net, record, fold)
    int8 = Int8Net.of_fused(work.fused.net, record, device=device)
    return QuantizedModel(record, int8, work.fused, work.notes, work.warnings)
