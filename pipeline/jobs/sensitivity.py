"""Which layers lose how much: the job behind ``--sensitivity``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.config.load import Config, load_config
from pipeline.jobs.finish import measured_sensitivity
from pipeline.jobs.stages import Clock, calibrate, improved
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.quantize.prepare import prepare, read_model
from pipeline.quantize.sensitivity import Sensitivity
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet

__all__ = ["layer_sensitivity"]


@names_unknown_fields
def layer_sensitivity(
    config: str | Path | Config, *, device: str = "cpu", reporter: Reporter | None = None
) -> tuple[Sensitivity, ...]:
    """Quantize as a config says and measure what each layer loses; nothing is written.

    Parameters
    ----------
    config : path-like or Config
        Its ``[retrain]`` is left aside.
    device : str
        One of `kernels.DEVICES`.
    reporter : Reporter, optional
        Shows progress; by default nothing is shown.

    Returns
    -------
    tuple of Sensitivity
        The layer that loses most first.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As `pipeline.quantize_model`.
    """
    config = config if isinstance(config, Config) else load_config(config)
    config = config.model_copy(update={"retrain": None})
    reporter = reporter or Reporter(quiet=True)
    with reporter.compiling(device):
        work = prepare(config, read_model(config))
        ranges = calibrate(config, work, FloatNet(work.fused.net, device=device), reporter)
        better = improved(config, work, ranges, reporter, Clock(), device=device)
        return measured_sensitivity(
            config, replace(work, fused=better.fused), better.result, reporter, device=device
        )
