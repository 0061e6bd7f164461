"""Text files of protobuf: every mistake has a line, and no unknown field is dropped in silence.

protobuf's own parser either stops at the first field that the schema lacks or skips it without
a word. Here a light walk over the text finds those fields first and blanks them out, so that the
parser sees the rest with every line and column where it was. Those of a layer go into its message
(`unknown_field`) and are written again where they stood; of others a note is made.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import Message

from caffeio.errors import CaffeFileError

__all__ = ["as_written", "format_text", "parse_text"]

M = TypeVar("M", bound=Message)

_TOKEN = re.compile(
    r"""(?P<skip>(?:\s|\#[^\n]*)+)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<word>[A-Za-z_]\w*)
    |(?P<number>[-+]?(?:\d|\.\d)[\w.+-]*)
    |(?P<mark>[-{}<>\[\]:,;])""",
    re.VERBOSE,
)
#: Messages that are a layer, in the formats of a net.
_LAYERS = {"LayerParameter", "V1LayerParameter", "V0LayerParameter"}
#: The name of a part that is a V1 layer's type, which forks have more of than the enum.
_V1_TYPE = "type"
_WHOLE_FLOAT = re.compile(r"^(\s*\w+: -?\d+)\.0$", re.MULTILINE)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Place(NamedTuple):
    """Where a message stands: the layer that it is part of, if any, and its path from there."""

    layer: tuple[tuple[str, int], ...] | None  # fields and positions that lead to the layer
    path: tuple[tuple[str, int], ...] = ()

    def inner(self, schema: Any, field: Any, index: int) -> _Place:
        """Return the place of a message that is a field of this one, `schema` being its own."""
        here = (*self.path, (field.name, index if field.is_repeated else -1))
        if schema.name in _LAYERS:
            return _Place((*(self.layer or ()), *here))
        return _Place(self.layer, here)


_NOWHERE = _Place(None)


@dataclass(frozen=True)
class _Unknown:
    """A part of the text that the schema has no place for."""

    start: int
    end: int
    what: str
    place: _Place = _NOWHERE
    name: str = ""
    message: str = ""


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

    def message(self, schema: Any, closer: str, place: _Place = _NOWHERE) -> None:
        """Walk the fields of one message up to `closer` ('' is the end of the text)."""
        counts: dict[str, int] = {}
        while self._next.text != closer:
            name = self._take()
            if name.kind != "word":
                raise _OddText
            field = schema.fields_by_name.get(name.text) if schema else None
            if self._next.text == ":":
                self._take()
            unknown_count = len(self.unknown)
            end = self._value(field, place, counts)
            if schema is not None and field is None:
                del self.unknown[unknown_count:]
                what = f"field '{name.text}' of {schema.name} is not known"
                part = _Unknown(name.start, end, what, place, name.text, schema.name)
                self.unknown.append(part)
            elif field is not None and len(self.unknown) > unknown_count:
                if field.name == "engine":
                    # Which library computes does not change the result: forks have their own.
                    self.unknown[-1] = _Unknown(name.start, end, self.unknown[-1].what)
                elif field.name == "type" and schema.name == "V1LayerParameter":
                    part = _Unknown(name.start, end, self.unknown[-1].what, place, _V1_TYPE)
                    self.unknown[-1] = part
            if self._next.text in {",", ";"}:
                self._take()

    def _value(self, field: Any, place: _Place, counts: dict[str, int]) -> int:
        """Walk one value, a list of them or a message; return where it ends."""
        schema = field.message_type if field else None
        token = self._take()
        if token.text in {"{", "<"}:
            if schema is not None:
                index = counts.get(field.name, 0)
                counts[field.name] = index + 1
                place = place.inner(schema, field, index)
            self.message(schema, "}" if token.text == "{" else ">", place)
            return self._take().end
        if token.text == "[":
            while self._next.text != "]":
                self._value(field, place, counts)
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
        elif field and field.enum_type and token.kind == "word":
            self._enum_value(field, token)
        return token.end

    def _enum_value(self, field: Any, token: _Token) -> None:
        """Record a value that an enum lacks, where forks are known to have more of them."""
        if token.text in field.enum_type.values_by_name:
            return
        if field.name == "engine":
            what = f"engine '{token.text}' is not known"
            self.unknown.append(_Unknown(token.start, token.end, what))
        elif field.name == "type" and field.containing_type.name == "V1LayerParameter":
            self.unknown.append(_Unknown(token.start, token.end, token.text))


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
        left out. Those of a layer are in its message: `unknown_field`, `unknown_type`.

    Raises
    ------
    CaffeFileError
        With line and column if the text is not of the format; without if a required field
        is missing.
    """
    parts = _unknown_parts(text, message)
    try:
        (text_format.Merge if last_wins else text_format.Parse)(_blanked(text, parts), message)
    except text_format.ParseError as error:
        what = re.sub(r"^\d+:\d+ : ", "", str(error)).replace("caffeio.", "").strip()
        raise CaffeFileError(path, what, error.GetLine(), error.GetColumn()) from None
    notes = []
    line = seen = 0
    for part in parts:
        line += text.count("\n", seen, part.start)
        seen = part.start
        if part.place.layer is None:
            notes.append(f"{path}:{line + 1}: {part.what}; it is ignored")
        else:
            _keep(message, part, text, path, line + 1)
    missing = message.FindInitializationErrors()  # type: ignore[attr-defined]
    if missing:
        raise CaffeFileError(path, f"required fields are missing: {', '.join(missing)}")
    return message, tuple(notes)


def _blanked(text: str, parts: Sequence[_Unknown]) -> str:
    """Return the text with spaces for these parts, which follow one another."""
    pieces, end = [], 0
    for part in parts:
        pieces += [text[end : part.start], re.sub(r"[^\n]", " ", text[part.start : part.end])]
        end = part.end
    return "".join([*pieces, text[end:]])


def _keep(message: Any, part: _Unknown, text: str, path: str | Path, line: int) -> None:
    """Put an unknown part into the message of its layer."""
    assert part.place.layer is not None
    for name, index in part.place.layer:
        message = getattr(message, name)
        if index >= 0:
            message = message[index]
    if part.name == _V1_TYPE and not part.message:
        message.unknown_type = part.what
        return
    message.unknown_field.add(
        path=_joined(part.place.path),
        message=part.message,
        name=part.name,
        text=text[part.start : part.end],
        file=str(path),
        line=line,
    )


def _joined(path: Sequence[tuple[str, int]]) -> str:
    """Return a path as text: ``convolution_param.weight_filler``, ``param[1]``."""
    return ".".join(name if index < 0 else f"{name}[{index}]" for name, index in path)


def _unknown_parts(text: str, message: Message) -> list[_Unknown]:
    try:
        walk = _Walk(text)
    except _OddText:
        return []
    # What was found is blanked even if the walk stops: the parser then stops at the real mistake.
    with contextlib.suppress(_OddText, RecursionError):
        walk.message(message.DESCRIPTOR, "")
    return sorted(walk.unknown, key=lambda part: part.start)


def format_text(message: Message, unknown: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a message as text that Caffe's own parser reads.

    Floats are the shortest decimals that give the same float32; whole ones have no ".0", so
    that a schema that declares the field as an integer reads them too.

    Parameters
    ----------
    message : Message
    unknown : mapping of str to sequence of str, optional
        Text to add at the end of messages within, by path: ``layer[3].dropout_param``. What has
        no place in `message` is left out.
    """
    text = _WHOLE_FLOAT.sub(r"\1", text_format.MessageToString(message))
    return _with_unknown(text, message.DESCRIPTOR, unknown) if unknown else text


def _with_unknown(text: str, schema: Any, unknown: Mapping[str, Sequence[str]]) -> str:
    """Return a formatted text with more in some of its messages."""
    lines: list[str] = []
    # of each message that is open: its schema, its path, and how often it has had each field
    open_messages: list[tuple[Any, str, dict[str, int]]] = [(schema, "", {})]
    for line in text.splitlines():
        schema, path, counts = open_messages[-1]
        if line.endswith(" {"):  # a string would end with its quote
            name = line[:-2].strip()
            field = schema.fields_by_name[name]
            index = counts[name] = counts.get(name, -1) + 1
            step = f"{name}[{index}]" if field.is_repeated else name
            inner = f"{path}.{step}" if path else step
            open_messages.append((field.message_type, inner, {}))
        elif line.endswith("}"):
            indent = "  " * (len(open_messages) - 1)
            lines += [f"{indent}{part}" for part in unknown.get(path, ())]
            open_messages.pop()
        lines.append(line)
    return "\n".join([*lines, ""])


def as_written(value: float) -> float:
    """Return the decimal that a text gave a float field: 0.7, not the float32 nearest to it."""
    return float(str(np.float32(value)))
