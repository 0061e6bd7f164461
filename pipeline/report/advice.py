"""One sentence on how good a result is, and what to try next; and cures for layers in float."""

from __future__ import annotations

from pipeline.quantize.sensitivity import half_of_the_noise
from pipeline.report.values import Report

__all__ = ["cure", "judgement", "sensitive_layers"]

#: Points of top-1, and dB where there are no labels, that part good from poor.
_GOOD, _FAIR = 0.5, 2.0
_GOOD_DB, _FAIR_DB = 25.0, 15.0
#: Fewer samples than that do not tell half a point.
_FEW = 200
_CURES = (
    ("named in skip_layers", "take it out of skip_layers"),
    ("named in skip_layer_types", "take its type out of skip_layer_types"),
    ("not among only_layers", "name it in only_layers"),
    ("left in float by [fallback]", "the accuracy asked for needs it in float"),
    ("is not known", "give its type's computation in [model] layers"),
    ("dilation is", "the accelerator's INT8 has no dilated form"),
    ("not in the record", "calibrate it, or add its factors to the record"),
    ("depthwise", "model.depthwise_as_convolution quantizes it"),
)


def cure(reason: str) -> str:
    """Return what helps a layer that stays in float for a reason; "" if nothing does."""
    return next((what for part, what in _CURES if part in reason), "")


def sensitive_layers(report: Report, count: int = 5) -> tuple[str, ...]:
    """Return the quantized layers to leave in float first, the worst first.

    Those by which the whole net loses half of what it does, if that was measured; else those
    that add most error at their own outputs.
    """
    if report.sensitivity:
        return half_of_the_noise(report.sensitivity)
    measured = [x for x in report.layers if x.error is not None and x.error.sqnr < _GOOD_DB]
    worst = sorted(measured, key=lambda x: x.error.sqnr if x.error else 0.0)
    return tuple(x.layer for x in worst[:count])


def judgement(report: Report) -> str:
    """Say how close INT8 is to float, and what to try next."""
    if not report.accuracy:
        return "Nothing was compared: give [evaluate] data to see what INT8 loses."
    exact, int8 = report.accuracy[0], report.accuracy[-1]
    if exact.top1 is not None and int8.top1 is not None:
        lost = exact.top1 - int8.top1
        what = f"INT8 has {int8.top1:.2f} % top-1 where float has {exact.top1:.2f} %"
        level = 0 if lost <= _GOOD else 1 if lost <= _FAIR else 2
    else:
        db = min((o.sample_sqnr for o in int8.outputs), default=float("nan"))
        what = f"INT8's outputs keep {db:.1f} dB of float's"
        level = 0 if not db < _GOOD_DB else 1 if db >= _FAIR_DB else 2
    return f"{what}: {('good', 'fair', 'poor')[level]}. {_next(report, level)}"


def _next(report: Report, level: int) -> str:
    if report.warnings:
        return "See the warnings first: the data is probably not what the net was trained on."
    if level == 0 and report.accuracy[0].top1 is not None and report.accuracy[0].samples < _FEW:
        samples = report.accuracy[0].samples
        return (
            f"{samples} samples tell no difference below {100 / samples:.2g} points: evaluate "
            "more to be sure."
        )
    if level == 0:
        return "Nothing more needs to be done."
    if report.effort != "best":
        return 'Try effort = "best" in [calibrate]: it takes longer and loses less.'
    if report.fallback is None:
        return "Try [fallback] with max_drop: it leaves the fewest layers in float that suffice."
    return "Training with fake quantization ([retrain]) can win back what is left."
