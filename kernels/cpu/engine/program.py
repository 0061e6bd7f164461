"""Steps that run one after the other over shared buffers: made once, run many times.

A `Builder` takes layers one by one, with the images they read and write, and says how much
memory they need; buffers whose contents are no longer needed give their place to later ones.
The finished `Program` never changes. Whoever runs it takes an `Instance`: a set of buffers
and the steps with their addresses filled in; so several threads can run one program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from kernels.cpu.codegen.epilogue import FIELDS
from kernels.cpu.engine.counting import Counter
from kernels.cpu.engine.image import SLACK, Image
from kernels.cpu.engine.runner import COUNT, KINDS, run_steps
from kernels.locks import Lock
from kernels.programs import StepError

__all__ = ["Instance", "NanError", "Program", "Slots"]

_IMAGES = ("other", "floats", "integers")


@dataclass(frozen=True)
class Program:
    """Steps, and what they need.

    Attributes
    ----------
    steps : array of STEP, to be viewed as the record of each one's kind
        Addresses in buffers are offsets yet.
    stages : int64 array (S, len(FIELDS))
        Tables of the output stage; likewise.
    stage_buffers : int64 array (S, 3)
        Memory of the images other, floats, integers of each; -1 for none.
    places : tuple of int
        Which memory each buffer lies in.
    sizes : tuple of int
        Bytes of each memory.
    keep : tuple
        Arrays that addresses point to.
    """

    steps: np.ndarray
    stages: np.ndarray
    stage_buffers: np.ndarray
    places: tuple[int, ...]
    sizes: tuple[int, ...]
    keep: tuple[object, ...]
    _free: list[Instance] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def instance(self) -> Iterator[Instance]:
        """Take buffers for one run, and give them back; after an error they are dropped."""
        with self._lock:
            free_instance = self._free.pop() if self._free else None
        instance = free_instance or Instance(self)
        yield instance
        with self._lock:
            self._free.append(instance)


class NanError(StepError):
    """A value to be quantized is NaN.

    Attributes
    ----------
    step : int
        The step that met it first.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__("x holds NaN, which has no quantized value")


class Instance:
    """Buffers of one run, and the steps with their addresses.

    Parameters
    ----------
    program : Program
    """

    def __init__(self, program: Program) -> None:
        # not the program itself, which keeps its instances: that would be a circle
        self._keep, self._places, self._table = program.keep, program.places, program.steps
        self._views: dict[Image, np.ndarray] = {}
        self._buffers = [_aligned(size + SLACK) for size in program.sizes]
        places = np.array([b.ctypes.data for b in self._buffers] or [0], np.int64)
        self._stages = program.stages.copy()
        for i, name in enumerate(_IMAGES):
            used = program.stage_buffers[:, i]
            column = self._stages[:, FIELDS.index(name)]
            column += np.where(used >= 0, places[used], 0)
        self._steps = program.steps.copy()
        for name in ("data", "out"):
            used = self._steps[f"{name}_buffer"]
            self._steps[name] += np.where(used >= 0, places[used], 0)
        row = self._stages.strides[0]
        self._steps["stage"] = self._stages.ctypes.data + self._steps["stage"] * row

    def view(self, image: Image) -> np.ndarray:
        """Return the values (N, H, W, C) of an image."""
        if image not in self._views:
            self._views[image] = image.view(self._buffers[self._places[image.buffer]])
        return self._views[image]

    def count(self, steps: Sequence[int], counters: Sequence[Counter | None]) -> None:
        """Let steps of `Builder.count` count in counters from now on, or not at all."""
        addresses = [counter.address if counter else 0 for counter in counters]
        self._steps.view(KINDS[COUNT])["counter"][np.asarray(steps, np.int64)] = addresses

    def run(self, begin: int, end: int, threads: int) -> None:
        """Run steps [begin, end).

        Raises
        ------
        NanError
            If a value to be quantized is NaN.
        """
        run_steps(self._steps, begin, end, threads)
        marked = np.flatnonzero(self._stages[:, FIELDS.index("nans")])
        if marked.size:
            stages = self._table["stage"][begin:end]
            with_stage = self._table["store"][begin:end] != 0
            raise NanError(begin + int(np.argmax(with_stage & (stages == marked[0]))))


def _aligned(size: int) -> np.ndarray:
    """Return bytes that begin at a cache line."""
    memory = np.zeros(size + 64, np.uint8)
    skip = -memory.ctypes.data % 64
    return memory[skip : skip + size]


class Slots:
    """Places for buffers: one that is no longer needed serves another.

    `use` notes that a buffer is needed at a time; `assign` then gives every buffer a place.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._spans: list[list[int]] = []

    def new(self, size: int) -> int:
        """Return the number of a new buffer."""
        self._sizes.append(size)
        self._spans.append([])
        return len(self._sizes) - 1

    def use(self, buffer: int, time: int) -> None:
        """Note that a buffer is needed at a time."""
        self._spans[buffer] = [min([time, *self._spans[buffer]]), max([time, *self._spans[buffer]])]

    def assign(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the place of each buffer, and the bytes of each place."""
        places, sizes, until = [0] * len(self._sizes), [0] * 0, [0] * 0
        order = sorted(
            (i for i, span in enumerate(self._spans) if span), key=lambda i: self._spans[i][0]
        )
        for i in order:
            begin, end = self._spans[i]
            need = self._sizes[i]
            free = [p for p, last in enumerate(until) if last < begin]
            # the place that wastes least: the smallest that holds it, else the largest
            free.sort(key=lambda p: (sizes[p] < need, abs(sizes[p] - need)))
            if free:
                place = free[0]
                sizes[place] = max(sizes[place], need)
                until[place] = end
            else:
                place = len(sizes)
                sizes.append(need)
                until.append(end)
            places[i] = place
        return tuple(places), tuple(sizes)
