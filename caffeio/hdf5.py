"""Weights in HDF5, as Caffe's ``snapshot_format: HDF5`` writes them: data/<layer>/<index>."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffeio.blobs import FileBlob
from caffeio.caffemodel import Weights
from caffeio.errors import CaffeFileError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["import_h5py", "is_hdf5", "read_hdf5_weights"]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_BLOBS = 100


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
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise CaffeFileError(path, "has no group 'data'; is it a Caffe snapshot?")
            _collect(file["data"], "", layers, path, h5py)
    except OSError as error:
        raise CaffeFileError(path, f"cannot be read as HDF5: {error}") from None
    return Weights(path, layers)


def _collect(
    group: Any,
    name: str,
    layers: dict[str, tuple[FileBlob | None, ...]],
    path: Path,
    h5py: ModuleType,
) -> None:
    """Collect a layer's datasets; a layer named "a/b" is a group in a group."""
    blobs: dict[int, FileBlob] = {}
    for key, item in group.items():
        if isinstance(item, h5py.Group):
            _collect(item, f"{name}/{key}" if name else key, layers, path, h5py)
        elif key.isdecimal() and name:
            blobs[int(key)] = FileBlob(np.array(item, np.float32, order="C"))
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
