"""Fields that the schema lacks, put beside the errors that they may have caused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import caffeio
from pipeline.config.load import Config, load_config
from pipeline.errors import ConfigError, PipelineError

__all__ = ["names_unknown_fields"]

P = ParamSpec("P")
R = TypeVar("R")
Job = Callable[Concatenate[str | Path | Config, P], R]


def names_unknown_fields(job: Job[P, R]) -> Job[P, R]:
    """Return a job whose errors name the unknown fields of its nets.

    They stand in the error's ``__notes__``, which the command prints below it.
    """

    @wraps(job)
    def run(config: str | Path | Config, *args: P.args, **kwargs: P.kwargs) -> R:
        config = config if isinstance(config, Config) else load_config(config)
        try:
            return job(config, *args, **kwargs)
        except (ValueError, PipelineError) as error:
            if not isinstance(error, ConfigError | caffeio.CaffeFileError):
                for note in dict.fromkeys(_notes(config)):
                    error.add_note(note)
            raise

    return run


def _notes(config: Config) -> Iterator[str]:
    """Read the nets' text again: the error may have come before there was a net."""
    m = config.model
    with suppress(ValueError):
        net = caffeio.read_net(m.prototxt, phase=m.phase)
        yield from caffeio.unknown_notes(net, matters=True)
    if config.retrain is not None:
        with suppress(ValueError):
            solver = caffeio.read_solver(config.retrain.solver, config.retrain.root)
            for phase in ("TRAIN", "TEST") if solver.test_net else ("TRAIN",):
                net = caffeio.read_solver_net(solver, phase)
                yield from caffeio.unknown_notes(net, matters=True)
