"""What goes wrong with a user's files, said so that the user can mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CaffeFileError", "MissingFileError", "NetError", "reading", "within_limits"]

#: Of a message: characters of a line, and lines. A word of a damaged file is as long as the file.
_LONGEST_LINE, _MOST_LINES = 600, 60


def within_limits(message: str) -> str:
    """Return a message without the middle of lines that nobody would read to the end."""
    lines = message.split("\n")
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [f"… and {len(lines) - _MOST_LINES} lines more"]
    return "\n".join(_cut(line) for line in lines)


def _cut(line: str) -> str:
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2
    return f"{line[: half - 1]}…{line[-half:]}"


def _in_one_line(name: object) -> str:
    """Return a name as it stands in a message, of which it shall begin no new line."""
    return str(name).replace("\n", "\\n")


class CaffeFileError(ValueError):
    """A file cannot be read or written, or does not say what its format demands.

    Parameters
    ----------
    path : path-like
        The file at fault.
    message : str
        What is wrong and what would mend it, as one sentence without the file's name.
    line, column : int, optional
        Where in the file, counted from 1.
    """

    def __init__(
        self,
        path: str | Path,
        message: str,
        line: int | None = None,
        column: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.message = message
        self.line = line
        self.column = column
        place = "".join(f":{n}" for n in (line, column) if n is not None)
        super().__init__(within_limits(f"{_in_one_line(path)}{place}: {message}"))


class MissingFileError(CaffeFileError):
    """A file or folder that was named does not exist."""


class NetError(ValueError):
    """A net's graph is wrong: a blob nobody makes, two layers of one name, a bad shape.

    Parameters
    ----------
    message : str
        What is wrong and what would mend it.
    layer : str, optional
        The layer at fault; it is put before the message.
    """

    def __init__(self, message: str, layer: str | None = None) -> None:
        self.layer = layer
        of = f"layer '{_in_one_line(layer)}': " if layer else ""
        super().__init__(within_limits(f"{of}{message}"))


@contextmanager
def reading(path: str | Path, what: str = "", form: str = "") -> Iterator[None]:
    """Say of whatever goes wrong within that a file cannot be read.

    For what libraries do with a file: what they raise where it is damaged is no closed list.

    Parameters
    ----------
    path : path-like
    what : str
        The part that is read; by default the file.
    form : str
        What it is read as, such as "HDF5".

    Raises
    ------
    CaffeFileError
        In place of any other exception; its cause is kept.

    Examples
    --------
    >>> with reading("labels.npy"):
    ...     raise KeyError("shape")
    Traceback (most recent call last):
        ...
    caffeio.errors.CaffeFileError: labels.npy: cannot be read: KeyError: 'shape'
    """
    failed = f"{what} cannot be read{form and f' as {form}'}".lstrip()
    try:
        yield
    except (CaffeFileError, NetError):
        raise
    except MemoryError as error:
        why = "there is not enough memory for it"
        raise CaffeFileError(path, f"{failed}: {why}") from error
    except Exception as error:
        plain = isinstance(error, ValueError | EOFError | OSError) and str(error)
        why = getattr(error, "strerror", None) or (
            str(error) if plain else f"{type(error).__name__}: {error}"
        )
        raise CaffeFileError(path, f"{failed}: {why}") from error
