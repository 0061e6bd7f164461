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

import numpy as np

from caffeio.data.source import Label, Order, Sample, Source, unread_files
from caffeio.errors import CaffeFileError

__all__ = ["ArraySource", "RawSource", "as_label", "as_sample", "is_idx", "open_idx",
           "open_numpy", "open_raw"]  # fmt: skip

_DATA_NAMES = ("data", "images", "x")
_LABEL_NAMES = ("label", "labels", "y")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


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
    data : ndarray
        N×C×H×W, N×H×W or N×...; it may be a memory map.
    labels : ndarray or None
        N or N×...
    order : {"BGR", "RGB"} or None
        What three channels are.
    """

    path: Path
    data: np.ndarray
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
        .npy is mapped, not read; .npz is read whole.
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
    try:
        if not zipfile.is_zipfile(path) and path.suffix.lower() != ".npz":
            data = np.load(path, mmap_mode="r", allow_pickle=False)
            return ArraySource(path, data, order=order)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            name = _pick(path, names, dataset, _DATA_NAMES)
            if name is None:
                if len(names) != 1:
                    raise CaffeFileError(
                        path, f"which dataset holds the data? Name one of {', '.join(names)}"
                    )
                name = names[0]
            others = [n for n in names if n != name]
            label = _pick(path, others, labels, _LABEL_NAMES) if labelled else None
            return ArraySource(path, archive[name], archive[label] if label else None, order)
    except CaffeFileError:
        raise
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise CaffeFileError(path, f"cannot be read as NumPy arrays: {error}") from None


def _read_maybe_gzip(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise CaffeFileError(path, f"cannot be read: {error}") from None


def is_idx(path: Path) -> bool:
    """Tell whether a file, perhaps compressed, begins as MNIST's idx files do."""
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if head == b"\x1f\x8b":
            with gzip.open(path) as file:
                head = file.read(4)
        else:
            with path.open("rb") as file:
                head = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in _IDX_TYPES and 0 < head[3] <= 8


def _read_idx(path: Path) -> np.ndarray:
    data = _read_maybe_gzip(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise CaffeFileError(path, "is not an idx file")
    axes = data[3]
    begin = 4 + 4 * axes
    if len(data) < begin:
        raise CaffeFileError(path, "is cut short")
    shape = struct.unpack(f">{axes}I", data[4:begin])
    dtype = np.dtype(_IDX_TYPES[data[2]])
    if len(data) - begin != math.prod(shape) * dtype.itemsize:
        raise CaffeFileError(
            path,
            f"holds {len(data) - begin} bytes of data, but its shape "
            f"{shape} needs {math.prod(shape) * dtype.itemsize}",
        )
    return np.frombuffer(data, dtype, offset=begin).reshape(shape).astype(dtype.newbyteorder("="))


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
        try:
            data = np.fromfile(file, dtype, count, offset=row * count * dtype.itemsize)
        except OSError as error:
            raise CaffeFileError(file, f"cannot be read: {error.strerror}") from None
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
