"""Weights in HDF5, as Caffe's ``snapshot_format: HDF5`` writes them: data/<layer>/<index>."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffeio.blobs import FileBlob
from caffeio.caffemodel import Weights
from caffeio.errors import CaffeFileError, reading
from caffeio.memory import no_room

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["import_h5py", "is_hdf5", "own_dataset", "own_items", "read_hdf5_weights"]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_BLOBS = 100
#: Groups in groups, as a layer's name has parts.
_DEEPEST = 32
#: Zeros are at most so many times shorter when compressed (deflate: 1032).
_MOST_PACKED = 2000


def is_hdf5(path: str | Path) -> bool:
    """Tell whether a file is HDF5 by its first bytes."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def import_h5py(path: str | Path) -> ModuleType:
    """Return the h5py module, or raise `CaffeFileError` naming what to install."""
    try:
        import h5py
    except ImportError:
        raise CaffeFileError(
            path, "is HDF5; reading it needs h5py: pip install caffe-quant[data]"
        ) from None
    return h5py


def read_hdf5_weights(path: str | Path) -> Weights:
    """Read the weights of an HDF5 snapshot.

    Parameters
    ----------
    path : path-like
        A file with the group ``data/<layer>``, which holds the datasets "0", "1", ...

    Returns
    -------
    Weights

    Raises
    ------
    CaffeFileError
        If h5py is missing, the file is damaged or is not laid out like that.
    """
    path = Path(path)
    h5py = import_h5py(path)
    layers: dict[str, tuple[FileBlob | None, ...]] = {}
    with reading(path, form="HDF5"), h5py.File(path, "r") as file:
        data = _own_item(path, file, "data") if "data" in list(file) else None
        if not isinstance(data, h5py.Group):
            raise CaffeFileError(path, "has no group 'data'; is it a Caffe snapshot?")
        _collect(data, (), layers, path, h5py)
    return Weights(path, layers)


def own_items(path: Path, group: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a group holds, by name; links that lead out of the file are refused.

    A file from elsewhere shall not say which of the user's other files are read.

    Raises
    ------
    CaffeFileError
        If there is a link to another file, or to another place of this one: Caffe writes none.
    """
    for key in group:
        yield key, _own_item(path, group, key)


def _own_item(path: Path, group: Any, key: str) -> Any:
    h5py = import_h5py(path)
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise CaffeFileError(
            path, f"holds a link, '{group.name.rstrip('/')}/{key}', where data is expected"
        )
    return group[key]


def own_dataset(path: Path, file: Any, name: str) -> Any:
    """Return a dataset of numbers that lies in the file itself.

    Raises
    ------
    CaffeFileError
        If there is none of that name, or its data is not numbers, or lies in another file.
    """
    h5py = import_h5py(path)
    item = file
    for part in filter(None, name.split("/")):
        # by the names alone: to ask the group itself would follow a link
        there = isinstance(item, h5py.Group) and part in list(item)
        item = _own_item(path, item, part) if there else None
    if not isinstance(item, h5py.Dataset):
        raise CaffeFileError(path, f"has no dataset '{name}'; it has {', '.join(file) or 'none'}")
    _check_dataset(path, item)
    return item


def _check_dataset(path: Path, item: Any) -> None:
    if item.is_virtual or item.external:
        raise CaffeFileError(path, f"the data of '{item.name}' lies in other files; copy it in one")
    if item.dtype.kind not in "buif":
        raise CaffeFileError(path, f"'{item.name}' holds {item.dtype}, not numbers")
    if item.shape is None:
        raise CaffeFileError(path, f"'{item.name}' is an empty dataset, without a shape")
    if item.chunks and (needed := no_room(math.prod(item.chunks) * item.dtype.itemsize)):
        raise CaffeFileError(path, f"a chunk of '{item.name}' takes {needed}")


def _whole(path: Path, item: Any) -> np.ndarray:
    """Read a dataset of weights, of which the file must hold all."""
    _check_dataset(path, item)
    size, there = item.size * item.dtype.itemsize, item.id.get_storage_size()
    if size > there * (_MOST_PACKED if item.chunks else 1):
        raise CaffeFileError(
            path, f"holds {there:,} bytes of '{item.name}', whose shape {item.shape} takes {size:,}"
        )
    if needed := no_room(4 * item.size):
        raise CaffeFileError(path, f"'{item.name}' takes {needed}")
    return np.array(item, np.float32, order="C")


def _collect(
    group: Any,
    names: tuple[str, ...],
    layers: dict[str, tuple[FileBlob | None, ...]],
    path: Path,
    h5py: ModuleType,
) -> None:
    """Collect a layer's datasets; a layer named "a/b" is a group in a group."""
    if len(names) > _DEEPEST:
        raise CaffeFileError(path, f"holds groups in groups, more than {_DEEPEST}, or in a circle")
    name, blobs = "/".join(names), {}
    for key, item in own_items(path, group):
        if isinstance(item, h5py.Group):
            _collect(item, (*names, key), layers, path, h5py)
        elif name and key.isascii() and key.isdecimal() and key == str(int(key[:9])):
            blobs[int(key)] = FileBlob(_whole(path, item))
        else:
            raise CaffeFileError(
                path,
                f"holds the dataset 'data/{name}/{key}', but datasets "
                "are named by their index within a layer",
            )
    if blobs and max(blobs) > _MOST_BLOBS:
        raise CaffeFileError(path, f"layer '{name}' has a blob {max(blobs)}: no layer has so many")
    if blobs:  # a shared blob is stored with the other layer only
        layers[name] = tuple(blobs.get(i) for i in range(max(blobs) + 1))
