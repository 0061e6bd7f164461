"""LMDB and LevelDB databases of Datum records, as Caffe's tools make them."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffeio.data.decode import decode_image
from caffeio.data.lmdb_pages import check_lmdb_pages
from caffeio.data.source import Order, Sample, Source
from caffeio.errors import CaffeFileError, reading
from caffeio.proto import caffe_pb2 as pb

__all__ = ["LMDBSource", "LevelDBSource", "datum_sample"]

_KEYS_AHEAD = 1024


def datum_sample(
    record: bytes, name: str, color: bool | None = None, order: Order = None
) -> Sample:
    """Make a sample of a serialized Datum.

    Parameters
    ----------
    record : bytes
    name : str
        For messages.
    color : bool or None
        For encoded images: three channels, one, or as they are stored.
    order : {"BGR", "RGB"} or None
        What three raw channels are; encoded images are always BGR.

    Returns
    -------
    Sample
        H×W×C uint8 of an encoded image; C×H×W of raw data, uint8 or float32.

    Raises
    ------
    ValueError
        If the record is damaged.
    """
    from google.protobuf.message import DecodeError

    try:
        datum = pb.Datum.FromString(record)
    except DecodeError:
        raise ValueError("the record is not a Datum") from None
    label = datum.label if datum.HasField("label") else None
    if datum.encoded:
        image = decode_image(datum.data, color)
        image_order: Order = "BGR" if image.shape[2] == 3 else None
        return Sample(image, label, name, image=True, order=image_order)
    shape = (datum.channels, datum.height, datum.width)
    data = (
        np.frombuffer(datum.data, np.uint8)
        if datum.data
        else np.array(datum.float_data, np.float32)
    )
    if data.size == 0 or data.size != np.prod(shape):
        raise ValueError(f"the record holds {data.size} values for the shape {shape}")
    return Sample(data.reshape(shape), label, name, order=order if shape[0] == 3 else None)


@dataclass
class _Handle:
    database: Any
    users: int = 0


class _Handles:
    """Open databases by path, with the number of their users.

    LMDB and LevelDB allow a process to open a database once only, but a user may well name one
    for calibration and for evaluation.
    """

    def __init__(self) -> None:
        # The garbage collector may release a source while its thread is in here.
        self._lock = threading.RLock()
        self._open: dict[Path, _Handle] = {}

    def acquire(self, path: Path, opener: Callable[[], Any]) -> Any:
        """Return the handle of a path, opening it for the first user."""
        with self._lock:
            entry = self._open.get(path)
            if entry is None:
                entry = self._open[path] = _Handle(opener())
            entry.users += 1
            return entry.database

    def release(self, path: Path) -> None:
        """Close the handle of a path after its last user."""
        with self._lock:
            entry = self._open[path]
            entry.users -= 1
            if entry.users == 0:
                del self._open[path]
                entry.database.close()


_HANDLES = _Handles()


class _Database(Source):
    """What both kinds of database share."""

    def __init__(
        self, path: str | Path, color: bool | None, order: Order, opener: Callable[[], Any]
    ) -> None:
        self.path = Path(path)
        self._color = color
        self._order = order
        key = self.path.resolve()
        self._db = _HANDLES.acquire(key, opener)
        self._release = weakref.finalize(self, _HANDLES.release, key)

    def close(self) -> None:
        """Close the database, unless another source reads it too."""
        self._release()

    def _sample(self, key: bytes, value: bytes | None) -> Sample:
        name = key.decode("utf-8", "replace")
        if value is None:
            raise CaffeFileError(self.path, f"record '{name}' is gone")
        try:
            return datum_sample(value, f"{self.path}[{name}]", self._color, self._order)
        except ValueError as error:
            raise CaffeFileError(self.path, f"record '{name}': {error}") from None


class LMDBSource(_Database):
    """An LMDB of Datum, read in the order of its keys.

    Parameters
    ----------
    path : path-like
        The folder with data.mdb.
    color : bool or None
        For encoded images: three channels, one, or as they are stored.
    order : {"BGR", "RGB"} or None
        What three raw channels are.

    Raises
    ------
    CaffeFileError
        If lmdb is not installed, or the folder is not a database or an empty one.
    """

    def __init__(self, path: str | Path, color: bool | None = None, order: Order = None) -> None:
        try:
            import lmdb
        except ImportError:
            raise CaffeFileError(
                path, "is an LMDB; reading it needs lmdb: pip install caffe-quant[data]"
            ) from None
        path = Path(path)
        # what is not there would end the process
        check_lmdb_pages(path / "data.mdb" if path.is_dir() else path)
        with reading(path):
            super().__init__(path, color, order, lambda: lmdb.open(
                str(path), readonly=True, lock=False, readahead=False,
                subdir=path.is_dir()))  # fmt: skip
        self._count = int(self._db.stat()["entries"])
        if self._count == 0:
            self.close()
            raise CaffeFileError(path, "is an LMDB without records")
        self._keys: list[bytes] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def _key(self, index: int) -> bytes:
        """Return a key, walking on from the last one known: opening costs no full scan."""
        with self._lock:
            if index >= len(self._keys):
                with self._db.begin() as transaction, transaction.cursor() as cursor:
                    begin = cursor.first()
                    if self._keys:
                        begin = cursor.set_key(self._keys[-1]) and cursor.next()
                    if begin:
                        count = index - len(self._keys) + _KEYS_AHEAD
                        keys = itertools.islice(cursor.iternext(values=False), count)
                        self._keys.extend(bytes(key) for key in keys)
            if index >= len(self._keys):
                raise CaffeFileError(
                    self.path, f"is damaged: record {index} of {self._count} is not there"
                )
            return self._keys[index]

    def read(self, index: int) -> Sample:
        """Read a record."""
        with reading(self.path, f"record {index}"):
            key = self._key(index)
            with self._db.begin() as transaction:
                value = transaction.get(key)
        return self._sample(key, value)


class LevelDBSource(_Database):
    """A LevelDB of Datum, read in the order of its keys.

    LevelDB takes a lock and may write to the folder, even for reading: only one process can
    have it open, and the folder must be writable.

    Parameters
    ----------
    path, color, order
        As for `LMDBSource`.

    Raises
    ------
    CaffeFileError
        If plyvel is not installed, or the folder is not a database or an empty one.
    """

    def __init__(self, path: str | Path, color: bool | None = None, order: Order = None) -> None:
        try:
            import plyvel
        except ImportError:
            raise CaffeFileError(
                path,
                "is a LevelDB; reading it needs plyvel: pip install plyvel (from Python 3.13 on it "
                "is built from source, with LevelDB's headers)",
            ) from None
        try:
            super().__init__(
                path, color, order, lambda: plyvel.DB(str(path), create_if_missing=False)
            )
            self._keys = list(self._db.iterator(include_value=False))
        except (plyvel.Error, OSError) as error:
            raise CaffeFileError(
                path,
                f"cannot be opened as a LevelDB: {error} (LevelDB locks and writes its "
                "folder: it must be writable, and no other process may have it open)",
            ) from None
        if not self._keys:
            self.close()
            raise CaffeFileError(path, "is a LevelDB without records")

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, index: int) -> Sample:
        """Read a record."""
        import plyvel

        key = self._keys[index]
        try:
            value = self._db.get(key, verify_checksums=True)
        except plyvel.Error as error:
            name = key.decode("utf-8", "replace")
            raise CaffeFileError(self.path, f"record '{name}': {error}") from None
        return self._sample(key, value)
