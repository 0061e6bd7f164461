"""Arrays in files: .npy, .npz, MNIST's idx, and raw .bin batches."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from caffeio.data.rows import FileRows
from caffeio.data.source import Label, Order, Sample, Source, unread_files
from caffeio.errors import CaffeFileError, reading
from caffeio.memory import no_room

__all__ = ["ArraySource", "RawSource", "as_label", "as_sample", "is_idx", "open_idx",
           "open_numpy", "open_raw"]  # fmt: skip

_DATA_NAMES = ("data", "images", "x")
_LABEL_NAMES = ("label", "labels", "y")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_AXES = 8
_GZIP = b"\x1f\x8b"
_NPY = ".npy"
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def as_sample(row: np.ndarray) -> np.ndarray:
    """Return one row of a data array as a sample: uint8 stays, all else becomes float32.

    H×W becomes 1×H×W.
    """
    data = np.asarray(row, np.uint8 if row.dtype == np.uint8 else np.float32)
    return data[np.newaxis] if data.ndim == 2 else data


def as_label(value: np.ndarray | np.generic) -> Label:
    """Return one row of a label array: a number if it is one, else the array."""
    array = np.asarray(value)
    if array.size != 1:
        return array
    number = array.reshape(()).item()
    return int(number) if float(number).is_integer() else float(number)


@dataclass(frozen=True, eq=False)
class ArraySource(Source):
    """The rows of an array.

    Attributes
    ----------
    path : Path
    data : ndarray or FileRows
        N×C×H×W, N×H×W or N×...
    labels : ndarray or None
        N or N×...
    order : {"BGR", "RGB"} or None
        What three channels are.
    """

    path: Path
    data: np.ndarray | FileRows
    labels: np.ndarray | None = None
    order: Order = None

    def __post_init__(self) -> None:
        if self.data.ndim < 2 or not len(self.data):
            raise CaffeFileError(
                self.path,
                f"holds data of the shape {self.data.shape}; "
                "N×C×H×W or N×H×W is needed, with N > 0",
            )
        if self.data.dtype.kind not in "uif":
            raise CaffeFileError(self.path, f"holds data of the type {self.data.dtype}")
        if self.labels is not None and not self.labels.ndim:
            raise CaffeFileError(self.path, "holds one label, not one for each sample")
        if self.labels is not None and len(self.labels) != len(self.data):
            raise CaffeFileError(
                self.path, f"has {len(self.data)} samples but {len(self.labels)} labels"
            )
        if self.labels is not None and self.labels.dtype.kind not in "buif":
            raise CaffeFileError(self.path, f"holds labels of the type {self.labels.dtype}")

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> Sample:
        """Return a row."""
        label = None if self.labels is None else as_label(self.labels[index])
        return Sample(as_sample(self.data[index]), label, f"{self.path}[{index}]", order=self.order)


def _pick(path: Path, names: Sequence[str], dataset: str | None, usual: tuple[str, ...]
          ) -> str | None:  # fmt: skip
    if dataset is not None:
        if dataset not in names:
            raise CaffeFileError(path, f"has no dataset '{dataset}'; it has {', '.join(names)}")
        return dataset
    return next((name for name in usual if name in names), None)


def open_numpy(
    path: str | Path, dataset: str | None = None, labels: str | None = None, order: Order = None,
    labelled: bool = True,
) -> ArraySource:  # fmt: skip
    """Open a .npy or .npz file.

    Parameters
    ----------
    path : path-like
        .npy stays in its file, sample by sample; .npz is read whole.
    dataset, labels : str, optional
        Names within a .npz; else the usual ones: data, images or x; label, labels or y; or
        the only array there is.
    order : {"BGR", "RGB"} or None
        What three channels are.
    labelled : bool
        False: leave the labels aside, whatever they are.

    Raises
    ------
    CaffeFileError
        If the file is damaged, or has not the datasets.
    """
    path = Path(path)
    with reading(path, form="NumPy arrays"):
        if not zipfile.is_zipfile(path) and path.suffix.lower() != ".npz":
            return ArraySource(path, _rows(path), order=order)
        with zipfile.ZipFile(path) as archive:
            names = [n[: -len(_NPY)] for n in archive.namelist() if n.endswith(_NPY)]
            name = _pick(path, names, dataset, _DATA_NAMES)
            if name is None:
                if len(names) != 1:
                    which = ", ".join(names) or "it holds no arrays"
                    raise CaffeFileError(path, f"which dataset holds the data? Name one of {which}")
                name = names[0]
            others = [n for n in names if n != name]
            label = _pick(path, others, labels, _LABEL_NAMES) if labelled else None
            data = _member(path, archive, name)
            return ArraySource(path, data, _member(path, archive, label) if label else None, order)


def _rows(path: Path) -> FileRows | np.ndarray:
    """Return the array of a .npy, left in its file if its rows lie one after another there."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # NumPy holds size against header
    if mapped.flags.c_contiguous and mapped.ndim and mapped.size:
        return FileRows(path, mapped.offset, mapped.shape, mapped.dtype)
    _check_room(path, mapped.nbytes)
    return np.load(path, allow_pickle=False)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array of a .npz, whose header must tell the size that the archive tells."""
    info = archive.getinfo(name + _NPY)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise CaffeFileError(path, f"'{name}' is of NumPy's format {version}, not of numbers")
        shape, _, dtype = _NPY_HEADERS[version](file)
        size = math.prod(shape) * dtype.itemsize
        if file.tell() + size != info.file_size or dtype.hasobject:
            raise CaffeFileError(
                path, f"'{name}' has {info.file_size} bytes, not those of {shape} {dtype}"
            )
        _check_room(path, size)
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_room(path: Path, size: int) -> None:
    if needed := no_room(size):
        raise CaffeFileError(path, f"is too large: its array takes {needed}")


def is_idx(path: Path) -> bool:
    """Tell whether a file, perhaps compressed, begins as MNIST's idx files do."""
    try:
        with _plain_or_gzip(path) as file:
            head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return _is_idx_head(head)


