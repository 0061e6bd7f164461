"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from caffeio.errors import CaffeFileError

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary file to write; it takes the name `path` when all went well.

    The temporary file lies in the same folder, so that the renaming is atomic. It is
    flushed to the disk first. On any exception it is removed and `path` is as it was.

    Parameters
    ----------
    path : path-like
        The file to be made.
    overwrite : bool
        Whether an existing file may be replaced.

    Yields
    ------
    Path
        The temporary file: open it by name and close it again.

    Raises
    ------
    CaffeFileError
        If the file exists and may not be replaced, or the folder cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise CaffeFileError(path, "is a folder; a file is to be written")
    if path.exists() and not overwrite:
        raise CaffeFileError(path, "exists already; remove it or allow overwriting")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise CaffeFileError(path, f"cannot be written: {error.strerror}") from None
    try:
        yield temporary
        _finish(temporary, path, overwrite)
    except OSError as error:
        raise CaffeFileError(path, f"cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _finish(temporary: Path, path: Path, overwrite: bool) -> None:
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if overwrite:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, this fails if the name is taken meanwhile
    except FileExistsError:
        raise CaffeFileError(path, "was made by someone else meanwhile") from None
    except OSError:  # a file system without hard links
        temporary.replace(path)
