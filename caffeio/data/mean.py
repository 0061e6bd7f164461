"""Mean files: .binaryproto, as Caffe's compute_image_mean writes them, and .npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffeio import wire
from caffeio.blobs import decode_blob
from caffeio.errors import CaffeFileError, MissingFileError
from caffeio.files import read_bytes

__all__ = ["read_mean"]


def read_mean(path: str | Path) -> np.ndarray:
    """Read a mean.

    Parameters
    ----------
    path : path-like
        A .npy, or else a BlobProto.

    Returns
    -------
    ndarray
        float32, C×H×W or C.

    Raises
    ------
    CaffeFileError
        If the file cannot be read, is not of its format, or has another shape.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(path, "does not exist")
    try:
        if path.suffix.lower() == ".npy":
            mean = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            data = memoryview(read_bytes(path))
            mean = decode_blob(data, 0, len(data)).array.astype(np.float32, copy=False)
    except wire.WireError as error:
        raise CaffeFileError(path, f"is not a mean file: {error}") from None
    except CaffeFileError:
        raise
    except (ValueError, EOFError) as error:
        raise CaffeFileError(path, f"is not an array: {error}") from None
    except OSError as error:
        raise CaffeFileError(path, f"cannot be read: {error.strerror or error}") from None
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim not in {1, 3} or mean.size == 0:
        raise CaffeFileError(path, f"holds a mean of the shape {mean.shape}; C×H×W or C is needed")
    if not np.isfinite(mean).all():
        raise CaffeFileError(path, "holds a mean with NaN or infinity")
    return np.ascontiguousarray(mean)
