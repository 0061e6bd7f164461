"""The original tool's command line: ``caffe-quant calibration …`` and ``caffe-quant convert …``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import positive

if TYPE_CHECKING:
    from pipeline.config.base import DataConfig
    from pipeline.config.calibrate import CalibrateConfig
    from pipeline.config.load import Config, ModelConfig, OutputConfig
    from pipeline.report.values import Report

__all__ = ["calibration", "convert"]


def calibration(arguments: Sequence[str]) -> int:
    """Quantize by calibration on raw batches; return the exit code."""
    parser = _parser("calibration", "Quantize by calibration on raw batches.")
    parser.add_argument("--input_shape", metavar="NAME:N,C,H,W;…", help="of each input")
    parser.add_argument(
        "--data_dir", metavar="DIR;…", help="folders of .bin files, each a whole batch"
    )
    parser.add_argument("--data_types", metavar="TYPE;…", help="of the numbers: float32, uint8, …")
    parser.add_argument(
        "--evaluator", metavar="FILE",
        help="instead: a Python file for pycaffe, with calibration(model, weights) and evaluate()",
    )  # fmt: skip
    parser.add_argument("--calibration_config", metavar="FILE", help="a .cfg or config.json")
    parser.add_argument(
        "--batch_num", type=positive, metavar="N", help="batches to use (default: 1)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with such a run that was interrupted"
    )
    options = parser.parse_args(arguments)
    raw = ("input_shape", "data_dir", "data_types")
    given = [name for name in raw if getattr(options, name) is not None]
    if options.evaluator is not None:
        if given:
            parser.error(f"--evaluator excludes --{given[0]}")
        if options.resume:
            parser.error("--evaluator excludes --resume: its batches are its own")
    elif missing := [name for name in raw if name not in given]:
        parser.error(f"--{missing[0]} is needed")
    if options.calibration_config is not None and options.batch_num is not None:
        parser.error("--calibration_config excludes --batch_num: the file has its own")

    from pipeline.config.calibrate import CalibrateConfig
    from pipeline.config.load import Config
    from pipeline.jobs.calibration import quantize_model

    settings = CalibrateConfig(
        batch_num=options.batch_num or 1,
        effort="original",
        quant_cfg=_path(options.calibration_config) if options.calibration_config else None,
    )
    if options.evaluator is not None:
        return _by_evaluator(options, settings)
    data = _data(parser, options)
    batch = data[0].input_shape
    assert batch is not None
    settings = settings.model_copy(update={"data": data, "batch_size": batch[0]})
    whole = Config(model=_model(options), calibrate=settings, output=_output(options))
    return _run(options, whole, partial(quantize_model, resume=options.resume))


def _by_evaluator(options: argparse.Namespace, settings: CalibrateConfig) -> int:
    from pipeline.commands.evaluator import calibrate_by
    from pipeline.report.console import PlainConsole
    from pipeline.report.progress import Reporter
    from pipeline.report.tables import show_files

    if options.gpu_id is not None:
        _gpu(options.gpu_id)
    files, metrics = calibrate_by(
        _path(options.evaluator),
        _path(options.model),
        _path(options.weights),
        settings,
        options.save_path,
        Reporter(quiet=options.quiet),
    )
    console = PlainConsole(quiet=options.quiet)
    for name, metric in metrics.items():
        console.print(f"{name}: {metric}", markup=False, highlight=False)
    show_files(files, console)
    return 0


def convert(arguments: Sequence[str]) -> int:
    """Make models from a record; return the exit code."""
    parser = _parser("convert", "Make the models from a record, without calibration.")
    parser.add_argument("--record_file", "--record", metavar="FILE", required=True, help="a record")
    options = parser.parse_args(arguments)

    from pipeline.config.load import Config
    from pipeline.config.record import RecordConfig
    from pipeline.jobs.record import quantize_from_record

    record = RecordConfig(file=_path(options.record_file), fold="convolution")
    whole = Config(model=_model(options), record=record, output=_output(options))
    return _run(options, whole, quantize_from_record)


def _parser(name: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"caffe-quant {name}",
        description=f"{what} The command line of the Ascend tool for Caffe, unchanged.",
    )
    parser.add_argument("--model", metavar="FILE", required=True, help="the net, a prototxt")
    parser.add_argument("--weights", metavar="FILE", required=True, help="its caffemodel")
    parser.add_argument(
        "--save_path", metavar="PREFIX", required=True,
        help="folder and beginning of the files' names; files of these names are replaced",
    )  # fmt: skip
    parser.add_argument("--gpu_id", type=int, metavar="N", help="compute on this GPU")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks of errors")
    return parser


def _path(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))


def _model(options: argparse.Namespace) -> ModelConfig:
    from pipeline.config.load import ModelConfig

    return ModelConfig(prototxt=_path(options.model), caffemodel=_path(options.weights))


def _output(options: argparse.Namespace) -> OutputConfig:
    from pipeline.config.load import OutputConfig

    folder, prefix = os.path.split(options.save_path)
    return OutputConfig(directory=_path(folder), prefix=prefix, overwrite=True)


def _data(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[DataConfig, ...]:
    from pipeline.config.base import DataConfig

    shapes = [_shape(parser, part) for part in _parts(options.input_shape)]
    folders, types = _parts(options.data_dir), _parts(options.data_types)
    for name, values in (("data_dir", folders), ("data_types", types)):
        if len(values) != len(shapes):
            parser.error(f"--{name} names {len(values)}, --input_shape {len(shapes)} inputs")
    sizes = {shape[0] for _, shape in shapes}
    if len(sizes) > 1:
        parser.error(f"--input_shape: the inputs' batches differ: {sorted(sizes)}")
    return tuple(
        DataConfig(source=_path(folder), kind="raw", input=name, input_shape=shape, data_type=kind)
        for (name, shape), folder, kind in zip(shapes, folders, types, strict=True)
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _shape(parser: argparse.ArgumentParser, text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, numbers = text.rpartition(":")
    try:
        shape = tuple(int(n) for n in numbers.split(","))
    except ValueError:
        shape = ()
    if not colon or not shape or min(shape) < 1:
        parser.error(f"--input_shape: '{text}' is not of the form name:n,c,h,w")
    return name, shape


def _run(options: argparse.Namespace, config: Config, job: Callable[..., Report]) -> int:
    from pipeline.report.console import PlainConsole
    from pipeline.report.progress import Reporter
    from pipeline.report.tables import show_report, wide

    device = "cpu" if options.gpu_id is None else _gpu(options.gpu_id)
    report = job(config, device=device, reporter=Reporter(quiet=options.quiet))
    show_report(report, wide(PlainConsole(quiet=options.quiet)))
    return 0


def _gpu(number: int) -> str:
    """Let this process see one GPU only; return the device."""
    from kernels import best_device
    from pipeline.errors import ConfigError

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else []
    # read when the driver is loaded, which has not happened yet
    if number < len(names) or not names:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number] if names else str(number)
    device, _ = best_device()
    if device != "cuda" or (names and number >= len(names)):
        raise ConfigError(f"--gpu_id {number}: there is no such GPU; leave it out to use the CPU")
    return device