def _is_idx_head(head: bytes) -> bool:
    plain = len(head) == 4 and head[:2] == b"\0\0"
    return plain and head[2] in _IDX_TYPES and 0 < head[3] <= _MOST_AXES


def _read_idx(path: Path) -> np.ndarray:
    with reading(path), _plain_or_gzip(path) as file:
        head = file.read(4)
        if not _is_idx_head(head):
            raise CaffeFileError(path, "is not an idx file")
        axes = head[3]
        sizes = file.read(4 * axes)
        if len(sizes) < 4 * axes:
            raise CaffeFileError(path, "is cut short")
        shape = struct.unpack(f">{axes}I", sizes)
        dtype = np.dtype(_IDX_TYPES[head[2]])
        size = math.prod(shape) * dtype.itemsize
        _check_room(path, size)
        data = file.read(size + 1)
    if len(data) != size:
        more = "more" if len(data) > size else f"{len(data)}"
        raise CaffeFileError(
            path, f"holds {more} bytes of data, but its shape {shape} needs {size}"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _plain_or_gzip(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path) if packed else path.open("rb"))


def open_idx(
    path: str | Path, labels: str | Path | None = None, labelled: bool = True
) -> ArraySource:
    """Open an idx file of images, as MNIST comes, perhaps compressed by gzip.

    Parameters
    ----------
    path : path-like
    labels : path-like, optional
        The idx file of the labels; if not given, the one beside it whose name says "labels"
        and "idx1" for "images" and "idx3", if there is one.
    labelled : bool
        False: leave the labels aside, whatever they are.

    Raises
    ------
    CaffeFileError
        If a file is damaged, or the counts differ.
    """
    path = Path(path)
    if not labelled:
        return ArraySource(path, _read_idx(path))
    if labels is None:
        guess = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        labels = guess if guess != path and guess.is_file() else None
    return ArraySource(path, _read_idx(path), None if labels is None else _read_idx(Path(labels)))


@dataclass(frozen=True)
class RawSource(Source):
    """Raw batches: each file is one whole batch, without any header.

    Attributes
    ----------
    path : Path
        The folder.
    files : sequence of Path
        Sorted by name.
    shape : tuple of int
        Of one file, the batch first.
    dtype : str
    notes : tuple of str
        How many files of the folder are not read.
    """

    path: Path
    files: Sequence[Path]
    shape: tuple[int, ...]
    dtype: str = "float32"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files) * self.shape[0]

    def read(self, index: int) -> Sample:
        """Read a row of a batch."""
        file, row = self.files[index // self.shape[0]], index % self.shape[0]
        count = math.prod(self.shape[1:])
        dtype = np.dtype(self.dtype)
        with reading(file):
            data = np.fromfile(file, dtype, count, offset=row * count * dtype.itemsize)
        if data.size != count:
            raise CaffeFileError(file, f"ends within sample {row}")
        return Sample(as_sample(data.reshape(self.shape[1:])), None, f"{file}[{row}]")


def open_raw(path: str | Path, input_shape: Sequence[int], dtype: str = "float32") -> RawSource:
    """Open a folder of raw .bin batches.

    Parameters
    ----------
    path : path-like
        A folder; its .bin files are taken in the order of their names. Or one file.
    input_shape : sequence of int
        The shape of each file, the batch size first.
    dtype : str
        A NumPy type, in the machine's byte order.

    Raises
    ------
    CaffeFileError
        If there are no files, or one is not of the size that shape and type give.
    ValueError
        If the shape or the type is not one.
    """
    path = Path(path)
    shape = tuple(int(n) for n in input_shape)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"input_shape is {shape}; it needs two or more positive sizes")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise ValueError(f"dtype '{dtype}' is not a NumPy type") from None
    if kind.kind not in "uif":
        raise ValueError(f"dtype '{dtype}' is not a type of numbers")
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise CaffeFileError(path, "holds no .bin files")
    size = math.prod(shape) * kind.itemsize
    for file in files:
        if file.stat().st_size != size:
            raise CaffeFileError(
                file,
                f"has {file.stat().st_size} bytes, but a {kind} batch of "
                f"the shape {shape} has {size}",
            )
    notes = unread_files(path, set(path.iterdir()).difference(files)) if path.is_dir() else ()
    return RawSource(path, files, shape, kind.name, notes)
