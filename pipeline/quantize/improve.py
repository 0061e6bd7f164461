"""Losing less than ranges alone do: equalized channels and corrected layers, if they help.

What helps is decided on calibration samples that nothing was computed from: a fifth is held
back. A step after which the net's outputs are farther from the float net's there is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from caffeio import Net, Value
from caffeio.record import Record
from kernels import QuantParams
from pipeline.config.improve import EFFORTS, ImproveConfig, memory_bytes
from pipeline.errors import ConfigError
from pipeline.layers import layer_type
from pipeline.log import log
from pipeline.quantize.correct import correct
from pipeline.quantize.corrections import Corrected, Steps
from pipeline.quantize.equalize import ChannelRanges, equalize
from pipeline.quantize.fuse import Fused
from pipeline.quantize.int8_net import Int8Net
from pipeline.quantize.measure import Closeness, mean_decibels
from pipeline.quantize.outputs import compared_blobs
from pipeline.quantize.prepare import Prepared
from pipeline.quantize.samples import TOO_FEW_SAMPLES, Samples
from pipeline.runtime.executor import FloatNet

__all__ = [
    "Calibrated",
    "Improved",
    "Trial",
    "improve",
    "judged_blobs",
    "wanted_improvements",
]

#: Equalized, the float net must be closer to the original than the quantized one by so many dB.
_FLOAT_MARGIN = 15.0

#: What comes before them, where layers are to have weights of few values.
_FEW = "weights of few values"
#: The steps of a correction, in the order in which a report shows them.
_LABELS = {
    "search": "ranges by the layers' outputs",
    "rounding": "compensated rounding",
    "bias": "bias correction",
    "gain": "gain correction",
}

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Calibrated:
    """What calibration found for a net.

    Attributes
    ----------
    record : Record
    candidates : callable
        Returns the ranges to choose from, by layer name.
    """

    record: Record
    candidates: Callable[[], Mapping[str, Sequence[QuantParams]]]


@dataclass(frozen=True)
class Trial:
    """What one step did.

    Attributes
    ----------
    step : str
    sqnr : float
        Mean of the samples' dB at the outputs, on the judging samples, with all steps before.
    kept : bool
    """

    step: str
    sqnr: float
    kept: bool


@dataclass(frozen=True)
class Improved:
    """A net whose quantization loses less.

    Attributes
    ----------
    fused : Fused
        The float net, equalized if that helped.
    result : Corrected
        What is quantized: net and record.
    trials : tuple of Trial
    notes : tuple of str
    """

    fused: Fused
    result: Corrected
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]


def wanted_improvements(config: ImproveConfig, work: Prepared) -> ImproveConfig:
    """Return what is to be done: what ``[improve]`` sets, and else the effort's.

    With ``joint_quant`` scales that layers share must stay equal: nothing changes one alone.

    Raises
    ------
    ConfigError
        If ``[improve]`` asks for what does, with ``joint_quant``; or for what changes ranges, with
        ``ranges_from``.
    """
    effort = EFFORTS[work.effort].model_copy(update={"memory": config.memory})
    if work.calibrate.joint_quant:
        if config.gain or config.search == "auto":
            key = "gain" if config.gain else "search"
            raise ConfigError(f"improve.{key} changes single layers' scales: not with joint_quant")
        effort = effort.model_copy(update={"gain": False, "search": "method"})
    if work.given:
        if config.equalize or config.search == "auto":
            key = "equalize" if config.equalize else "search"
            raise ConfigError(f"improve.{key} changes ranges: not with calibrate.ranges_from")
        effort = effort.model_copy(update={"equalize": False, "search": "method"})
    given = {key: value for key, value in config.model_dump().items() if value is not None}
    return effort.model_copy(update=given)


def improve(
    work: Prepared,
    first: Calibrated,
    samples: Samples,
    wanted: ImproveConfig,
    recalibrated: Callable[[Net], Calibrated],
    *,
    levels: Mapping[str, int] | None = None,
    device: str = "cpu",
    progress: Callable[[str, Iterable[str]], Iterator[str]] = lambda what, names: iter(names),
) -> Improved:
    """Equalize and correct a net, and keep what helps.

    Parameters
    ----------
    work : Prepared
    first : Calibrated
        Of the net as it is.
    samples : Samples
    wanted : ImproveConfig
        All set.
    recalibrated : callable
        ``recalibrated(net) -> Calibrated``, for a fused net with other weights.
    levels : mapping of layer name to int, optional
        Layers whose weights may take so many values only.
    device : str
    progress : callable
        ``progress(what, names)`` yields the names while it shows how far the work is.

    Returns
    -------
    Improved
    """
    judge = _Judge(work, samples, device)
    run = _Run(judge, samples, memory_bytes(wanted.memory), device, progress, levels or {})
    bias, gain = bool(wanted.bias), bool(wanted.gain)
    begun = _Begun.of(work.fused, first, judge)
    trials = [Trial("nearest rounding", begun.score, True)]
    notes: list[str] = []
    if wanted.equalize:
        net = _equalized(work, samples, judge, begun.score, notes)
        if net is not None:
            other = _Begun.of(replace(work.fused, net=net), recalibrated(net), judge)
            few = Steps(False, bias, gain)
            wins = run(other, few)[0].score >= run(begun, few)[0].score
            trials.append(Trial("equalized channels", other.score, wins))
            begun = other if wins else begun
    steps = Steps(wanted.rounding == "compensated", bias, gain)
    best, tried = run(begun, steps)
    if wanted.search == "auto":
        searched, searched_tried = run(begun, replace(steps, search=True))
        if searched.score > best.score:
            best, tried = searched, searched_tried
        else:
            trials.append(Trial("ranges by the layers' outputs", searched.score, False))
    if not any(samples.held):
        notes.append(TOO_FEW_SAMPLES)
    for trial in (*trials, *tried):
        kept = "kept" if trial.kept else "undone"
        log.debug("%s: mean %.3f dB at the outputs, %s", trial.step, trial.sqnr, kept)
    return Improved(begun.fused, best.result, (*trials, *tried), tuple(notes))


@dataclass(frozen=True)
class _Begun:
    """A float net with its calibration, and how close its plain quantization is."""

    fused: Fused
    calibration: Calibrated
    score: float

    @classmethod
    def of(cls, fused: Fused, calibration: Calibrated, judge: _Judge) -> _Begun:
        return cls(fused, calibration, judge.score(Corrected(fused.net, calibration.record)))


@dataclass(frozen=True)
class _Scored:
    result: Corrected
    score: float


@dataclass(frozen=True)
class _Run:
    """Corrects a net and keeps the best of its steps."""

    judge: _Judge
    samples: Samples
    memory: int
    device: str
    progress: Callable[[str, Iterable[str]], Iterator[str]]
    levels: Mapping[str, int]

    def __call__(self, begun: _Begun, steps: Steps) -> tuple[_Scored, list[Trial]]:
        """Return the best result and what each step did."""
        net, record = begun.fused.net, begun.calibration.record
        best = _Scored(Corrected(net, record), begun.score)
        if steps == Steps(False, False, False, False) and not self.levels:
            return best, []
        names = [layer.name for layer in net.layers if layer.name in record.layers]
        shown = self.progress("correct layers", names)
        corrected = correct(
            net,
            record,
            self.samples.parts,
            self.samples.held,
            steps,
            candidates=begun.calibration.candidates() if steps.search else None,
            levels=self.levels,
            device=self.device,
            memory=self.memory,
            progress=lambda name: next(shown, name),
        )
        for _ in shown:
            pass
        scored = [
            (label, _Scored(result, self.judge.score(result)))
            for label, result in _prefixes(steps, corrected, net, record, bool(self.levels))
        ]
        if self.levels:  # then nothing goes back to weights of all values
            best = scored[0][1]
        for _, candidate in scored:
            best = candidate if candidate.score >= best.score else best
        kept = next((i for i, (_, s) in enumerate(scored) if s is best), -1)
        return best, [Trial(label, s.score, i <= kept) for i, (label, s) in enumerate(scored)]


def _prefixes(
    steps: Steps, corrected: Corrected, net: Net, record: Record, few: bool
) -> Iterator[tuple[str, Corrected]]:
    """Yield the result of the first step alone, of the first two, and so on.

    Before them comes that of weights of few values, where some layers have them.
    """
    so_far = Steps(False, False, False, False)
    if few:
        yield _FEW, corrected.only(net, record, so_far)
    for name, label in _LABELS.items():
        if getattr(steps, name):
            so_far = replace(so_far, **{name: True})
            whole = so_far == steps
            yield label, corrected if whole else corrected.only(net, record, so_far)


class _Judge:
    """Says how close a quantized net is to the float net, on the judging samples."""

    def __init__(self, work: Prepared, samples: Samples, device: str) -> None:
        self.blobs = judged_blobs(work.net)
        self._parts, self.device = samples.judges, device
        net = FloatNet(work.net, device=device)
        self._exact = [net.forward(part, self.blobs) for part in self._parts]

    def score(self, candidate: Corrected) -> float:
        """Return the mean of the samples' dB; -inf if outputs cannot be compared."""
        net = Int8Net.of_fused(candidate.net, candidate.record, device=self.device)
        return self._mean(net)

    def score_float(self, net: Net) -> float:
        """Return the same for a float net."""
        return self._mean(FloatNet(net, device=self.device))

    def _mean(self, net: FloatNet | Int8Net) -> float:
        closeness = {blob: Closeness() for blob in self.blobs}
        for part, exact in zip(self._parts, self._exact, strict=True):
            for blob, y in net.forward(part, self.blobs).items():
                if y.shape != exact[blob].shape:
                    return -np.inf
                closeness[blob].update(exact[blob], y)
        return mean_decibels(c.sample_sqnr for c in closeness.values())


