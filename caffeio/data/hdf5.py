"""Data in HDF5 files: one file, or Caffe's list of them."""

from __future__ import annotations

import bisect
import itertools
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caffeio.data.arrays import as_label, as_sample
from caffeio.data.source import Order, Sample, Source
from caffeio.errors import CaffeFileError, reading
from caffeio.files import read_text_file
from caffeio.hdf5 import import_h5py, own_dataset
from caffeio.memory import no_room

__all__ = ["HDF5Source", "open_hdf5", "open_hdf5_list"]


class HDF5Source(Source):
    """The rows of a dataset, through several files.

    Parameters
    ----------
    path : Path
        The file or list, for messages.
    files : sequence of Path
    dataset : str
        The name of the data in each file: N×C×H×W or N×...
    labels : str or None
        The name of the labels; None: there are none.
    order : {"BGR", "RGB"} or None
        What three channels are.
    exact : bool
        Rows keep their shape, as for Caffe's HDF5Data layer; else H×W is a grey image.

    Raises
    ------
    CaffeFileError
        If h5py is not installed, or a file is damaged or lacks a dataset.
    """

    def __init__(
        self, path: Path, files: Sequence[Path], dataset: str, labels: str | None,
        order: Order = None, exact: bool = False,
    ) -> None:  # fmt: skip
        self.path = path
        self._order = order
        self._exact = exact
        self._lock = threading.Lock()  # h5py objects are not for several threads at once
        self._files: list[Any] = []
        self._parts: list[tuple[Path, Any, Any]] = []
        try:
            for file in files:
                self._open(file, dataset, labels)
        except CaffeFileError:
            self.close()
            raise
        self._ends = list(itertools.accumulate(len(data) for _, data, _ in self._parts))
        if not self._ends or self._ends[-1] == 0:
            self.close()
            raise CaffeFileError(path, "holds no samples")

    def _open(self, file: Path, dataset: str, labels: str | None) -> None:
        h5py = import_h5py(file)
        with reading(file, form="HDF5"):
            handle = h5py.File(file, "r")
            self._files.append(handle)
            data = own_dataset(file, handle, dataset)
            label = own_dataset(file, handle, labels) if labels else None
        for name, rows in ((dataset, data), (labels, label)):
            if rows is not None and not rows.shape:
                raise CaffeFileError(file, f"'{name}' is one number, not a row for each sample")
        if label is not None and len(label) != len(data):
            raise CaffeFileError(
                file, f"has {len(data)} samples in '{dataset}' but {len(label)} in '{labels}'"
            )
        size = math.prod(data.shape[1:]) * max(data.dtype.itemsize, 4)
        if needed := no_room(size):
            raise CaffeFileError(file, f"a sample of '{dataset}' takes {needed}")
        self._parts.append((file, data, label))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> Sample:
        """Read a row."""
        part = bisect.bisect_right(self._ends, index)
        file, data, labels = self._parts[part]
        row = index - (self._ends[part - 1] if part else 0)
        with reading(file, f"sample {row}"), self._lock:
            array = data[row]
            label = None if labels is None else labels[row]
        data = as_sample(array)
        return Sample(
            data.reshape(array.shape) if self._exact else data,
            None if label is None else as_label(label),
            f"{file}[{row}]",
            order=self._order,
        )

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _usual_label(file: Path, dataset: str) -> str | None:
    """Return "label" if the file has such a dataset beside the data."""
    h5py = import_h5py(file)
    with reading(file, form="HDF5"), h5py.File(file, "r") as handle:
        return "label" if "label" in handle and dataset != "label" else None


def open_hdf5(
    path: str | Path, dataset: str = "data", labels: str | None = None, order: Order = None,
    labelled: bool = True,
) -> HDF5Source:  # fmt: skip
    """Open one HDF5 file; without `labels` its dataset "label" is taken if there is one.

    With `labelled` false its labels are left aside, whatever they are.
    """
    path = Path(path)
    labels = (labels or _usual_label(path, dataset)) if labelled else None
    return HDF5Source(path, [path], dataset, labels, order)


def open_hdf5_list(
    path: str | Path, dataset: str = "data", labels: str | None = None,
    root: str | Path | None = None, order: Order = None, exact: bool = False,
    labelled: bool = True,
) -> HDF5Source:  # fmt: skip
    """Open a text file that names an HDF5 file on each line.

    Parameters
    ----------
    path : path-like
        The list.
    dataset, labels : str
        As for `open_hdf5`.
    root : path-like, optional
        Where relative paths begin; the list's own folder if not given.
    order : {"BGR", "RGB"} or None
        What three channels are.
    exact : bool
        See `HDF5Source`.
    labelled : bool
        As for `open_hdf5`.

    Raises
    ------
    CaffeFileError
        If the list is empty or a file does not exist, with the line; or a file is damaged.
    """
    path = Path(path)
    base = path.parent if root is None else Path(root)
    files = []
    for number, line in enumerate(read_text_file(path).splitlines(), 1):
        if line.strip():
            files.append(base / line.strip())
            if not os.path.isfile(files[-1]):
                raise CaffeFileError(path, f"names the file '{files[-1]}', which does not exist",
                                     number)  # fmt: skip
    if not files:
        raise CaffeFileError(path, "lists no files")
    labels = (labels or _usual_label(files[0], dataset)) if labelled else None
    return HDF5Source(path, files, dataset, labels, order, exact)
