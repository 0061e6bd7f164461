"""Samples to batches, decoded ahead of the computation."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from caffeio.data.source import Label, NotEnoughData, Source
from caffeio.data.transform import Transform
from caffeio.errors import CaffeFileError

__all__ = ["Batch", "batches"]

_MAX_WORKERS = 4
_MOST_LABEL = 1 << 63
_Inputs = Mapping[str, tuple[Source, Transform]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, ready for a net.

    Attributes
    ----------
    index : int
        0 for the first batch.
    inputs : dict of str to ndarray
        By input blob: N×C×H×W float32, C-contiguous.
    labels : ndarray or None
        N int64 or float32, or N×... float32; None if the samples have none, or not all alike.
    names : tuple of str
        Of the samples of the first input.
    places : tuple of int
        Of the samples in their sources.
    unlabelled : str
        Why the samples' labels are no array although there are some; empty otherwise.
    """

    index: int
    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    names: tuple[str, ...]
    places: tuple[int, ...] = ()
    unlabelled: str = ""


@dataclass(frozen=True, eq=False)
class _Row:
    """One sample of every input."""

    data: dict[str, np.ndarray]
    label: Label
    name: str
    place: int


def batches(
    sources: _Inputs,
    batch_size: int,
    batch_num: int | None = None,
    start: int = 0,
    prefetch: int = 2,
    places: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Read samples in order, batch by batch.

    Parameters
    ----------
    sources : mapping of str to (Source, Transform)
        By input blob. All have the same number of samples.
    batch_size : int
        Samples in a batch.
    batch_num : int, optional
        Batches. Without it all samples are read and the last batch may be smaller.
    start : int
        The first sample.
    prefetch : int
        Batches decoded ahead, by a few threads; 0: none, and no threads.
    places : sequence of int, optional
        Which samples there are to read, in order, instead of all from `start` on.

    Returns
    -------
    iterator of Batch
        Its threads end with it, also when it is closed early.

    Raises
    ------
    NotEnoughData
        At once, if `batch_num` is given and there are fewer samples.
    CaffeFileError
        While iterating: a sample is damaged, cannot be transformed, or is not of the shape of
        the first; it names the sample.
    ValueError
        If an argument is out of range, or the sources have different lengths.
    """
    if not sources:
        raise ValueError("no sources are given")
    if batch_size < 1 or start < 0 or prefetch < 0 or (batch_num is not None and batch_num < 1):
        raise ValueError(
            f"batch_size is {batch_size}, batch_num {batch_num}, start {start} and "
            f"prefetch {prefetch}: sizes are 1 or more, the others 0 or more"
        )
    lengths = {name: len(source) for name, (source, _) in sources.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"'{name}' has {count}" for name, count in lengths.items())
        raise ValueError(f"the inputs have different numbers of samples: {counts}")
    total = next(iter(lengths.values()))
    chosen = range(min(start, total), total) if places is None else places
    available = len(chosen)
    if batch_num is not None and batch_num * batch_size > available:
        first = next(iter(sources.values()))[0]
        required = batch_num * batch_size
        raise NotEnoughData(
            f"{batch_num} batches of {batch_size} are asked for, that is {required} samples, but "
            f"'{first.path}' has {available}" + (f" from number {start} on" if start else ""),
            required, available,
        )  # fmt: skip
    count = available if batch_num is None else batch_num * batch_size
    ends = [*range(0, count, batch_size), count]
    spans = [chosen[a:b] for a, b in itertools.pairwise(ends)]
    return _run(sources, spans, prefetch)


def _run(sources: _Inputs, spans: list[Sequence[int]], prefetch: int) -> Iterator[Batch]:
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    if prefetch == 0:
        for number, span in enumerate(spans):
            yield _collate(number, [_read(sources, i) for i in span], shapes)
        return
    pool = ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1), "caffeio-data")
    pending: deque[list[Future[_Row]]] = deque()
    try:
        ahead = iter(spans)
        for number in range(len(spans)):
            for span in itertools.islice(ahead, prefetch + 1 - len(pending)):
                pending.append([pool.submit(_read, sources, i) for i in span])
            rows = [future.result() for future in pending.popleft()]
            yield _collate(number, rows, shapes)
            del rows
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(sources: _Inputs, index: int) -> _Row:
    data: dict[str, np.ndarray] = {}
    label: Label = None
    first = ""
    for name, (source, transform) in sources.items():
        sample = source[index]
        try:
            data[name] = transform.apply(sample)
        except ValueError as error:
            raise CaffeFileError(sample.name, str(error)) from None
        first = first or sample.name
        label = sample.label if label is None else label
    return _Row(data, label, first, index)


def _collate(
    number: int, rows: list[_Row], shapes: dict[str, tuple[tuple[int, ...], str]]
) -> Batch:
    inputs = {}
    for name in rows[0].data:
        for row in rows:
            shape, first = shapes.setdefault(name, (row.data[name].shape, row.name))
            if row.data[name].shape != shape:
                raise CaffeFileError(
                    row.name,
                    f"gives the shape {row.data[name].shape} for '{name}', but the "
                    f"first, '{first}', gave {shape}; resize or crop them to one size",
                )
        inputs[name] = np.stack([row.data[name] for row in rows])
    labels, unlabelled = _labels(rows)
    names, places = tuple(row.name for row in rows), tuple(row.place for row in rows)
    return Batch(number, inputs, labels, names, places, unlabelled)


def _labels(rows: list[_Row]) -> tuple[np.ndarray | None, str]:
    """Return the labels as one array, or None; and why they are none where some exist.

    Labels that do not fit are no error here: whoever only observes the data needs none.
    """
    lacking = [row for row in rows if row.label is None]
    if len(lacking) == len(rows):
        return None, ""
    if lacking:
        return None, f"sample '{lacking[0].name}' has no label, but others have one"
    whole = all(isinstance(row.label, int) for row in rows)
    shapes = [np.shape(row.label) for row in rows]  # type: ignore[arg-type]
    other = next((row for row, s in zip(rows, shapes, strict=True) if s != shapes[0]), None)
    if other is not None:
        return None, (
            f"the label of sample '{other.name}' has another shape than that of '{rows[0].name}'"
        )
    large = next((r for r in rows if whole and abs(r.label) >= _MOST_LABEL), None)  # type: ignore
    if large is not None:
        return None, f"the label of sample '{large.name}' has more than 64 bits"
    return np.array([row.label for row in rows], np.int64 if whole else np.float32), ""
