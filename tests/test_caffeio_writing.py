"""Writing: weights that keep every bit, files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_caffeio_weights import FC, RNG, C, model, read, same

import caffeio
from caffeio import CaffeFileError, wire
from caffeio.blobs import decode_blob, encode_blob
from caffeio.caffemodel import read_caffemodel
from caffeio.proto import caffe_pb2 as pb


def test_every_bit_survives(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 0x7F800000, 0xFF800000,
                     0x00000001, 0x3F800000], np.uint32)  # fmt: skip
    blob = np.resize(bits, 240).view(np.float32).reshape(5, 48)
    net = read(tmp_path, model(c=C, fc=FC))
    layers = (*net.layers[:2], replace(net.layers[2], blobs=(blob, FC[1])))
    caffeio.write_caffemodel(net.with_layers(layers), tmp_path / "out.caffemodel")
    again = caffeio.read_net(tmp_path / "n.prototxt", tmp_path / "out.caffemodel")
    assert same(again.layer("fc").blobs[0], blob)
    file = pb.NetParameter.FromString((tmp_path / "out.caffemodel").read_bytes())
    assert {f.name for layer in file.layer for f, _ in layer.ListFields()} == {
        "name",
        "type",
        "blobs",
    }
    assert [layer.name for layer in file.layer] == ["input", "c", "fc"]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.int8, np.int32, np.uint64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_blobs_round_trip(blob: np.ndarray) -> None:
    raw = b"".join(encode_blob(blob))
    again = decode_blob(memoryview(raw), 0, len(raw)).array
    if blob.size == 0:
        assert again.shape == blob.shape
    else:
        assert same(again, np.ascontiguousarray(blob).reshape(blob.shape))
    proto = pb.BlobProto.FromString(raw)
    assert tuple(proto.shape.dim) == blob.shape
    field = {"f4": proto.data, "i4": proto.int32_data, "u8": proto.uint64_data}.get(
        blob.dtype.str[1:]
    )
    if field is None:
        assert proto.int8_data == blob.tobytes()
    else:
        np.testing.assert_array_equal(np.array(field, blob.dtype), blob.ravel())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_blob_or_a_clear_error(data: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        blob = decode_blob(memoryview(data), 0, len(data))
        assert blob.array.dtype.name in {"float32", "int8", "int32", "uint64"}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_model_is_read_or_refused_clearly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    small = model(c=(np.ones((2, 3), np.float32),), d=(np.ones(2, np.float32),))
    raw = bytearray(small.SerializeToString())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("m") / "n.caffemodel"
    path.write_bytes(raw)
    with contextlib.suppress(CaffeFileError):
        for blobs in read_caffemodel(path).layers.values():
            assert all(blob.array.size < 10_000 for blob in blobs)


def test_only_four_types_are_written() -> None:
    with pytest.raises(TypeError, match="float64"):
        list(encode_blob(np.zeros(3)))


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    net = read(tmp_path, model(c=C, fc=FC))
    bad = net.with_layers((*net.layers[:2], replace(net.layers[2], blobs=(np.zeros(3),))))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(TypeError, match="layer 'fc'"):
        caffeio.write_caffemodel(bad, tmp_path / "out.caffemodel")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    with pytest.raises(CaffeFileError, match="cannot be written"):
        caffeio.write_caffemodel(net, tmp_path / "no" / "out.caffemodel")
    with pytest.raises(CaffeFileError, match="is a folder"):
        caffeio.write_caffemodel(net, tmp_path)


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(CaffeFileError, match="exists already"), caffeio.atomic_write(path):
        pass
    with pytest.raises(KeyError), caffeio.atomic_write(path, overwrite=True) as file:
        file.write_text(os.environ["NO_SUCH_VARIABLE_HERE"])
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)
    with caffeio.atomic_write(path, overwrite=True) as file:
        file.write_text("new")
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("new", 1)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_opencv_reads_what_is_written(assets: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("this OpenCV reads no Caffe nets")
    folder = assets / "models/lenet_mnist"
    net = caffeio.read_net(folder / "deploy.prototxt", folder / "lenet.caffemodel")
    caffeio.write_prototxt(net, tmp_path / "n.prototxt")
    caffeio.write_caffemodel(net, tmp_path / "n.caffemodel")
    x = RNG.random((2, 1, 28, 28), np.float32)
    outs = []
    for prototxt, weights in (
        (folder / "deploy.prototxt", folder / "lenet.caffemodel"),
        (tmp_path / "n.prototxt", tmp_path / "n.caffemodel"),
    ):
        theirs = cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
        theirs.setInput(x)
        outs.append(theirs.forward())
    np.testing.assert_array_equal(outs[0], outs[1])
