"""What a run has to say of its data and its result: notes, and warnings of what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.quantize.accuracy import near_chance
from pipeline.quantize.data_seen import DataSeen, constant_inputs
from pipeline.quantize.evaluate import ModelScore
from pipeline.quantize.observe import Observations
from pipeline.quantize.prepare import Prepared

__all__ = ["said_of"]


def said_of(
    work: Prepared,
    data: DataSeen | None,
    seen: Observations | None,
    accuracy: Sequence[ModelScore],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the notes and the warnings of a run.

    Parameters
    ----------
    work : Prepared
    data : DataSeen or None
        The samples that were observed.
    seen : Observations or None
        What the layers read then.
    accuracy : sequence of ModelScore
        The float net's first.
    """
    notes, warnings = list(work.notes), list(work.warnings)
    if data is not None:
        warnings += data.warnings
    if seen is not None:
        warnings += constant_inputs(work.fused.net, work.plans, seen.histograms)
    problems = dict.fromkeys(score.problem for score in accuracy if score.problem)
    notes += [f"the evaluator measured nothing: {problem}" for problem in problems]
    if accuracy:
        exact = accuracy[0]
        if exact.unranked:
            notes.append(f"accuracy is not measured because {exact.unranked}")
        # where a training has made another of it that does better, the data is right
        if all(map(_guesses, accuracy)):
            warnings.append(
                f"the float net itself has {exact.top1:.2f} % top-1 on {exact.samples} "
                f"samples, no better than guessing among {exact.classes} classes: do "
                "[transform], the labels and the weights belong together?"
            )
    return tuple(notes), tuple(warnings)


def _guesses(score: ModelScore) -> bool:
    if score.top1 is None:
        return False
    return near_chance(round(score.top1 * score.samples / 100), score.samples, score.classes)