def judged_blobs(net: Net) -> tuple[str, ...]:
    """Return the outputs that show errors: what Softmax reads instead of what it makes."""
    blobs = compared_blobs(net, ())
    makers = {top: layer_type(layer) for layer in net.layers for top in layer.tops}
    open_blobs = tuple(b for b in blobs if b in net.inputs or not makers[b].saturates)
    return open_blobs or blobs


def _equalized(
    work: Prepared, samples: Samples, judge: _Judge, quantized: float, notes: list[str]
) -> Net | None:
    """Return the equalized net, or None if it has no such channels or is not the same net."""
    learned = [p for p, held in zip(samples.parts, samples.held, strict=True) if not held]
    net = work.fused.net
    runner = FloatNet(net, device=judge.device)
    shapes = runner.shapes({name: x.shape for name, x in learned[0].items()})
    outputs = compared_blobs(work.net, ())
    found = equalize(net, shapes, _channel_ranges(runner, learned), work.plans, outputs)
    if not found.channels:
        notes.append("no channel could be equalized: no layer's weights make and read it alone")
        return None
    if judge.score_float(found.net) < quantized + _FLOAT_MARGIN:
        notes.append("equalized channels reached the bounds of ReLU6 or Clip: left as they were")
        return None
    if found.left_alone:
        notes.append(f"not equalized: the inputs of {', '.join(found.left_alone)}")
    return found.net


def _channel_ranges(runner: FloatNet, parts: Sequence[Inputs]) -> ChannelRanges:
    """Return the range of each channel of every value that a layer reads."""
    net = runner.net
    ranges: dict[Value, tuple[np.ndarray, np.ndarray]] = {}

    def observe(
        i: int, layer: object, bottoms: Sequence[np.ndarray], tops: Sequence[np.ndarray]
    ) -> None:
        for value, x in zip(net.links[i].reads, bottoms, strict=True):
            if x.ndim < 2:
                continue
            axes = (0, *range(2, x.ndim))
            low, high = x.min(axis=axes), x.max(axis=axes)
            if value in ranges:
                low, high = np.minimum(low, ranges[value][0]), np.maximum(high, ranges[value][1])
            ranges[value] = low, high

    for part in parts:
        runner.forward(part, observer=observe)
    return ranges
