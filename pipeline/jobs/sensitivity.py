"""Which layers lose how much: the job behind ``--sensitivity``."""

from __future__ import annotations

from pathlib import Path

from kernels import on_compile
from pipeline.config.improve import memory_bytes
from pipeline.config.load import Config, load_config
from pipeline.jobs.stages import Clock, calibrate, improved, read_samples
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.quantize.improve import judged_blobs
from pipeline.quantize.prepare import prepare, read_model
from pipeline.quantize.sensitivity import Sensitivity, sensitivities
from pipeline.report.progress import Reporter
from pipeline.runtime.executor import FloatNet

__all__ = ["layer_sensitivity"]

#: Samples to measure on, at most.
_SAMPLES = 8


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
    with on_compile(device, reporter.compiling):
        work = prepare(config, read_model(config))
        ranges = calibrate(config, work, FloatNet(work.fused.net, device=device), reporter)
        better = improved(config, work, ranges, reporter, Clock(), device=device)
        part = read_samples(config, work).judges[0]
        few = {name: x[:_SAMPLES] for name, x in part.items()}
        names = better.result.record.layers
        return sensitivities(
            better.fused.net,
            better.result,
            [few],
            judged_blobs(work.net),
            device=device,
            memory=memory_bytes(config.improve.memory),
            progress=lambda layers: reporter.track(layers, "sensitivity", len(names), "layers"),
        )
