"""Reading and writing nets: a prototxt and its weights to a `Net`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caffeio.atomic import atomic_write
from caffeio.attach import attach_weights
from caffeio.caffemodel import read_caffemodel
from caffeio.errors import CaffeFileError, NetError
from caffeio.files import read_proto_text
from caffeio.graph import Layer, Net
from caffeio.hdf5 import is_hdf5, read_hdf5_weights
from caffeio.names import automatic_tops, single_names
from caffeio.padding import even_padding
from caffeio.phases import filter_layers
from caffeio.proto import caffe_pb2 as pb
from caffeio.prototxt import format_text, parse_text
from caffeio.unknown import UnknownField, unknown_notes
from caffeio.upgrade import upgrade_net

__all__ = ["parse_net", "read_net", "to_prototxt", "write_prototxt"]


def read_net(
    prototxt: str | Path | pb.NetParameter,
    weights: str | Path | None = None,
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Sequence[str] = (),
    partial: bool = False,
    state: pb.NetState | None = None,
    path: str | Path | None = None,
) -> Net:
    """Read a net and its weights.

    Parameters
    ----------
    prototxt : path-like or NetParameter
        The net as text, in the current format, V1 or V0, or the message of such a text.
    weights : path-like, optional
        A .caffemodel of any format, or an HDF5 snapshot; told apart by the content.
    phase : {"TEST", "TRAIN"}
        Whose layers to take.
    level : int
        For the layers' min_level and max_level rules.
    stages : sequence of str
        For the layers' stage and not_stage rules.
    partial : bool
        The weights may lack layers of the net, which stay without any.
    state : NetState, optional
        A solver's train_state or test_state. It goes before the state that the net gives
        itself, and its stages are added, as in Caffe.
    path : path-like, optional
        The file that a message is from, for errors and notes.

    Returns
    -------
    Net
        In the current format. `notes` says what was found and not used.

    Raises
    ------
    CaffeFileError
        If a file cannot be read or is not of its format.
    NetError
        If the net is wrong, or the weights do not fit it.
    """
    notes: tuple[str, ...] = ()
    if isinstance(prototxt, pb.NetParameter):
        path = "<message>" if path is None else path
        message = prototxt
    else:
        path = prototxt
        message, notes = parse_text(read_proto_text(path), pb.NetParameter(), path)
    if state is not None:
        message = _with_state(message, state, path, phase)
    net = _net(message, notes, path, phase, level, stages)
    if weights is None:
        return net
    read = read_hdf5_weights if is_hdf5(weights) else read_caffemodel
    return even_padding(attach_weights(net, read(weights), partial=partial))


def parse_net(
    text: str,
    path: str | Path = "<text>",
    phase: str = "TEST",
    *,
    level: int = 0,
    stages: Sequence[str] = (),
) -> Net:
    """Make a net of a prototxt's text, without weights.

    Parameters
    ----------
    text : str
    path : path-like
        The file's name, for errors and notes.
    phase, level, stages
        As for `read_net`.

    Returns
    -------
    Net

    Raises
    ------
    CaffeFileError, NetError
        As for `read_net`.
    """
    message, notes = parse_text(text, pb.NetParameter(), path)
    return _net(message, notes, path, phase, level, stages)


def _with_state(
    message: pb.NetParameter, state: pb.NetState, path: str | Path, phase: str
) -> pb.NetParameter:
    """Return a net with a solver's state put over its own, as Caffe's ``InitTrainNet``."""
    net = pb.NetParameter()
    net.CopyFrom(message)
    net.state.MergeFrom(state)
    if net.state.HasField("phase") and pb.Phase.Name(net.state.phase) != phase:
        # Caffe would build the net for that phase: train it without Dropout, say.
        raise CaffeFileError(
            path,
            f"the {phase} net is given the phase {pb.Phase.Name(net.state.phase)}; "
            "remove it from the net's state and from the solver's",
        )
    return net


def _net(
    message: pb.NetParameter,
    notes: tuple[str, ...],
    path: str | Path,
    phase: str,
    level: int,
    stages: Sequence[str],
) -> Net:
    """Make a net of a message, without weights; `notes` are those of its text."""
    if phase not in {"TEST", "TRAIN"}:
        raise ValueError(f"phase is 'TEST' or 'TRAIN', not {phase!r}")
    upgraded, upgrade_notes = upgrade_net(message)
    if not upgraded.layer:
        raise CaffeFileError(path, "describes no layers; is it the prototxt of a net?")
    state = pb.NetState()
    state.CopyFrom(upgraded.state)
    state.phase = pb.TEST if phase == "TEST" else pb.TRAIN
    if level or not state.HasField("level"):
        state.level = level
    state.stage.extend(s for s in stages if s not in state.stage)
    layers = filter_layers(upgraded.layer, state)
    if not layers:
        raise CaffeFileError(path, f"has no layers for phase {phase}")
    notes += tuple(f"{path}: {note}" for note in upgrade_notes)
    notes += tuple(
        f"{path}: layer '{p.name}' has blobs in the text; they are ignored"
        for p in layers
        if p.blobs
    )
    named, name_notes = single_names(automatic_tops([_layer(p) for p in layers]), phase)
    notes += tuple(f"{path}: {note}" for note in name_notes)
    net = Net(upgraded.name, named, phase)
    net = replace(net, notes=notes + unknown_notes(net))
    _check(net)
    return net


def _layer(message: pb.LayerParameter) -> Layer:
    if not message.type:
        raise NetError("has no type", message.name)
    param = pb.LayerParameter()
    param.CopyFrom(message)
    param.ClearField("blobs")
    param.ClearField("unknown_field")
    unknown = tuple(
        UnknownField(u.path, u.name, u.text, u.message, u.file, u.line)
        for u in message.unknown_field
    )
    bottoms, tops = tuple(message.bottom), tuple(message.top)
    return Layer(message.name, message.type, bottoms, tops, param, unknown=unknown)


def _check(net: Net) -> None:
    """Check that every blob has one maker."""
    makers: dict[str, str] = {}
    for layer in net.layers:
        for i, blob in enumerate(layer.tops):
            in_place = i < len(layer.bottoms) and layer.bottoms[i] == blob
            if blob in makers and not in_place:
                raise NetError(
                    f"makes the blob '{blob}', which layer '{makers[blob]}' has made; "
                    "only a layer that works in place may write it again",
                    layer.name,
                )
            makers[blob] = layer.name
    _ = net.links  # raises for a blob that nobody makes


def to_prototxt(net: Net) -> str:
    """Return a net as the text of a prototxt in the current format, without weights."""
    message = pb.NetParameter(name=net.name)
    unknown: dict[str, list[str]] = {}
    for i, layer in enumerate(net.layers):
        param = message.layer.add()
        param.CopyFrom(layer.param)
        param.ClearField("blobs")
        param.name, param.type = layer.name, layer.type
        param.bottom[:] = layer.bottoms
        param.top[:] = layer.tops
        for field in layer.unknown:
            path = f"layer[{i}].{field.path}".removesuffix(".")
            unknown.setdefault(path, []).append(field.text)
    return format_text(message, unknown)


def write_prototxt(net: Net, path: str | Path, overwrite: bool = False) -> None:
    """Write a net as a prototxt that Caffe reads.

    Parameters
    ----------
    net : Net
    path : path-like
        The file to be made.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    CaffeFileError
        If the file cannot be written.
    """
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(to_prototxt(net), encoding="utf-8", newline="\n")
