"""The command line: ``python -m pipeline.run config.toml``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.commands import positive
from pipeline.installed import check_kernels
from pipeline.signals import terminated_is_interrupted
from pipeline.streams import cache_notes, safe_streams

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.config.load import Config
    from pipeline.report.progress import Reporter

__all__ = ["main"]

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
_THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run",
        description="Quantize a Caffe model to INT8, by calibration or by training, and say what "
        "it costs.",
        epilog="Other commands: 'init PROTOTXT [CAFFEMODEL]' writes a first config; 'compare DIR "
        "DIR' shows runs beside each other, 'report DIR' makes a run's page again; 'calibration' "
        "and 'convert' take the options of the Ascend tool for Caffe (each with --help). "
        "Exit codes: 0 done, 1 failed, 2 wrong use (the command, the config, or a path in "
        "them that does not exist), 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"caffe-quant {__version__}")
    parser.add_argument(
        "config", nargs="?", help="TOML file that names the model, the data and the output"
    )
    _add_jobs(parser)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "reference"), default="auto",
        help="cuda: a GPU; cpu: numba on all cores; auto (default): cuda where there is one; "
        "reference: NumPy, slow, defines the results",
    )  # fmt: skip
    parser.add_argument("--threads", type=positive, help="threads to use (default: all cores)")
    parser.add_argument("--output", metavar="DIR", help="write here, not to the config's folder")
    parser.add_argument(
        "--sort", action="store_true",
        help="show the layers that add most error first; of --plan: those that cost most",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--verbose", action="store_true",
        help="print every step: methods, candidates, losses, times; tracebacks of errors",
    )  # fmt: skip
    parser.add_argument("--log", metavar="FILE", help="write what --verbose shows to this file")
    return parser


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the options that ask for something else than a run of the config, or for more."""
    parser.add_argument(
        "--plan",
        action="store_true",
        help="look at model, data and settings, and show what would be done",
    )
    parser.add_argument(
        "--sensitivity", action="store_true",
        help="show what each layer loses, quantized alone and left in float; writes nothing",
    )  # fmt: skip
    parser.add_argument(
        "--retrain", metavar="SOLVER", help="train by this solver, as [retrain] in the config"
    )
    parser.add_argument(
        "--resume", nargs="?", const=True, default=False, metavar="SOLVERSTATE",
        help="go on with a calibration or a training that was interrupted; or, with the "
        ".solverstate of a training that ended (here or in Caffe), begin where it ended",
    )  # fmt: skip
    parser.add_argument(
        "--emit-qat", action="store_true",
        help="write the training net with QAT layers, for training in a Caffe of your own",
    )  # fmt: skip
    parser.add_argument(
        "--from-qat", nargs=2, metavar=("PROTOTXT", "CAFFEMODEL"),
        help="quantize by what such a net has learned",
    )  # fmt: skip
    parser.add_argument(
        "--decompose", action="store_true",
        help="write a float net whose convolutions are of lower rank, as [decompose] says",
    )  # fmt: skip
    parser.add_argument(
        "--dump", metavar="DIR",
        help="write what the layers of the quantized model read and write, as .npy with an index",
    )  # fmt: skip
    parser.add_argument("--dump-layers", metavar="NAMES", help="of --dump: only these, with commas")
    parser.add_argument(
        "--dump-samples", type=positive, metavar="N", help="of --dump: how many (default: a batch)"
    )
    parser.add_argument(
        "--compare-dump", metavar="DIR",
        help="hold numbers that a device or another runtime has dumped against ours; 1 if they "
        "differ",
    )  # fmt: skip
    parser.add_argument(
        "--from-record", metavar="RECORD",
        help="quantize by the factors of this record, without calibration, as [record] in the "
        "config",
    )  # fmt: skip
    parser.add_argument(
        "--write-config", choices=("json", "cfg"),
        help="write the settings as the Ascend tool's config.json or .cfg, too",
    )  # fmt: skip
    parser.add_argument(
        "--convert-config", metavar="FILE",
        help="print a config.json or .cfg of the Ascend tool as TOML, and do nothing else",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of ``sys.argv[1:]``.

    Returns
    -------
    int
        0 done, 1 failed, 2 wrong use (the command, the config, or a path in them that does not
        exist), 130 interrupted.
    """
    with safe_streams(), terminated_is_interrupted():
        try:
            return _main(sys.argv[1:] if arguments is None else list(arguments))
        except KeyboardInterrupt as stopped:
            _say_interrupted(str(stopped))
            return INTERRUPTED


def _main(arguments: list[str]) -> int:
    command = _command(arguments)
    parser = _parser()
    options = argparse.Namespace(verbose="--verbose" in arguments, threads=None)
    if command is None:
        options = parser.parse_args(arguments)
        if options.config is None and str(options.resume).endswith(".toml"):  # --resume c.toml
            options.config, options.resume = options.resume, True
        if (options.config is None) == (options.convert_config is None):
            parser.error("one config is needed: TOML, or --convert-config with one to convert")
        others = ("plan", "sensitivity", "decompose", "emit_qat", "dump", "compare_dump")
        if options.resume and (of := next(filter(vars(options).get, others), "")):
            parser.error(f"--resume goes on with a run, not with --{of.replace('_', '-')}")
    options.console = None
    try:
        check_kernels()
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if options.threads:
        # read when the libraries are loaded, which has not happened yet
        os.environ.update(dict.fromkeys(_THREADS, str(options.threads)))
    try:
        with cache_notes(None if "--quiet" in arguments else _say):
            if command is not None:
                return command(arguments[1:])
            with _logging(options, arguments):
                return _run(options)
    except Exception as error:
        if options.verbose:
            raise
        return _explain(error)


def _logging(options: argparse.Namespace, arguments: Sequence[str]) -> AbstractContextManager[None]:
    if options.log is None and not options.verbose:
        return nullcontext()
    from pipeline.log import logging_to
    from pipeline.report.console import PlainConsole

    options.console = PlainConsole(stderr=True) if options.verbose else None
    return logging_to(options.log, options.console, arguments)


def _command(arguments: Sequence[str]) -> Callable[[Sequence[str]], int] | None:
    """Return the command that the first word names; None: the main one."""
    name = arguments[0] if arguments else ""
    if name == "init":
        from pipeline.commands.init import init

        return init
    if name in ("calibration", "convert"):
        from pipeline.commands import original

        return original.calibration if name == "calibration" else original.convert
    if name in ("report", "compare"):
        from pipeline.commands import reports

        return reports.report if name == "report" else reports.compare
    return None


def _run(options: argparse.Namespace) -> int:
    if options.convert_config is not None:
        from pipeline.jobs.convert_config import converted_config

        sys.stdout.write(converted_config(options.convert_config))
        sys.stdout.flush()
        return DONE if getattr(sys.stdout, "failed", None) is None else FAILED
    from kernels import best_device
    from pipeline.config.load import load_config
    from pipeline.jobs.plan import plan_model
    from pipeline.report.console import PlainConsole
    from pipeline.report.progress import Reporter
    from pipeline.report.tables import show_plan, wide

    console = wide(PlainConsole(quiet=options.quiet))
    config = load_config(options.config, retrain=options.retrain, record=options.from_record)
    if options.write_config is not None:
        output = config.output.model_copy(update={"write_config": options.write_config})
        config = config.model_copy(update={"output": output})
    if options.plan:
        device = "cpu" if options.device == "auto" else options.device
        plan = plan_model(config, device=device, output=options.output)
        show_plan(plan, console, by_macs=options.sort)
        return DONE
    # one console for bars and steps: neither writes into the other
    reporter = Reporter(options.quiet, None if options.quiet else options.console)
    if options.device == "auto":
        options.device, name = best_device()
        if options.device != "cpu":
            reporter.say(f"running on {name}; --device cpu does not")
    return _job(config, options)(config, options, reporter, console)


Job = Callable[["Config", argparse.Namespace, "Reporter", "Console"], int]


def _job(config: Config, options: argparse.Namespace) -> Job:
    """Return the job that options and config ask for."""
    if options.sensitivity:
        return _sensitivity
    if options.decompose:
        return _decompose
    if options.emit_qat or options.from_qat:
        return _qat
    if options.dump or options.compare_dump:
        return _dump
    return _quantize if config.retrain is None else _retrain


def _decompose(
    config: Config, options: argparse.Namespace, reporter: Reporter, console: Console
) -> int:
    from pipeline.jobs.decompose import decompose_model
    from pipeline.report.ranks import show_decomposed

    where = {"device": options.device, "output": options.output, "reporter": reporter}
    show_decomposed(decompose_model(config, **where), console)
    return DONE


def _dump(config: Config, options: argparse.Namespace, reporter: Reporter, console: Console) -> int:
    from pipeline.jobs.compare_dump import compare_dump
    from pipeline.jobs.dump import dump_model
    from pipeline.report.dumps import show_compared

    if options.compare_dump:
        found = compare_dump(config, options.compare_dump, output=options.output, reporter=reporter)
        show_compared(found, console)
        return FAILED if any(c.differing for c in found) else DONE
    layers = tuple(filter(None, (options.dump_layers or "").split(",")))
    folder = dump_model(
        config,
        options.dump,
        layers=layers,
        samples=options.dump_samples,
        output=options.output,
        reporter=reporter,
    )
    console.print(f"Written to {folder}, with index.json.", highlight=False, soft_wrap=True)
    return DONE


def _quantize(
    config: Config, options: argparse.Namespace, reporter: Reporter, console: Console
) -> int:
    from pipeline.errors import ConfigError
    from pipeline.jobs.calibration import quantize_model
    from pipeline.jobs.record import quantize_from_record
    from pipeline.report.tables import show_report

    if options.resume not in (True, False):
        raise ConfigError("--resume SOLVERSTATE is for training: the config has no [retrain]")
    where = {"device": options.device, "output": options.output, "reporter": reporter}
    if config.record is None:
        report = quantize_model(config, **where, resume=options.resume)
    elif options.resume:
        raise ConfigError("--resume: by a record nothing is calibrated, there is nothing to go on")
    else:
        report = quantize_from_record(config, **where)
    show_report(report, console, by_error=options.sort)
    return DONE


def _sensitivity(
    config: Config, options: argparse.Namespace, reporter: Reporter, console: Console
) -> int:
    from pipeline.jobs.sensitivity import layer_sensitivity
    from pipeline.report.tables import show_sensitivity

    show_sensitivity(layer_sensitivity(config, device=options.device, reporter=reporter), console)
    return DONE


def _qat(config: Config, options: argparse.Namespace, reporter: Reporter, console: Console) -> int:
    from pipeline.jobs.qat import emit_qat, quantize_trained
    from pipeline.report.tables import show_files, show_report

    where = {"device": options.device, "output": options.output, "reporter": reporter}
    if options.from_qat:
        report = quantize_trained(config, *options.from_qat, **where)
        show_report(report, console, by_error=options.sort)
        return DONE
    show_files(emit_qat(config, **where), console)
    return DONE


def _retrain(
    config: Config, options: argparse.Namespace, reporter: Reporter, console: Console
) -> int:
    from pipeline.report.tables import show_report
    from pipeline.retrain.job import retrain_model, train_model
    from pipeline.retrain.report import show_trained

    assert config.retrain is not None
    if config.retrain.deployable:
        report = retrain_model(
            config,
            device=options.device,
            output=options.output,
            reporter=reporter,
            resume=options.resume,
        )
        if report is not None:
            show_report(report, console, by_error=options.sort)
        return DONE
    trained = train_model(config, output=options.output, reporter=reporter, resume=options.resume)
    if trained is not None:
        show_trained(trained, console)
    return DONE


def _say_interrupted(said: str) -> None:
    """Say what is on disk; modules that were interrupted cannot be imported again."""
    writing = sys.modules.get("pipeline.jobs.writing")
    files: tuple = getattr(writing, "written_files", tuple)()
    if said or files:
        _say(said or f"interrupted; {len(files)} files had been written to {files[-1].parent}")
    else:
        print("interrupted; nothing was written", file=sys.stderr)


def _say(text: str) -> None:
    """Print to standard error: what files name cannot steer the terminal, nor fill it."""
    from caffeio.errors import within_limits
    from pipeline.report.console import printable

    print(within_limits(printable(text)), file=sys.stderr)


def _explain(error: Exception) -> int:
    """Print what went wrong as a line, and return the exit code."""
    from caffeio import CaffeFileError, MissingFileError, NetError
    from kernels import DeviceError
    from pipeline.errors import ConfigError, PipelineError

    if isinstance(error, ConfigError):
        _say(f"error: {error}")
        return WRONG_USE
    of_ours = CaffeFileError | NetError | PipelineError | DeviceError | ImportError
    expected = isinstance(error, of_ours)
    kind = "" if expected else f"{type(error).__name__}: "
    hint = "" if expected else " (--verbose shows where)"
    _say(f"error: {kind}{error}{hint}")
    for note in getattr(error, "__notes__", ()):
        _say(f"note: {note}")
    # what command or config name is not there
    return WRONG_USE if isinstance(error, MissingFileError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
