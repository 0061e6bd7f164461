"""A solver's state, .solverstate and .solverstate.h5: where a training of Caffe's stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffeio import wire
from caffeio.atomic import atomic_write
from caffeio.blobs import decode_blob, encode_blob
from caffeio.errors import CaffeFileError
from caffeio.files import read_bytes
from caffeio.hdf5 import import_h5py, is_hdf5

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["SolverState", "read_solver_state", "write_solver_state"]

_ITER, _LEARNED_NET, _HISTORY, _CURRENT_STEP = 1, 2, 3, 4
_FIELDS = {
    _ITER: ("iter", wire.VARINT),
    _LEARNED_NET: ("learned_net", wire.LENGTH),
    _HISTORY: ("history", wire.LENGTH),
    _CURRENT_STEP: ("current_step", wire.VARINT),
}
_NET_NAME, _NET_LAYER = 1, 100  # of a NetParameter
_INT_MAX = 2**31 - 1
_CODING = ("utf-8", "surrogateescape")  # a file's name may be no UTF-8, and opens nevertheless


@dataclass(frozen=True)
class SolverState:
    """Where a training stands.

    Attributes
    ----------
    iteration : int
        How often the weights have been updated, 0 to 2**31 - 1.
    learned_net : str
        The file with the weights of that iteration, as Caffe was told it: a relative path is
        meant from the folder where Caffe was started. Empty if none is named.
    current_step : int
        The steps of the learning rate that have passed.
    history : tuple of ndarray
        What the solver remembers, float32, C-contiguous and finite; none where the net has no
        parameters.
    notes : tuple of str
        What the file holds that is not used, a sentence each.

    Notes
    -----
    P is the count of the net's learnable parameters: all blobs of its layers, layer after
    layer, those that stand still (lr_mult 0, BatchNorm's statistics) among them; a blob that
    layers share by name counts once, at the first. SGD, Nesterov, AdaGrad and RMSProp keep P
    blobs in that order. AdaDelta and Adam keep 2P: the first history of every parameter, then
    the second of every parameter; for Adam the mean and the mean square of the gradient, for
    AdaDelta the mean squares of the gradient and of the update. A blob has as many values as
    its parameter but may have another shape: old files give four axes to each.
    """

    iteration: int
    learned_net: str
    current_step: int
    history: tuple[np.ndarray, ...]
    notes: tuple[str, ...] = ()


def read_solver_state(path: str | Path) -> SolverState:
    """Read a solver's state.

    Parameters
    ----------
    path : path-like
        A SolverState in protobuf's binary form or an HDF5 file, told apart by the content.

    Returns
    -------
    SolverState
        Blobs have the shape that the file gives them; doubles are narrowed to float32.

    Raises
    ------
    CaffeFileError
        If the file cannot be read, is damaged, is no solver state or lacks a part of it, or if
        a blob of the history is empty, not of floats or not finite; it names the blob.
    """
    path = Path(path)
    state = _read_hdf5(path) if is_hdf5(path) else _read_binary(path)
    _check(state, path)
    return state


def write_solver_state(
    state: SolverState, path: str | Path, overwrite: bool = False, *, hdf5: bool = False
) -> None:
    """Write a solver's state so that Caffe goes on from it; float32 keeps every bit.

    Parameters
    ----------
    state : SolverState
        Its notes are not written.
    path : path-like
        The file to be made. Caffe takes a name that ends in ``.h5`` for HDF5, every other one
        for the binary form.
    overwrite : bool
        Whether an existing file may be replaced.
    hdf5 : bool
        Write HDF5 instead of the binary form.

    Raises
    ------
    CaffeFileError
        If the file cannot be written, the state is one that `read_solver_state` refuses, or
        HDF5 is asked for and h5py is missing.
    """
    path = Path(path)
    _check(state, path)
    if hdf5:
        _write_hdf5(state, path, overwrite)
        return
    with atomic_write(path, overwrite) as temporary, temporary.open("wb") as out:
        out.write(_put_number(_ITER, state.iteration))
        if state.learned_net:
            out.write(wire.put(_LEARNED_NET, state.learned_net.encode(*_CODING)))
        for blob in state.history:
            out.writelines(wire.put_pieces(_HISTORY, encode_blob(blob)))
        out.write(_put_number(_CURRENT_STEP, state.current_step))


def _check(state: SolverState, path: Path) -> None:
    for name, number in (("iter", state.iteration), ("current_step", state.current_step)):
        if not 0 <= number <= _INT_MAX:
            raise CaffeFileError(path, f"{name} is {number}; it must be 0 to {_INT_MAX}")
    if "\0" in state.learned_net:
        raise CaffeFileError(path, "learned_net holds a zero byte; it must be a file's name")
    for i, blob in enumerate(state.history):
        if blob.dtype != np.float32:
            raise CaffeFileError(path, f"history blob {i} is {blob.dtype}; it must be float32")
        if not blob.size:
            raise CaffeFileError(path, f"history blob {i} has no values")
        bad = blob.size - int(np.isfinite(blob).sum())
        if bad:
            raise CaffeFileError(
                path,
                f"history blob {i} holds {bad} values that are NaN or infinite; "
                "take the state of an earlier iteration",
            )


def _read_binary(path: Path) -> SolverState:
    data = memoryview(read_bytes(path))
    if not data:
        raise CaffeFileError(path, "is empty")
    by_number: dict[int, list[wire.Field]] = {}
    try:
        for field in wire.fields(data):
            by_number.setdefault(field.number, []).append(field)
    except wire.WireError as error:
        raise CaffeFileError(
            path, f"is cut short or is no solver state: at byte {error.at}, {error}"
        ) from None
    _check_fields(by_number, path)
    history = []
    unknown = [str(number) for number in sorted(by_number.keys() - _FIELDS.keys())]
    for i, field in enumerate(by_number.get(_HISTORY, [])):
        try:
            blob = decode_blob(data, field.start, field.end)
        except wire.WireError as error:
            raise CaffeFileError(path, f"history blob {i}: {error}") from None
        history.append(blob.array)
        unknown += [f"{_HISTORY}.{number}" for number in blob.unknown]
    name = by_number.get(_LEARNED_NET)
    return SolverState(
        iteration=_number(by_number[_ITER]),
        learned_net=bytes(data[name[-1].start : name[-1].end]).decode(*_CODING) if name else "",
        current_step=_number(by_number.get(_CURRENT_STEP, [])),
        history=tuple(history),
        notes=tuple(
            f"{path}: the state has a field {number} that is not known; it is ignored"
            for number in dict.fromkeys(unknown)
        ),
    )


def _check_fields(by_number: dict[int, list[wire.Field]], path: Path) -> None:
    """Check what can be told of a file before its history is read."""
    named = any(field.wire == wire.LENGTH for field in by_number.get(_NET_NAME, []))
    if named or _NET_LAYER in by_number:
        raise CaffeFileError(
            path, "is a caffemodel; the solver's state is in the .solverstate beside it"
        )
    for number, (name, kind) in _FIELDS.items():
        if any(field.wire != kind for field in by_number.get(number, [])):
            raise CaffeFileError(path, f"{name} is of a wrong type; is it a solver state?")
    if _ITER not in by_number:
        raise CaffeFileError(path, "has no iter; is it a solver state?")


def _number(fields: list[wire.Field]) -> int:
    """Return an int32 field; the last one counts, and 0 stands for none."""
    low = fields[-1].value & 0xFFFFFFFF if fields else 0
    return low - 2**32 if low > _INT_MAX else low


def _put_number(number: int, value: int) -> bytes:
    return wire.put_varint(number << 3 | wire.VARINT) + wire.put_varint(int(value))


def _read_hdf5(path: Path) -> SolverState:
    h5py = import_h5py(path)
    try:
        with h5py.File(path, "r") as file:
            return _from_hdf5(file, path, h5py)
    except CaffeFileError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        # h5py raises each of these for some damage or other
        raise CaffeFileError(path, f"cannot be read as HDF5: {error}") from None


def _from_hdf5(file: Any, path: Path, h5py: ModuleType) -> SolverState:
    if isinstance(file.get("data"), h5py.Group) and "iter" not in file:
        raise CaffeFileError(
            path, "holds weights; the solver's state is in the .solverstate.h5 beside it"
        )
    for name in ("iter", "current_step"):
        if not isinstance(file.get(name), h5py.Dataset):
            raise CaffeFileError(path, f"has no {name}; is it a solver state?")
        if file[name].size != 1 or file[name].dtype.kind not in "iu":
            raise CaffeFileError(path, f"{name} is not a whole number")
    learned_net = ""
    if "learned_net" in file:
        text = file["learned_net"]
        if not isinstance(text, h5py.Dataset) or not h5py.check_string_dtype(text.dtype):
            raise CaffeFileError(path, "learned_net is not a text")
        if text.size != 1:
            raise CaffeFileError(path, "learned_net is not one text")
        learned_net = np.asarray(text[()]).item().decode(*_CODING)
    if not isinstance(file.get("history"), h5py.Group):
        raise CaffeFileError(path, "has no group 'history'; is it a solver state?")
    return SolverState(
        iteration=int(np.asarray(file["iter"][()]).item()),
        learned_net=learned_net,
        current_step=int(np.asarray(file["current_step"][()]).item()),
        history=_hdf5_history(file["history"], path, h5py),
        notes=tuple(
            f"{path}: the state has a '{name}' that is not known; it is ignored"
            for name in sorted(set(file) - {name for name, _ in _FIELDS.values()})
        ),
    )


def _hdf5_history(group: Any, path: Path, h5py: ModuleType) -> tuple[np.ndarray, ...]:
    blobs = []
    for i in range(len(group)):  # not as the file lists them: there "10" comes before "2"
        item = group.get(str(i))
        if item is None:
            raise CaffeFileError(path, f"history blob {i} of {len(group)} is missing")
        if not isinstance(item, h5py.Dataset) or item.dtype.kind != "f" or item.shape is None:
            raise CaffeFileError(path, f"history blob {i} is not of floats")
        with np.errstate(over="ignore"):  # gives infinity, which `_check` refuses
            blobs.append(np.array(item[()], np.float32, order="C"))
    return tuple(blobs)


def _write_hdf5(state: SolverState, path: Path, overwrite: bool) -> None:
    try:
        import h5py
    except ImportError:
        raise CaffeFileError(
            path, "writing HDF5 needs h5py: pip install caffe-quant[data]"
        ) from None
    with atomic_write(path, overwrite) as temporary, h5py.File(temporary, "w") as file:
        file["iter"] = np.array([state.iteration], np.int32)
        if state.learned_net:
            _put_text(file, b"learned_net", state.learned_net.encode(*_CODING), h5py)
        file["current_step"] = np.array([state.current_step], np.int32)
        group = file.create_group("history")
        for i, blob in enumerate(state.history):
            group[str(i)] = blob


def _put_text(file: Any, name: bytes, text: bytes, h5py: ModuleType) -> None:
    """Write a text that ends in a zero byte, on which Caffe relies; plain h5py writes none."""
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text) + 1)
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    dataset = h5py.h5d.create(file.id, name, kind, space)
    dataset.write(space, space, np.array(text, f"S{len(text) + 1}"), mtype=kind)
