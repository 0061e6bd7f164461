"""Training data: which samples make up which batch, decoded ahead by worker processes.

What batch number i holds depends on the seed alone, not on what was read before it: so a
training goes on from any iteration as if it had never stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from multiprocessing import resource_tracker

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from caffeio.data import ImageSource, LevelDBSource, NotEnoughData, Source
from caffeio.errors import CaffeFileError
from pipeline.errors import ConfigError, PipelineError
from pipeline.quantize.data_print import DataPrint, data_prints
from pipeline.quantize.feed import Feed
from pipeline.retrain.group import Group

__all__ = ["Order", "TrainingFeed"]

#: Blob name to one sample's array; or what went wrong.
_Row = dict[str, np.ndarray] | str


@dataclass(frozen=True)
class Order:
    """The samples of each batch.

    Attributes
    ----------
    total : int
        Samples there are.
    batch_size : int
    shuffle : bool
        Another order in each round; else as they are stored, round after round.
    seed : int
    """

    total: int
    batch_size: int
    shuffle: bool
    seed: int

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Return (sample, how many were read before it) for each place in a batch."""
        first = number * self.batch_size
        return [(self._sample(i), i) for i in range(first, first + self.batch_size)]

    def _sample(self, place: int) -> int:
        turn, place = divmod(place, self.total)
        return int(_shuffled(self.total, self.seed, turn)[place]) if self.shuffle else place


@lru_cache(maxsize=2)
def _shuffled(total: int, seed: int, turn: int) -> np.ndarray:
    """Return the order of a round."""
    return np.random.default_rng((seed, turn)).permutation(total)


class TrainingFeed:
    """Batches for training, in an order that the seed decides.

    Parameters
    ----------
    opener : callable
        Opens the data; each worker process opens it for itself.
    batch_size : int
        Of all processes of the group together.
    group : Group
    shuffle : bool
    seed : int
    workers : int
        Processes that decode; 0: this one.
    augment : bool
        Crop and mirror at random, as the transform says.
    """

    def __init__(
        self,
        opener: Callable[[], Feed],
        batch_size: int,
        group: Group,
        *,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 0,
        augment: bool = False,
    ) -> None:
        if batch_size % group.size:
            raise ConfigError(
                f"a batch of {batch_size} cannot be shared by {group.size} processes alike; "
                "make batch_size a multiple of their number"
            )
        self._samples = _Samples(opener, seed, augment)
        total = len(self._samples.feed)
        if not total:
            raise PipelineError("the training data holds no samples")
        sources = [source for source, _ in self._samples.feed.inputs.values()]
        if self._samples.feed.label_blob is not None:
            _check_labels(sources)
        if workers and any(isinstance(s, LevelDBSource) for s in sources):
            raise ConfigError(
                "retrain.workers: only one process may open a LevelDB; set workers = 0, or "
                "convert it to LMDB"
            )
        self.order = Order(total, batch_size, shuffle, seed)
        self._group = group
        self._workers = workers

    def batches(self, first: int = 0, number: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Read batches from one on; without a number, for ever.

        Raises
        ------
        PipelineError
            If a sample is damaged; it names it.
        """
        own = self.order.batch_size // self._group.size
        begin = own * self._group.rank
        numbers = count(first) if number is None else range(first, first + number)
        workers = 0 if number == 1 else self._workers  # one batch is not worth their start
        loader: DataLoader = DataLoader(
            self._samples,
            batch_sampler=_Sampler(self.order, numbers, slice(begin, begin + own)),
            collate_fn=_collate,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # not torch's global one, which Dropout uses
        )
        with _unheard():
            iterator = iter(loader)
        for rows in iterator:
            if isinstance(rows, str):
                raise PipelineError(rows)
            yield {name: x.to(self._group.device) for name, x in rows.items()}

    def prints(self) -> list[DataPrint]:
        """Return what identifies the samples of each input."""
        return list(data_prints(self._samples.feed).values())

    def close(self) -> None:
        """Close the data."""
        self._samples.feed.close()


@dataclass(frozen=True)
class _Sampler:
    """Yields the places of each batch that this process reads."""

    order: Order
    numbers: count | range
    own: slice

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in self.numbers:
            yield self.order.batch(number)[self.own]


class _Samples(Dataset):
    """The samples of a feed, which is opened where it is first read."""

    def __init__(self, opener: Callable[[], Feed], seed: int, augment: bool) -> None:
        self._opener = opener
        self._seed = seed
        self._augment = augment
        self._feed: Feed | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_feed": None}

    @property
    def feed(self) -> Feed:
        """The opened data."""
        if self._feed is None:
            self._feed = self._opener()
        return self._feed

    def __getitem__(self, key: tuple[int, int]) -> _Row:
        sample, place = key
        # exceptions of a worker process arrive with another type
        try:
            return self._read(sample + self.feed.start, place)
        except (CaffeFileError, NotEnoughData, IndexError) as error:
            return str(error)

    def _read(self, index: int, place: int) -> _Row:
        row: dict[str, np.ndarray] = {}
        label_blob = self.feed.label_blob
        for name, (source, transform) in self.feed.inputs.items():
            sample = source[index]
            drawn = self._augment and (transform.crop is not None or transform.mirror)
            rng = np.random.default_rng((self._seed, 1, place)) if drawn else None
            try:
                row[name] = transform.apply(sample, rng)
            except ValueError as error:
                raise CaffeFileError(sample.name, str(error)) from None
            if label_blob is not None and label_blob not in row:
                if sample.label is None:
                    raise CaffeFileError(sample.name, "has no label; training needs one")
                row[label_blob] = np.asarray(sample.label, np.float32)
        return row


def _check_labels(sources: Sequence[Source]) -> None:
    """Raise if a list of images lacks a label: the training might end hours later for it."""
    first = sources[0]
    if isinstance(first, ImageSource) and None in first.labels:
        file = first.files[first.labels.index(None)]
        raise CaffeFileError(first.path, f"gives no label for '{file}'; training needs one")


def _collate(rows: list[_Row]) -> dict[str, Tensor] | str:
    good = []
    for row in rows:
        if isinstance(row, str):
            return row
        good.append(row)
    for name in good[0]:
        shapes = sorted({row[name].shape for row in good})
        if len(shapes) > 1:
            return (
                f"samples for '{name}' have different shapes, {shapes[0]} and {shapes[-1]}; "
                "resize or crop them to one size"
            )
    return {name: torch.from_numpy(np.stack([row[name] for row in good])) for name in good[0]}


@contextmanager
def _unheard() -> Iterator[None]:
    """Start processes with Ctrl-C and SIGTERM blocked: the training process stops them itself."""
    resource_tracker.ensure_running()  # starting it later would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
