"""Solver states: what Caffe writes is read, what is written is Caffe's, what is wrong is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import kernel_cases as cases
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import caffeio
from caffeio import CaffeFileError, SolverState, read_solver_state, write_solver_state
from caffeio.proto import caffe_pb2 as pb

RNG = np.random.default_rng(11)
HISTORY = tuple(
    RNG.normal(size=shape).astype(np.float32) for shape in [(4, 3, 5, 5), (4,), (6, 100), (6,)]
)
STATE = SolverState(12_345, "snapshots/net_iter_12345.caffemodel", 3, HISTORY)
FORMS = pytest.mark.parametrize("hdf5", [False, True], ids=["binary", "hdf5"])


def same(a: SolverState, b: SolverState) -> bool:
    """Whether two states are alike to the last bit, whatever their notes."""
    plain = [(s.iteration, s.learned_net, s.current_step, len(s.history)) for s in (a, b)]
    return plain[0] == plain[1] and all(
        x.dtype == y.dtype == np.float32 and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(a.history, b.history, strict=True)
    )


def message(state: SolverState = STATE, legacy: bool = False) -> pb.SolverState:
    """Build the state by protobuf's own class, with blobs as Caffe or as old Caffe writes them."""
    proto = pb.SolverState(
        iter=state.iteration, learned_net=state.learned_net, current_step=state.current_step
    )
    for array in state.history:
        blob = proto.history.add(data=array.ravel().tolist())
        if legacy:
            shape = (1,) * (4 - array.ndim) + array.shape
            blob.num, blob.channels, blob.height, blob.width = shape
        else:
            blob.shape.dim.extend(array.shape)
    return proto


def binary_file(folder: Path, content: pb.SolverState | bytes) -> Path:
    path = folder / "net.solverstate"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def hdf5_file(folder: Path, state: SolverState = STATE) -> Path:
    """Write what BVLC Caffe's SnapshotSolverStateToHDF5 writes, by h5py's lowest level."""
    path = folder / "net.solverstate.h5"
    with h5py.File(path, "w") as file:
        one = h5py.h5s.create_simple((1,))
        for name, number in (("iter", state.iteration), ("current_step", state.current_step)):
            made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_INT32, one)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([number], np.int32))
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(len(state.learned_net) + 1)
        kind.set_strpad(h5py.h5t.STR_NULLTERM)
        scalar = h5py.h5s.create(h5py.h5s.SCALAR)
        made = h5py.h5d.create(file.id, b"learned_net", kind, scalar)
        text = np.array(state.learned_net.encode(), f"S{len(state.learned_net) + 1}")
        made.write(scalar, scalar, text, mtype=kind)
        history = h5py.h5g.create(file.id, b"history")
        for i, array in enumerate(state.history):
            space = h5py.h5s.create_simple(array.shape)
            made = h5py.h5d.create(history, str(i).encode(), h5py.h5t.NATIVE_FLOAT, space)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))
    return path


# --------------------------------------------------------------------------- what Caffe writes


def test_a_binary_state_is_read(tmp_path: Path) -> None:
    state = read_solver_state(binary_file(tmp_path, message()))
    assert same(state, STATE)
    assert state.notes == ()
    assert all(b.flags.c_contiguous and b.flags.writeable for b in state.history)


def test_a_legacy_state_keeps_its_four_axes(tmp_path: Path) -> None:
    state = read_solver_state(binary_file(tmp_path, message(legacy=True)))
    assert [b.shape for b in state.history] == [
        (4, 3, 5, 5), (1, 1, 1, 4), (1, 1, 6, 100), (1, 1, 1, 6),
    ]  # fmt: skip
    flat = replace(state, history=tuple(b.ravel() for b in state.history))
    assert same(flat, replace(STATE, history=tuple(b.ravel() for b in HISTORY)))


def test_what_an_old_state_lacks_is_its_default(tmp_path: Path) -> None:
    proto = message()
    proto.ClearField("current_step")
    proto.ClearField("learned_net")
    assert same(
        read_solver_state(binary_file(tmp_path, proto)),
        replace(STATE, learned_net="", current_step=0),
    )


def test_an_hdf5_state_is_read_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    history = tuple(np.full((2, i + 1), i, np.float32) for i in range(12))
    path = hdf5_file(tmp_path, replace(STATE, history=history))
    with h5py.File(path) as file:
        assert list(file["history"])[:4] == ["0", "1", "10", "11"]
    state = read_solver_state(path)
    assert same(state, replace(STATE, history=history))
    assert state.notes == ()


@pytest.mark.parametrize("name", ["a.solverstate", "b.h5", "c"])
def test_the_content_decides_not_the_name(name: str, tmp_path: Path) -> None:
    for source in (binary_file(tmp_path, message()), hdf5_file(tmp_path)):
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        assert same(read_solver_state(path), STATE)


