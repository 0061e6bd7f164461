"""What identifies the samples of a run: enough to tell other data from the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caffeio import CaffeFileError
from caffeio.data import ImageSource, Source
from pipeline.quantize.feed import Feed

__all__ = ["DataPrint", "data_prints"]

#: Samples of which the contents count: the first, the last, and some between.
_SAMPLES = 16
#: The files of a folder that is a database; of its others some change whenever it is opened.
_DATABASE = {".mdb", ".ldb", ".sst"}


@dataclass(frozen=True)
class DataPrint:
    """The samples of one input of a net.

    Attributes
    ----------
    path : str
    count : int
        Samples that the source holds.
    files : str
        A digest of size and time of the files.
    contents : tuple of (int, str)
        Of some samples: the place in the source, and a digest.
    """

    path: str
    count: int
    files: str
    contents: tuple[tuple[int, str], ...]

    def difference(self, before: DataPrint) -> str:
        """Say in which way this is other data than `before`; empty: in none."""
        if self.path != before.path:
            return f"'{self.path}', not '{before.path}'"
        if self.count != before.count:
            return f"'{self.path}' has {self.count} samples, had {before.count}"
        if [place for place, _ in self.contents] != [place for place, _ in before.contents]:
            return f"other samples of '{self.path}'"
        for (place, now), (_, then) in zip(self.contents, before.contents, strict=True):
            if now != then:
                return f"'{self.path}' has another sample number {place}"
        return "" if self.files == before.files else f"the files of '{self.path}' were changed"


def data_prints(feed: Feed) -> dict[str, DataPrint]:
    """Return what identifies the samples that a feed reads, by input."""
    places = feed.after(0).places or ()
    return {blob: _print_of(source, places) for blob, (source, _) in feed.inputs.items()}


def _print_of(source: Source, places: Sequence[int]) -> DataPrint:
    marks = np.linspace(0, len(places) - 1, min(len(places), _SAMPLES)).round().astype(int)
    sampled = np.sort(places)[marks].tolist()
    contents = tuple((place, _content(source, place)) for place in sampled)
    files = [f"{path} {_size_and_time(path)}" for path in _files(source, places)]
    digest = hashlib.sha256(os.fsencode("\n".join(files))).hexdigest()
    return DataPrint(str(source.path), len(source), digest, contents)


def _content(source: Source, place: int) -> str:
    try:
        sample = source[place]
    except CaffeFileError as error:  # it may be that nobody reads it
        return str(error)
    label = None if sample.label is None else np.asarray(sample.label).tolist()
    data = np.ascontiguousarray(sample.data)
    about = repr((data.shape, data.dtype.str, label, sample.image, sample.order))
    return hashlib.sha256(about.encode() + data.tobytes()).hexdigest()


def _files(source: Source, places: Sequence[int]) -> Iterator[Path]:
    """Yield the files that samples lie in; of images those of the samples that are read."""
    if source.path.is_file():
        yield source.path
    if isinstance(source, ImageSource):
        yield from (source.files[place] for place in places)
    elif hasattr(source, "files"):
        yield from source.files
    elif source.path.is_dir():
        files = sorted(f for f in source.path.iterdir() if f.suffix in _DATABASE)
        yield from (f for f in files if f.name != "lock.mdb")


def _size_and_time(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:  # reading it will say so
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
