"""What a run would do, found by looking at all that it will look at: the job behind ``--plan``."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from caffeio.memory import machine_memory
from pipeline.config.improve import EFFORTS, memory_bytes
from pipeline.config.load import Config, load_config
from pipeline.jobs.convert_config import original_config
from pipeline.jobs.data import (
    chosen_how,
    evaluation,
    evaluation_feed,
    has_evaluation,
    looked_at,
)
from pipeline.jobs.evaluation import check_evaluator
from pipeline.jobs.files import check_output, model_files
from pipeline.jobs.record import prepare_from_record
from pipeline.jobs.unknown import names_unknown_fields
from pipeline.layers import Shape
from pipeline.quantize.improve import wanted_improvements
from pipeline.quantize.prepare import Prepared, prepare, read_model
from pipeline.quantize.samples import TOO_FEW_SAMPLES, samples_of
from pipeline.report.cost import net_cost
from pipeline.report.memory import needed_memory
from pipeline.report.plan import Plan
from pipeline.runtime.batching import splits
from pipeline.runtime.executor import FloatNet
from pipeline.runtime.schedule import schedule

__all__ = ["plan_model"]


@names_unknown_fields
def plan_model(
    config: str | Path | Config, *, device: str = "cpu", output: str | Path | None = None
) -> Plan:
    """Return what a run would do, without doing it: a sample of all data is read, none is run.

    But for a few, which go through the net down to its first BatchNorm layers. Of a training only
    the calibration before it and the evaluation after it are looked at.

    Parameters
    ----------
    config : path-like or Config
    device : str
        One of `kernels.DEVICES`.
    output : path-like, optional
        Folder to write to, instead of the config's. Nothing is written.

    Raises
    ------
    ConfigError, PipelineError, caffeio.CaffeFileError, caffeio.NetError
        As the run would.
    """
    config = config if isinstance(config, Config) else load_config(config)
    if config.retrain is None:
        check_output(config, output, model_files(config))
    if config.record is not None:
        return _plan_of_record(config)
    work = prepare(config, read_model(config))
    original_config(config, work)  # raises what the run would
    shapes: dict[str, Shape] = {}
    batch_size = work.calibrate.batch_size
    if config.calibrate.data or config.retrain is None:
        work, looked = looked_at(config, work, device=device)
        check_evaluator(config, work, device=device)
        shapes = looked.shapes
        batch_size = max(batch_size, evaluation(config, work).batch_size)
    net = FloatNet(work.fused.net)
    cost = net_cost(net, work.verdicts, work.plans, shapes)
    wanted = wanted_improvements(config.improve, work)
    improves = wanted != EFFORTS["original"].model_copy(update={"memory": wanted.memory})
    sample = sum(prod(shape[1:]) for shape in shapes.values())
    memory = needed_memory(
        cost, sample, batch_size, apart=_apart(net, shapes),
        improve=memory_bytes(wanted.memory) if improves else 0,
    )  # fmt: skip
    notes, warnings = list(work.notes), list(work.warnings)
    if improves and not _holds_back(work, shapes):
        notes.append(TOO_FEW_SAMPLES)
    available = machine_memory()
    if available is not None and memory > available:
        warnings.append(
            f"the run needs about {memory / 2**20:.0f} MiB, but there are {available / 2**20:.0f}: "
            "lower batch_size of [calibrate] and [evaluate], or improve.memory"
        )
    c = work.calibrate
    return Plan(
        cost, c.batch_size, c.batch_size * c.batch_num, chosen_how(work), memory,
        tuple(notes), tuple(warnings),
    )  # fmt: skip


def _plan_of_record(config: Config) -> Plan:
    """Return what a conversion by a record would do; see `plan_model`."""
    work, _ = prepare_from_record(config)
    net, shapes, batch_size = FloatNet(work.fused.net), {}, 1
    if has_evaluation(config):
        batch_size = evaluation(config, work).batch_size
        feed = evaluation_feed(config, work)
        try:
            first = feed.for_net(next(feed.batches(min(batch_size, len(feed)), 1)))
        finally:
            feed.close()
        shapes = {name: x.shape for name, x in first.items()}
    cost = net_cost(net, work.verdicts, work.plans, shapes)
    layers = tuple(replace(c, method="record" if c.quantize else "") for c in cost.layers)
    sample = sum(prod(shape[1:]) for shape in shapes.values())
    memory = needed_memory(cost, sample, batch_size, apart=_apart(net, shapes), improve=0)
    return Plan(replace(cost, layers=layers), batch_size, 0, "", memory, work.notes, work.warnings)


def _apart(net: FloatNet, shapes: dict[str, Shape]) -> bool:
    """Whether a net treats every sample alone."""
    layers = schedule(net.net, set(shapes) or set(net.net.inputs), None, everything=True).layers
    return not net.remembers and splits(net.net, layers, net.shapes(shapes))


def _holds_back(work: Prepared, shapes: dict[str, Shape]) -> bool:
    """Whether enough samples are calibrated on to hold some back."""
    number = np.zeros((), np.float32)
    batch = {name: np.broadcast_to(number, shape) for name, shape in shapes.items()}
    few = min(work.calibrate.batch_num, 5)  # with more of them it is the same
    return not shapes or any(samples_of(work.fused.net, [batch] * few).held)