def test_doubles_are_narrowed(tmp_path: Path) -> None:
    values = np.array([0.1, -3.0, 1e-50])
    proto = pb.SolverState(iter=1)
    proto.history.add(double_data=values.tolist()).shape.dim.append(3)
    path = hdf5_file(tmp_path)
    with h5py.File(path, "a") as file:
        del file["history"]
        file["history/0"] = values
    for state in (read_solver_state(binary_file(tmp_path, proto)), read_solver_state(path)):
        np.testing.assert_array_equal(state.history[0], values.astype(np.float32))


def test_fields_of_a_fork_are_noted(tmp_path: Path) -> None:
    path = binary_file(tmp_path, message().SerializeToString() + b"\x28\x07")
    assert [n.split(": ")[1] for n in read_solver_state(path).notes] == [
        "the state has a field 5 that is not known; it is ignored"
    ]
    path = hdf5_file(tmp_path)
    with h5py.File(path, "a") as file:
        file["minimum_loss"] = np.zeros(1, np.float32)
    notes = read_solver_state(path).notes
    assert len(notes) == 1
    assert f"{path}: the state has a 'minimum_loss'" in notes[0]


# ----------------------------------------------------------------------------- what is written


def test_protobuf_reads_what_is_written(tmp_path: Path) -> None:
    write_solver_state(STATE, tmp_path / "s")
    raw = (tmp_path / "s").read_bytes()
    assert pb.SolverState.FromString(raw) == message()
    assert len(raw) == message().ByteSize()  # packed as there


def test_hdf5_is_written_as_caffe_does(tmp_path: Path) -> None:
    write_solver_state(STATE, tmp_path / "s", hdf5=True)

    def layout(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                kind = item.id.get_type()
                text = (kind.get_strpad(), kind.get_cset()) if item.dtype.kind == "S" else ()
                found[name] = (
                    kind.get_size(), kind.get_class(), text, item.id.get_space().shape,
                    np.asarray(item[()]).tobytes(),
                )  # fmt: skip

        with h5py.File(path) as file:
            file.visititems(note)
        return found

    assert layout(tmp_path / "s") == layout(hdf5_file(tmp_path))


STATES = st.builds(
    SolverState,
    st.integers(0, 2**31 - 1),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    st.integers(0, 2**31 - 1),
    st.lists(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=0, max_dims=5, max_side=4),
            elements=cases.floats32(),
        ),
        min_size=1,
        max_size=13,
    ).map(tuple),
)


@FORMS
@cases.examples(60)
@given(state=STATES)
def test_states_round_trip(
    hdf5: bool, tmp_path_factory: pytest.TempPathFactory, state: SolverState
) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    write_solver_state(state, path, hdf5=hdf5)
    assert same(read_solver_state(path), state)


@FORMS
def test_views_are_written_in_their_own_order(hdf5: bool, tmp_path: Path) -> None:
    state = replace(STATE, history=(HISTORY[0].T, HISTORY[2][::2, ::-3]))
    write_solver_state(state, tmp_path / "s", hdf5=hdf5)
    assert same(read_solver_state(tmp_path / "s"), state)


@FORMS
def test_a_name_that_is_no_utf8_survives(hdf5: bool, tmp_path: Path) -> None:
    """A file system gives such names, and a file of that name must be found again."""
    proto = message().SerializeToString().replace(b"snapshots", b"snapsh\xf6ts")
    state = read_solver_state(binary_file(tmp_path, proto))
    assert os.fsencode(state.learned_net).startswith(b"snapsh\xf6ts/")
    write_solver_state(state, tmp_path / "s", hdf5=hdf5)
    assert same(read_solver_state(tmp_path / "s"), state)


