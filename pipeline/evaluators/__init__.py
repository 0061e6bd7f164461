"""Metrics of a net's outputs: built in, or a class of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluators.base import Evaluator, Guarded
from pipeline.evaluators.boxes import MeanAveragePrecision
from pipeline.evaluators.images import Psnr
from pipeline.evaluators.segmentation import MeanIou
from pipeline.python_file import place_in, run_file

__all__ = ["BUILT_IN", "Evaluator", "Guarded", "evaluator_maker"]

#: Evaluators by the name that a config gives them.
BUILT_IN: dict[str, Callable[..., Evaluator]] = {
    "map-voc": partial(MeanAveragePrecision, style="voc"),
    "map-coco": partial(MeanAveragePrecision, style="coco"),
    "miou": MeanIou,
    "psnr": Psnr,
}


def evaluator_maker(
    evaluator: str | Path, options: Mapping[str, Any], boxes: Path | None = None
) -> Callable[[], Guarded]:
    """Return what makes an evaluator for each model.

    Parameters
    ----------
    evaluator : str or Path
        A name of `BUILT_IN`, or a Python file with a class ``Evaluator``.
    options : mapping of str to value
        What the evaluator is made with.
    boxes : Path, optional
        The list of true boxes, for those that take one.

    Raises
    ------
    ConfigError
        If the file cannot be run or has no such class, or the evaluator does not take the options.
    """
    if isinstance(evaluator, Path):
        found = getattr(run_file(evaluator, "evaluate.evaluator"), "Evaluator", None)
        if not callable(found) or not callable(getattr(found, "update", None)):
            raise ConfigError(
                f"evaluate.evaluator: '{evaluator}' defines no class Evaluator with "
                "update(outputs, batch) and result()"
            )
        make: Callable[..., Evaluator] = found
    else:
        make = BUILT_IN[evaluator]
    given = {**options, **({} if boxes is None else {"boxes": boxes})}
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise ConfigError(f"evaluate.options: '{evaluator}': {error}") from None
    where = evaluator if isinstance(evaluator, Path) else None

    def made() -> Guarded:
        try:
            return Guarded(make(**given), where)
        except (ConfigError, PipelineError):
            raise
        except Exception as error:
            what = str(error) if where is None else place_in(where, error)
            raise ConfigError(f"evaluate.options: {what}") from error

    made()  # once now: what is wrong with files and values shows before the work
    return made
