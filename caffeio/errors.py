"""What goes wrong with a user's files, said so that the user can mend it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CaffeFileError", "MissingFileError", "NetError"]


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
        self.line = line
        self.column = column
        place = "".join(f":{n}" for n in (line, column) if n is not None)
        super().__init__(f"{path}{place}: {message}")


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
        super().__init__(f"layer '{layer}': {message}" if layer else message)
