"""Opening a data source by what lies there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from caffeio.data.arrays import is_idx, open_idx, open_numpy, open_raw
from caffeio.data.databases import LevelDBSource, LMDBSource
from caffeio.data.hdf5 import open_hdf5, open_hdf5_list
from caffeio.data.images import open_folder, open_list
from caffeio.data.source import Order, Source
from caffeio.errors import MissingFileError
from caffeio.files import read_text_file
from caffeio.hdf5 import is_hdf5

__all__ = ["KINDS", "detect_kind", "open_source"]

KINDS = ("folder", "list", "lmdb", "leveldb", "hdf5", "hdf5_list", "numpy", "idx", "raw")
_ENDINGS = {".npy": "numpy", ".npz": "numpy", ".bin": "raw", ".mdb": "lmdb"}


def detect_kind(path: str | Path) -> str:
    """Tell what kind of data lies at a path.

    Returns
    -------
    str
        One of `KINDS`.

    Raises
    ------
    CaffeFileError
        If nothing is there, or it is not known what.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_kind(path)
    if not os.path.isfile(path):
        raise MissingFileError(path, "does not exist")
    ending = path.suffix.lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if is_hdf5(path):
        return "hdf5"
    if is_idx(path):
        return "idx"
    first = next((line for line in read_text_file(path).splitlines() if line.strip()), "")
    return "hdf5_list" if first.strip().endswith((".h5", ".hdf5", ".he5")) else "list"


def _folder_kind(path: Path) -> str:
    if (path / "data.mdb").exists():
        return "lmdb"
    if (path / "CURRENT").exists() and any(path.glob("MANIFEST-*")):
        return "leveldb"
    return "raw" if any(path.glob("*.bin")) else "folder"


def open_source(
    path: str | Path,
    kind: str = "auto",
    *,
    color: bool | None = None,
    root: str | Path | None = None,
    class_folders: bool = False,
    dataset: str | None = None,
    labels: str | Path | None = None,
    order: Order = None,
    input_shape: Sequence[int] | None = None,
    dtype: str = "float32",
    labelled: bool = True,
) -> Source:
    """Open data of any kind.

    Parameters
    ----------
    path : path-like
        An image folder, a list of images (``path label``), an LMDB or LevelDB of Datum, an
        HDF5 file or a list of them, a .npy or .npz, an idx file, or a folder of .bin batches.
    kind : str
        One of `KINDS`, or "auto": by what lies there.
    color : bool, optional
        Decode images to three channels (True) or one (False). Not given: three for folders
        and lists, what is stored for databases.
    root : path-like, optional
        For lists: where relative paths begin; else the list's own folder.
    class_folders : bool
        For folders: the sub-folders are classes.
    dataset, labels : str, optional
        Names of datasets in HDF5 and .npz; for idx, `labels` is the labels' file.
    order : {"BGR", "RGB"}, optional
        What three channels of arrays and raw records are, if it matters to the transform.
    input_shape, dtype
        For raw batches: a file's shape, the batch first, and its type.
    labelled : bool
        False: labels are left aside, so that none can be wrong.

    Returns
    -------
    Source

    Raises
    ------
    CaffeFileError
        If the data is not there, is damaged or is empty.
    ValueError
        If `kind` is not one, or raw batches come without a shape.
    """
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"kind is '{kind}'; it must be auto or one of {', '.join(KINDS)}")
    if not os.path.exists(path):
        raise MissingFileError(path, "does not exist")
    kind = detect_kind(path) if kind == "auto" else kind
    name = None if labels is None else str(labels)
    openers: dict[str, Callable[[], Source]] = {
        "folder": lambda: open_folder(path, class_folders and labelled, color is not False),
        "list": lambda: open_list(path, root, color is not False, labelled),
        "lmdb": lambda: LMDBSource(path, color, order),
        "leveldb": lambda: LevelDBSource(path, color, order),
        "hdf5": lambda: open_hdf5(path, dataset or "data", name, order, labelled),
        "hdf5_list": lambda: open_hdf5_list(
            path, dataset or "data", name, root, order, labelled=labelled
        ),
        "numpy": lambda: open_numpy(path, dataset, name, order, labelled),
        "idx": lambda: open_idx(path, labels, labelled),
        "raw": lambda: open_raw(path, input_shape or (), dtype),
    }
    if kind == "raw" and input_shape is None:
        raise ValueError(f"'{path}' holds raw .bin batches, which need input_shape")
    return openers[kind]()
