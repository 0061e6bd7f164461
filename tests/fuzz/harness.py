"""Running a target on mutated inputs, and what counts as a finding."""

from __future__ import annotations

import multiprocessing
import random
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from caffeio import CaffeFileError, NetError
from pipeline.errors import ConfigError, PipelineError

from .mutate import mutated
from .targets import TARGETS

__all__ = ["CORPUS", "Finding", "findings", "run_alone", "tried"]

#: Inputs that once failed, named by target and what was wrong.
CORPUS = Path(__file__).parent / "corpus"
#: What a reader may raise.
EXPECTED = (CaffeFileError, NetError, PipelineError, ConfigError)
MOST_SECONDS, MOST_BYTES, _LONGEST = 10.0, 1 << 30, 3000
#: Of a process that runs a target alone: address space.
_MEMORY = 4 << 30


@dataclass(frozen=True)
class Finding:
    """An input that a reader does not take as it should.

    Attributes
    ----------
    target : str
    data : bytes
    what : str
    """

    target: str
    data: bytes
    what: str


def findings(
    name: str, folder: Path, *, seed: int = 0, inputs: int | None = None, until: float | None = None
) -> Iterator[Finding | int]:
    """Yield findings, and the number of inputs tried when it is over.

    Parameters
    ----------
    name : str
        Of `TARGETS`.
    folder : Path
        An empty one; the input under test is always on disk there.
    seed : int
    inputs : int, optional
    until : float, optional
        Of `time.monotonic`.
    """
    target, rng = TARGETS[name], random.Random(f"{name} {seed}")
    (folder / "seeds").mkdir(exist_ok=True)
    seeds = target.seeds(folder / "seeds")
    place = folder / "input"
    place.mkdir(exist_ok=True)
    for name_beside, content in target.beside.items():
        (place / name_beside).write_bytes(content)
    path = place / target.file
    for n in count():
        if (inputs is not None and n >= inputs) or (until is not None and time.monotonic() > until):
            yield n
            return
        data = seeds[n] if n < len(seeds) else mutated(rng.choice(seeds), rng.choice(seeds), rng)
        path.write_bytes(data)
        what = tried(target.read, path)
        if n < len(seeds) and what == "refused":
            raise AssertionError(f"{name}: seed {n} is not read")
        if what not in ("read", "refused"):
            yield Finding(name, data, what)


def tried(read: Callable[[Path], object], path: Path) -> str:
    """Read a file; return "read", "refused", or what was wrong."""
    start, before = time.monotonic(), peak_memory()
    what = "read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except EXPECTED as error:
        what = "refused"
        if len(str(error)) > _LONGEST:
            return f"an error of {len(str(error))} characters: {str(error)[:100]}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return f"{type(error).__name__} at {place}: {str(error)[:200]}"
    seconds = time.monotonic() - start
    if seconds > MOST_SECONDS:
        return f"{seconds:.0f} seconds"
    grown = peak_memory() - before
    return f"{grown >> 20} MiB" if grown > MOST_BYTES else what


def peak_memory() -> int:
    """Return the most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def run_alone(
    name: str, seed: int, minutes: float, folder: str, queue: multiprocessing.Queue
) -> None:
    """Run a target in a process of its own, with a limit of memory."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for found in findings(name, Path(folder), seed=seed, until=time.monotonic() + 60 * minutes):
        queue.put(found)
