"""Binary weights, .caffemodel: the current format, V1 and V0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from caffeio import wire
from caffeio.atomic import atomic_write
from caffeio.blobs import FileBlob, decode_blob, encode_blob
from caffeio.errors import CaffeFileError
from caffeio.files import decoded, read_bytes
from caffeio.proto import caffe_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from caffeio.graph import Net

__all__ = ["Weights", "read_caffemodel", "write_caffemodel"]

_NET_LAYER, _NET_V1 = 100, 2


@dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Attributes
    ----------
    path : Path
    layers : mapping of str to tuple of FileBlob or None
        By layer name, in the file's order; only layers with blobs. None is a blob that the file
        leaves to another layer, which shares it.
    notes : tuple of str
        What the file holds that the schema does not know.
    """

    path: Path
    layers: Mapping[str, tuple[FileBlob | None, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Form:
    """Where one format of a layer keeps what is needed."""

    message: type[Message]
    name: int
    type: int
    blobs: int


_CURRENT = _Form(pb.LayerParameter, 1, 2, 7)
_V1 = _Form(pb.V1LayerParameter, 4, 5, 6)
_V0 = _Form(pb.V0LayerParameter, 1, 2, 50)
_V1_NESTED = 1  # V1LayerParameter.layer, a V0 layer
_V1_SPLIT = str(pb.V1LayerParameter.SPLIT)


@dataclass
class _Layer:
    name: str = ""
    type: str = ""
    blobs: list[FileBlob] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_caffemodel(path: str | Path) -> Weights:
    """Read the weights of a .caffemodel.

    Parameters
    ----------
    path : path-like
        A NetParameter in protobuf's binary form, current, V1 or V0.

    Returns
    -------
    Weights
        Of two layers of one name the later counts, as in Caffe.

    Raises
    ------
    CaffeFileError
        If the file cannot be read, is cut short, is no caffemodel, or a blob's shape does not
        fit its data; it names the layer.
    """
    path = Path(path)
    data = memoryview(read_bytes(path))
    layers: dict[str, tuple[FileBlob, ...]] = {}
    notes: list[str] = []
    count = 0
    field_numbers = set(pb.NetParameter.DESCRIPTOR.fields_by_number)
    last = ""
    try:
        for item in wire.fields(data):
            if item.number in {_NET_LAYER, _NET_V1} and item.wire == wire.LENGTH:
                layer = _layer(data, item, _CURRENT if item.number == _NET_LAYER else _V1, path)
                count, last = count + 1, layer.name
                notes += layer.notes
                if layer.blobs and layer.type not in {"Split", "split", _V1_SPLIT}:
                    layers.pop(layer.name, None)
                    layers[layer.name] = tuple(layer.blobs)
            elif item.number not in field_numbers:
                notes.append(
                    f"{path}: the net has a field {item.number} that is not known; it is ignored"
                )
    except wire.WireError as error:
        where = f"after layer '{last}' " if last else ""
        raise CaffeFileError(
            path, f"is cut short or is no caffemodel: {where}at byte {error.at}, {error}"
        ) from None
    if count == 0:
        raise CaffeFileError(path, "holds no layers; is it a caffemodel?")
    return Weights(path, layers, tuple(notes))


def _layer(data: memoryview, outer: wire.Field, form: _Form, path: Path) -> _Layer:
    layer = _Layer()
    rest = []
    spans = []
    for item in wire.fields(data, outer.start, outer.end):
        if item.number == form.name:
            layer.name = decoded(bytes(data[item.start : item.end]))
        elif item.number == form.type:
            layer.type = (
                decoded(bytes(data[item.start : item.end]))
                if item.wire == wire.LENGTH
                else str(item.value)
            )
        elif item.number == form.blobs and item.wire == wire.LENGTH:
            spans.append(item)
        elif form is _V1 and item.number == _V1_NESTED and item.wire == wire.LENGTH:
            return _layer(data, item, _V0, path)
        else:
            head = wire.put_varint(item.number << 3 | item.wire)
            size = wire.put_varint(item.end - item.start) if item.wire == wire.LENGTH else b""
            rest.append(head + size + bytes(data[item.start : item.end]))
    for i, item in enumerate(spans):
        try:
            blob = decode_blob(data, item.start, item.end)
        except wire.WireError as error:
            raise CaffeFileError(path, f"blob {i} of layer '{layer.name}': {error}") from None
        layer.blobs.append(blob)
        layer.notes += [
            f"{path}: layer '{layer.name}': blob {i} has a field {number} that is "
            "not known; it is ignored"
            for number in blob.unknown
        ]
    layer.notes += [
        f"{path}: layer '{layer.name}' has a field {number} that is not known; it is ignored"
        for number in _unknown(form.message, b"".join(rest))
    ]
    return layer


def _unknown(message_type: type[Message], data: bytes) -> list[str]:
    """Name the fields, however deep, that the schema does not know: "106.33" is one inside 106."""
    from google.protobuf.message import DecodeError

    try:
        message = message_type.FromString(data)
    except DecodeError:
        # A fork may use a number of this schema for something else. The parameters come from
        # the prototxt, so nothing is lost, but it is said.
        return [
            str(f.number)
            for f in wire.fields(memoryview(data))
            if not _decodes(message_type, data[_start(data, f) : f.end])
        ]
    return list(dict.fromkeys(_unknown_in(message, "")))


def _start(data: bytes, item: wire.Field) -> int:
    size = len(wire.put_varint(item.end - item.start)) if item.wire == wire.LENGTH else 0
    return item.start - size - len(wire.put_varint(item.number << 3 | item.wire))


def _decodes(message_type: type[Message], data: bytes) -> bool:
    from google.protobuf.message import DecodeError

    try:
        message_type.FromString(data)
    except DecodeError:
        return False
    return True


def _unknown_in(message: Message, prefix: str) -> Iterator[str]:
    from google.protobuf.unknown_fields import UnknownFieldSet

    for item in UnknownFieldSet(message):  # type: ignore[attr-defined]
        yield f"{prefix}{item.field_number}"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            inner = value if descriptor.is_repeated else [value]
            for each in inner:
                yield from _unknown_in(each, f"{prefix}{descriptor.number}.")


def write_caffemodel(net: Net, path: str | Path, overwrite: bool = False) -> None:
    """Write a net's weights so that Caffe and its forks read them.

    Only names, types and blobs are written: the numbers of some parameters differ between
    forks, and the prototxt carries them. float32 keeps every bit.

    Parameters
    ----------
    net : Net
        Its blobs are float32, or int8, int32 and uint64 in a deploy model.
    path : path-like
        The file to be made.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    CaffeFileError
        If the file cannot be written.
    TypeError
        If a blob has another dtype; it names the layer.
    """
    with atomic_write(path, overwrite) as temporary, temporary.open("wb") as out:
        out.write(wire.put(1, net.name.encode()))
        for layer in net.layers:
            body: list[wire.Piece] = [
                wire.put(_CURRENT.name, layer.name.encode()),
                wire.put(_CURRENT.type, layer.type.encode()),
            ]
            try:
                for blob in layer.blobs:
                    body += wire.put_pieces(_CURRENT.blobs, encode_blob(blob))
            except TypeError as error:
                raise TypeError(f"layer '{layer.name}': {error}") from None
            out.writelines(wire.put_pieces(_NET_LAYER, body))
