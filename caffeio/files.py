"""Reading a file whole: one that is not there, and what is often found in place of a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from caffeio.errors import CaffeFileError, MissingFileError

__all__ = ["decoded", "parse_json", "read_bytes", "read_json", "read_proto_text", "read_text_file"]

_BOM = b"\xef\xbb\xbf"
_LFS = b"version https://git-lfs"
_HTML = (b"<!doctype", b"<html")
#: A comment, a string, or a byte that is not UTF-8, as Python's "surrogateescape" holds it.
_PIECE = re.compile(
    r"""(?P<comment>\#[^\r\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<odd>[\udc80-\udcff])""",
    re.VERBOSE,
)
_ODD = re.compile("[\udc80-\udcff]")


def read_bytes(path: str | Path) -> bytes:
    """Return a file's content.

    Raises
    ------
    MissingFileError
        If it does not exist.
    CaffeFileError
        If it cannot be read, or is a web page or a pointer of Git LFS in place of the file.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(path, f"cannot be read: {error.strerror}") from None
    except OSError as error:
        raise CaffeFileError(path, f"cannot be read: {error.strerror}") from None
    head = data[:200].removeprefix(_BOM).lstrip().lower()
    if head.startswith(_LFS):
        raise CaffeFileError(
            path, "is a pointer of Git LFS, not the file itself; 'git lfs pull' fetches that"
        )
    if head.startswith(_HTML):
        raise CaffeFileError(
            path, "is a web page (HTML), not the file itself; download it in its raw form"
        )
    return data


def decoded(data: bytes) -> str:
    """Return bytes as text; one that is not UTF-8 becomes the character of its number.

    protobuf in C++ keeps such bytes in names. The same are the same here, in text and binary.
    """
    return _ODD.sub(_character, data.decode("utf-8", "surrogateescape"))


def _character(odd: re.Match[str]) -> str:
    return chr(ord(odd.group()) - 0xDC00)


def read_text_file(path: str | Path) -> str:
    """Return a text file's content, without a byte order mark.

    Raises
    ------
    CaffeFileError
        As for `read_bytes`, or if the file is not UTF-8 text.
    """
    data = read_bytes(path)
    try:
        return _lines(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _no_text(path, error.start) from None


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    CaffeFileError
        As for `read_text_file`, or if it is not JSON.
    """
    return parse_json(read_text_file(path), path)


def parse_json(text: str, path: str | Path) -> Any:
    """Return what a JSON text holds; `path` is for messages.

    Raises
    ------
    CaffeFileError
        If it is not JSON.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except ValueError as error:
        raise CaffeFileError(path, f"is not JSON: {error}") from None
    except RecursionError:
        raise CaffeFileError(path, "is not JSON: it is nested too deeply") from None


def read_proto_text(path: str | Path) -> str:
    """Return the text of a protobuf message, without a byte order mark.

    Comments may be of any encoding, as protobuf skips them; strings, see `decoded`.

    Raises
    ------
    CaffeFileError
        As for `read_bytes`, or if bytes elsewhere are not UTF-8.
    """
    data = read_bytes(path)
    text = data.decode("utf-8", "surrogateescape")

    def piece(match: re.Match[str]) -> str:
        if match.lastgroup == "odd":
            before = text[: match.start()].encode("utf-8", "surrogateescape")
            raise _no_text(path, len(before))
        return _ODD.sub(_character if match.lastgroup == "string" else "?", match.group())

    if _ODD.search(text) is not None:
        text = _PIECE.sub(piece, text)
    return _lines(text.removeprefix("\ufeff"))


def _lines(text: str) -> str:
    """Return a text whose lines all end in a single line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _no_text(path: str | Path, byte: int) -> CaffeFileError:
    return CaffeFileError(
        path, f"is not a text file (byte {byte} is not UTF-8); is it a binary model?"
    )