@FORMS
def test_a_state_is_written_whole_or_not_at_all(
    hdf5: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    write_solver_state(STATE, path, hdf5=hdf5)
    before = path.read_bytes()
    with pytest.raises(CaffeFileError, match="exists already"):
        write_solver_state(STATE, path, hdf5=hdf5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    later = replace(STATE, iteration=99_999)
    with monkeypatch.context() as patch:
        patch.setattr("caffeio.solver_state.encode_blob", full)
        patch.setattr(h5py.File, "__setitem__", full)
        with pytest.raises(CaffeFileError, match=r"s: cannot be written: No space"):
            write_solver_state(later, path, overwrite=True, hdf5=hdf5)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    write_solver_state(later, path, overwrite=True, hdf5=hdf5)
    assert read_solver_state(path).iteration == 99_999


WRONG_STATES = [
    (replace(STATE, iteration=-1), "iter is -1"),
    (replace(STATE, iteration=2**31), "iter is 2147483648"),
    (replace(STATE, current_step=-2), "current_step is -2"),
    (replace(STATE, learned_net="a\0b"), "learned_net.*zero byte"),
    (replace(STATE, history=(HISTORY[0], np.zeros(3))), "blob 1 is float64"),
    (replace(STATE, history=(HISTORY[0], np.zeros((2, 0), np.float32))), "blob 1 has no values"),
    (replace(STATE, history=(np.full(2, np.inf, np.float32),)), "blob 0 holds 2 values.*NaN"),
]


@FORMS
@pytest.mark.parametrize(("state", "says"), WRONG_STATES, ids=[w[1] for w in WRONG_STATES])
def test_no_state_is_written_that_would_not_be_read(
    state: SolverState, says: str, hdf5: bool, tmp_path: Path
) -> None:
    with pytest.raises(CaffeFileError, match=rf"new\.solverstate: .*{says}"):
        write_solver_state(state, tmp_path / "new.solverstate", hdf5=hdf5)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------ what is refused


def refused(path: Path, says: str) -> None:
    with pytest.raises(CaffeFileError, match=says) as caught:
        read_solver_state(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_files_that_are_no_state(tmp_path: Path) -> None:
    refused(tmp_path / "missing.solverstate", "cannot be read: No such file")
    refused(tmp_path, "cannot be read: Is a directory")
    refused(binary_file(tmp_path, b""), "is empty")
    refused(binary_file(tmp_path, b"<html>not found</html>"), "web page")
    for other in (b"PK\x03\x04" + bytes(50), b'net: "net.prototxt"\n'):
        refused(binary_file(tmp_path, other), "solver state")
    mean = pb.BlobProto(num=1, channels=3, height=1, width=1, data=[1, 2, 3])
    refused(binary_file(tmp_path, mean.SerializeToString()), "learned_net is of a wrong type")


def test_a_caffemodel_is_known_as_one(tmp_path: Path) -> None:
    blob = pb.BlobProto(data=[1, 2])
    named = pb.NetParameter(name="net", layer=[pb.LayerParameter(name="a", blobs=[blob])])
    bare = pb.NetParameter(layer=named.layer)
    old = pb.NetParameter(name="net", layers=[pb.V1LayerParameter(name="a", blobs=[blob])])
    for net in (named, bare, old):
        refused(binary_file(tmp_path, net.SerializeToString()), r"is a caffemodel.*\.solverstate")
    old.ClearField("name")
    refused(binary_file(tmp_path, old.SerializeToString()), "has no iter; is it a solver state")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["data/conv1/0"] = HISTORY[0]
    refused(tmp_path / "w.h5", r"holds weights.*\.solverstate\.h5")


def blob(**fields: Any) -> pb.BlobProto:
    shape = fields.pop("shape", None)
    proto = pb.BlobProto(**fields)
    if shape is not None:
        proto.shape.dim.extend(shape)
    return proto


WRONG_BLOBS = [
    ("no values", blob(shape=[0]), "blob 1 has no values"),
    ("too few values", blob(data=[1, 2], shape=[3]), r"blob 1: .*shape \(3,\).* 2 values"),
    ("a negative shape", blob(data=[1, 2], shape=[-1, -2]), "blob 1: .*shape"),
    ("a legacy shape", blob(data=[1, 2], num=3, channels=1, height=1, width=1), "blob 1: .*shape"),
    ("int8", blob(int8_data=b"ab", shape=[2]), "blob 1 is int8"),
    ("int32", blob(int32_data=[1, 2], shape=[2]), "blob 1 is int32"),
    ("NaN", blob(data=[1, float("nan")], shape=[2]), "blob 1 holds 1 values that are NaN"),
    ("inf", blob(data=[float("-inf")] * 2, shape=[2]), "blob 1 holds 2 values that are NaN"),
    ("beyond float32", blob(double_data=[1e300], shape=[1]), "blob 1 holds 1 values"),
]


@pytest.mark.parametrize(("what", "bad", "says"), WRONG_BLOBS, ids=[w[0] for w in WRONG_BLOBS])
def test_a_wrong_blob_of_a_binary_state_is_named(
    what: str, bad: pb.BlobProto, says: str, tmp_path: Path
) -> None:
    proto = message()
    proto.history[1].CopyFrom(bad)
    refused(binary_file(tmp_path, proto), says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"iter": -5}, "iter is -5"),
        ({"current_step": -1}, "current_step is -1"),
        ({"iter": None}, "has no iter"),
    ],
)
def test_a_wrong_binary_state(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    proto = message()
    for name, value in change.items():
        if value is None:
            proto.ClearField(name)
        else:
            setattr(proto, name, value)
    refused(binary_file(tmp_path, proto), says)


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


WRONG_HDF5 = [
    ("no iter", put("iter", None), "has no iter"),
    ("no current_step", put("current_step", None), "has no current_step"),
    ("no history", put("history", None), "has no group 'history'"),
    ("history of a wrong kind", put("history", np.zeros(3)), "has no group 'history'"),
    ("iter of floats", put("iter", np.array([1.0])), "iter is not a whole number"),
    ("two iters", put("iter", np.array([1, 2])), "iter is not a whole number"),
    ("negative iter", put("iter", np.array([-3])), "iter is -3"),
    ("iter beyond int32", put("iter", np.array([2**40])), "iter is 1099511627776"),
    ("negative step", put("current_step", np.array([-1])), "current_step is -1"),
    ("a name of numbers", put("learned_net", np.zeros(1)), "learned_net is not a text"),
    ("two names", put("learned_net", np.array([b"a", b"b"])), "learned_net is not one text"),
    ("a lost blob", put("history/2", None), "blob 2 of 3 is missing"),
    ("a foreign blob", put("history/bias", np.zeros(1, "f4")), "blob 4 of 5 is missing"),
    ("int blob", put("history/1", np.zeros(4, int)), "blob 1 is not of floats"),
    ("a group as blob", lambda f: (put("history/1", None)(f), f.create_group("history/1")),
     "blob 1 is not of floats"),
    ("a null blob", put("history/1", h5py.Empty("f4")), "blob 1 is not of floats"),
    ("no values", put("history/1", np.zeros((0, 2), "f4")), "blob 1 has no values"),
    ("NaN", put("history/3", np.array([1, np.nan], "f4")), "blob 3 holds 1 values that are NaN"),
    ("beyond float32", put("history/3", np.array([1e300])), "blob 3 holds 1 values"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "says"), WRONG_HDF5, ids=[w[0] for w in WRONG_HDF5])
def test_a_wrong_hdf5_state(
    what: str, change: Callable[[h5py.File], None], says: str, tmp_path: Path
) -> None:
    path = hdf5_file(tmp_path)
    with h5py.File(path, "a") as file:
        change(file)
    refused(path, says)


def test_an_hdf5_name_may_be_of_h5pys_own_kind_or_absent(tmp_path: Path) -> None:
    path = hdf5_file(tmp_path)
    for value, name in ((STATE.learned_net, STATE.learned_net), (None, "")):
        with h5py.File(path, "a") as file:
            put("learned_net", value)(file)
        assert same(read_solver_state(path), replace(STATE, learned_net=name))


def test_a_binary_state_cut_short_is_refused_where_protobuf_refuses_it(tmp_path: Path) -> None:
    """A cut between two fields gives a state of fewer blobs: only the net can tell."""
    small = replace(STATE, history=(HISTORY[1], HISTORY[3]))
    data = message(small).SerializeToString()
    whole = 0
    for size in range(1, len(data)):
        path = binary_file(tmp_path, data[:size])
        try:
            proto = pb.SolverState.FromString(data[:size])
        except DecodeError:
            refused(path, r"cut short|history blob")
            continue
        whole += 1
        assert len(read_solver_state(path).history) == len(proto.history)
    assert whole >= 2


@FORMS
def test_a_net_without_parameters_has_no_history(hdf5: bool, tmp_path: Path) -> None:
    state = replace(STATE, history=())
    write_solver_state(state, tmp_path / "s", hdf5=hdf5)
    assert read_solver_state(tmp_path / "s").history == ()


@cases.examples(300)
@given(data=st.data())
def test_a_damaged_binary_state_is_read_or_refused_clearly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    small = replace(STATE, history=(HISTORY[1], HISTORY[3]))
    raw = bytearray(message(small).SerializeToString())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[at] = data.draw(st.integers(0, 255))
    path = binary_file(tmp_path_factory.mktemp("s"), bytes(raw))
    try:
        state = read_solver_state(path)
    except CaffeFileError:
        return
    assert state.iteration >= 0
    assert all(np.isfinite(b).all() and 0 < b.size < 1000 for b in state.history)


def test_an_hdf5_state_cut_short_is_refused(tmp_path: Path) -> None:
    path = hdf5_file(tmp_path)
    data = path.read_bytes()
    for size in range(8, len(data), 101):
        path.write_bytes(data[:size])
        refused(path, "cannot be read as HDF5")


def test_without_h5py_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hdf5_file(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r"h5py: pip install caffe-quant\[data\]")
    with pytest.raises(CaffeFileError, match=r"h5py: pip install caffe-quant\[data\]"):
        write_solver_state(STATE, tmp_path / "new.h5", hdf5=True)
    assert not (tmp_path / "new.h5").exists()
    write_solver_state(STATE, tmp_path / "new")  # the binary form needs nothing
    assert same(caffeio.read_solver_state(tmp_path / "new"), STATE)
