"""Text files of protobuf: every mistake has a line, and no unknown field is dropped in silence.

protobuf's own parser either stops at the first field that the schema lacks or skips it without
a word. Here a light walk over the text finds those fields first, notes each and blanks it out,
so that the parser sees the rest with every line and column where it was.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from caffeio.errors import CaffeFileError

__all__ = ["format_text", "parse_text", "read_text_file"]

M = TypeVar("M", bound=Message)

_TOKEN = re.compile(
    r"""(?P<skip>(?:\s|\#[^\n]*)+)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<word>[A-Za-z_]\w*)
    |(?P<number>[-+]?(?:\d|\.\d)[\w.+-]*)
    |(?P<mark>[-{}<>\[\]:,;])""",
    re.VERBOSE,
)
_WHOLE_FLOAT = re.compile(r"^(\s*\w+: -?\d+)\.0$", re.MULTILINE)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Unknown:
    """A part of the text that the schema has no place for."""

    start: int
    end: int
    what: str


class _OddText(Exception):
    """The walk does not understand the text; the parser will say what is wrong with it."""


class _Walk:
    """Walks a text beside its schema and collects what the schema lacks."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.unknown: list[_Unknown] = []
        self._at = 0
        self._next = self._scan()

    def _scan(self) -> _Token:
        while self._at < len(self.text):
            match = _TOKEN.match(self.text, self._at)
            if match is None:
                raise _OddText
            self._at = match.end()
            if match.lastgroup != "skip":
                return _Token(str(match.lastgroup), match.group(), match.start(), match.end())
        return _Token("end", "", self._at, self._at)

    def _take(self) -> _Token:
        token = self._next
        self._next = self._scan()
        return token

    def message(self, schema: Any, closer: str) -> None:
        """Walk the fields of one message up to `closer` ('' is the end of the text)."""
        while self._next.text != closer:
            name = self._take()
            if name.kind != "word":
                raise _OddText
            field = schema.fields_by_name.get(name.text) if schema else None
            if self._next.text == ":":
                self._take()
            unknown_count = len(self.unknown)
            end = self._value(field)
            if schema is not None and field is None:
                del self.unknown[unknown_count:]
                what = f"field '{name.text}' of {schema.name} is not known"
                self.unknown.append(_Unknown(name.start, end, what))
            elif field is not None and field.name == "engine" and len(self.unknown) > unknown_count:
                # Which library computes does not change the result: forks have their own.
                self.unknown[-1] = _Unknown(name.start, end, self.unknown[-1].what)
            if self._next.text in {",", ";"}:
                self._take()

    def _value(self, field: Any) -> int:
        """Walk one value, a list of them or a message; return where it ends."""
        schema = field.message_type if field else None
        token = self._take()
        if token.text in {"{", "<"}:
            self.message(schema, "}" if token.text == "{" else ">")
            return self._take().end
        if token.text == "[":
            while self._next.text != "]":
                self._value(field)
                if self._next.text == ",":
                    self._take()
            return self._take().end
        if token.text == "-":
            token = self._take()
        if token.kind == "string":
            while self._next.kind == "string":
                token = self._take()
        elif token.kind not in {"word", "number"}:
            raise _OddText
        values = field.enum_type.values_by_name if field and field.enum_type else None
        if field and field.name == "engine" and values and token.text not in values:
            what = f"engine '{token.text}' is not known"
            self.unknown.append(_Unknown(token.start, token.end, what))
        return token.end


def parse_text(
    text: str, message: M, path: str | Path, *, last_wins: bool = False
) -> tuple[M, tuple[str, ...]]:
    """Parse the text form of a protobuf message.

    Parameters
    ----------
    text : str
        The text.
    message : Message
        An empty message of the type expected; it is filled.
    path : path-like
        The file's name, for errors and notes.
    last_wins : bool
        Of a field that is given twice but can be there once, take the last; otherwise an error.

    Returns
    -------
    message : Message
    notes : tuple of str
        One sentence, with the line, for each field that the schema lacks and that was
        left out.

    Raises
    ------
    CaffeFileError
        With line and column if the text is not of the format; without if a required field
        is missing.
    """
    walk_text = text
    notes = []
    for part in _unknown_parts(text, message):
        line = text.count("\n", 0, part.start) + 1
        notes.append(f"{path}:{line}: {part.what}; it is ignored")
        blank = re.sub(r"[^\n]", " ", text[part.start : part.end])
        walk_text = walk_text[: part.start] + blank + walk_text[part.end :]
    try:
        (text_format.Merge if last_wins else text_format.Parse)(walk_text, message)
    except text_format.ParseError as error:
        what = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("caffeio.", "").strip()
        raise CaffeFileError(path, what, error.GetLine(), error.GetColumn()) from None
    missing = message.FindInitializationErrors()  # type: ignore[attr-defined]
    if missing:
        raise CaffeFileError(path, f"required fields are missing: {', '.join(missing)}")
    return message, tuple(notes)


def _unknown_parts(text: str, message: Message) -> list[_Unknown]:
    try:
        walk = _Walk(text)
    except _OddText:
        return []
    # What was found is blanked even if the walk stops: the parser then stops at the real mistake.
    with contextlib.suppress(_OddText, RecursionError):
        walk.message(message.DESCRIPTOR, "")
    return sorted(walk.unknown, key=lambda part: part.start)


def read_text_file(path: str | Path) -> str:
    """Return a text file's content, without a byte order mark.

    Raises
    ------
    CaffeFileError
        If the file cannot be read or is not UTF-8 text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaffeFileError(
            path, f"is not a text file (byte {error.start} is not UTF-8); is it a binary model?"
        ) from None
    except OSError as error:
        raise CaffeFileError(path, f"cannot be read: {error.strerror}") from None


def format_text(message: Message) -> str:
    """Return a message as text that Caffe's own parser reads.

    Floats are the shortest decimals that give the same float32; whole ones have no ".0", so
    that a schema that declares the field as an integer reads them too.
    """
    return _WHOLE_FLOAT.sub(r"\1", text_format.MessageToString(message))
