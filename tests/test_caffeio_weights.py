"""Weights: every format read, matched to layers, written and read by others."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDENS

import caffeio
from caffeio import CaffeFileError, NetError, wire
from caffeio.blobs import decode_blob
from caffeio.caffemodel import read_caffemodel
from caffeio.proto import caffe_pb2 as pb

NET = """input: "data" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
        convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "c" top: "fc"
        inner_product_param { num_output: 5 } }"""
RNG = np.random.default_rng(7)
C = (RNG.normal(size=(3, 2, 1, 1)).astype(np.float32), np.arange(3, dtype=np.float32))
FC = (RNG.normal(size=(5, 48)).astype(np.float32), np.arange(5, dtype=np.float32))


def message(blob: np.ndarray, **how: object) -> pb.BlobProto:
    proto = pb.BlobProto(data=blob.ravel().tolist())
    proto.shape.dim.extend(blob.shape)
    return proto


def model(**layers: tuple[np.ndarray, ...]) -> pb.NetParameter:
    net = pb.NetParameter()
    for name, blobs in layers.items():
        net.layer.add(name=name, type="x", blobs=[message(b) for b in blobs])
    return net


def read(folder: Path, weights: pb.NetParameter | bytes, text: str = NET) -> caffeio.Net:
    (folder / "n.prototxt").write_text(text)
    data = weights if isinstance(weights, bytes) else weights.SerializeToString()
    (folder / "n.caffemodel").write_bytes(data)
    return caffeio.read_net(folder / "n.prototxt", folder / "n.caffemodel")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --------------------------------------------------------------------------- reading


def test_weights_are_matched_by_name(tmp_path: Path) -> None:
    net = read(tmp_path, model(fc=FC, c=C))
    for layer, blobs in (("c", C), ("fc", FC)):
        assert all(same(x, y) for x, y in zip(net.layer(layer).blobs, blobs, strict=True))
    assert net.layer("c").blobs[0].flags.aligned
    assert net.layer("c").blobs[0].flags.writeable
    assert net.notes == ()


@pytest.mark.parametrize("path", sorted((GOLDENS / "caffe").glob("*.npz")), ids=lambda p: p.stem)
def test_goldens_hold_what_protobuf_reads(path: Path, tmp_path: Path) -> None:
    with np.load(path) as golden:
        data = golden["caffemodel"].tobytes()
        net = read(tmp_path, data, golden["prototxt"].tobytes().decode())
    assert net.notes == ()
    file = pb.NetParameter.FromString(data)
    wanted = {layer.name: layer.blobs for layer in file.layer}
    wanted |= {v.layer.name or v.name: v.layer.blobs or v.blobs for v in file.layers}
    for layer in net.layers:
        blobs = wanted.get(layer.name, ())
        assert len(blobs) == len(layer.blobs)
        for blob, proto in zip(layer.blobs, blobs, strict=True):
            np.testing.assert_array_equal(blob.ravel(), np.array(proto.data, np.float32))


def test_every_number_format_of_a_blob(tmp_path: Path) -> None:
    values = np.array([1.5, -2.25, 0.0, 65504.0, -0.0, 1e-3], np.float64)
    for field, dtype in (("data", np.float32), ("double_data", np.float64)):
        proto = pb.BlobProto(num=1, channels=1, height=2, width=3)
        getattr(proto, field).extend(values.astype(dtype).tolist())
        raw = proto.SerializeToString()
        blob = decode_blob(memoryview(raw), 0, len(raw))
        assert blob.legacy
        assert blob.array.shape == (1, 1, 2, 3)
        np.testing.assert_array_equal(blob.array.ravel(), values.astype(np.float32))
    shape = wire.put(7, wire.put(1, wire.pack_varints([6])))
    for code, name in enumerate(("f8", "f4", "f2")):
        raw = shape + bytes([10 << 3, code]) + wire.put(12, values.astype(name).tobytes())
        blob = decode_blob(memoryview(raw), 0, len(raw))
        np.testing.assert_array_equal(blob.array, values.astype(name).astype(np.float32))
    # Floats that are not packed, and a shape that is not packed.
    raw = b"".join(bytes([5 << 3 | 5]) + struct.pack("<f", v) for v in values)
    raw += wire.put(7, bytes([1 << 3, 2, 1 << 3, 3]))
    blob = decode_blob(memoryview(raw), 0, len(raw))
    np.testing.assert_array_equal(blob.array, values.astype(np.float32).reshape(2, 3))


def test_opencv_reads_half_precision_the_same(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")

    def half(blob: np.ndarray) -> bytes:
        return (
            wire.put(7, wire.put(1, wire.pack_varints(blob.shape)))
            + bytes([10 << 3, 2])
            + wire.put(12, blob.astype(np.float16).tobytes())
        )

    data = wire.put(
        100,
        wire.put(1, b"c") + wire.put(2, b"Convolution") + b"".join(wire.put(7, half(b)) for b in C),
    )
    net = read(tmp_path, data, NET[: NET.index('layer { name: "fc"')])
    assert net.notes == ()
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("this OpenCV reads no Caffe nets")
    theirs = cv2.dnn.readNetFromCaffe(str(tmp_path / "n.prototxt"), str(tmp_path / "n.caffemodel"))
    x = RNG.normal(size=(1, 2, 4, 4)).astype(np.float32)
    theirs.setInput(x)
    w, b = net.layer("c").blobs
    ours = np.einsum("oi,nihw->nohw", w[:, :, 0, 0], x) + b[:, None, None]
    np.testing.assert_allclose(theirs.forward(), ours, rtol=1e-5, atol=1e-5)


def test_deploy_blobs_keep_their_types(tmp_path: Path) -> None:
    proto = pb.NetParameter()
    layer = proto.layer.add(name="q", type="Convolution")
    layer.blobs.add(int8_data=bytes([255, 0, 127, 128])).shape.dim.extend([4, 1])
    layer.blobs.add(int32_data=[-5, 2**31 - 1, -(2**31)]).shape.dim.append(3)
    layer.blobs.add(uint64_data=[0, 2**64 - 1, 12345678901]).shape.dim.append(3)
    path = tmp_path / "d.caffemodel"
    path.write_bytes(proto.SerializeToString())
    blobs = [b.array for b in read_caffemodel(path).layers["q"]]
    assert [b.dtype for b in blobs] == [np.int8, np.int32, np.uint64]
    assert blobs[0].tolist() == [[-1], [0], [127], [-128]]
    assert blobs[1].tolist() == [-5, 2**31 - 1, -(2**31)]
    assert blobs[2].tolist() == [0, 2**64 - 1, 12345678901]


def test_hdf5_weights_equal_the_binary_ones(assets: Path) -> None:
    pytest.importorskip("h5py")
    folder = assets / "models/cifar10_m4"
    nets = [
        caffeio.read_net(folder / "deploy.prototxt", folder / name)
        for name in ("cifar10_m4.caffemodel", "cifar10_m4.caffemodel.h5")
    ]
    for a, b in zip(nets[0].layers, nets[1].layers, strict=True):
        assert all(same(x, y) for x, y in zip(a.blobs, b.blobs, strict=True))
    assert sum(len(layer.blobs) for layer in nets[1].layers) == 8


def test_hdf5_of_our_own(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "w"  # told by its content, not by its name
    with h5py.File(path, "w") as file:
        for name, blobs in (("c", C), ("fc", FC), ("a/b", C)):
            for i, blob in enumerate(blobs):
                file[f"data/{name}/{i}"] = blob
    (tmp_path / "n.prototxt").write_text(NET)
    net = caffeio.read_net(tmp_path / "n.prototxt", path)
    assert all(same(x, y) for x, y in zip(net.layer("c").blobs, C, strict=True))
    assert len(net.notes) == 1
    assert "'a/b'" in net.notes[0]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CaffeFileError, match="HDF5"):
        caffeio.read_net(tmp_path / "n.prototxt", path)


@pytest.mark.parametrize("kept", [("1",), ("0",), ()])
def test_hdf5_leaves_shared_blobs_to_their_first_layer(kept: tuple[str, ...], tmp_path: Path):
    """Caffe's ToHDF5 writes only what a layer does not share from one before it."""
    h5py = pytest.importorskip("h5py")
    names = {"0": 'param { name: "w" }', "1": 'param { name: "b" }'}
    fc = 'type: "InnerProduct" inner_product_param { num_output: 3 }'
    text = 'input: "x" input_shape { dim: 1 dim: 3 }\n'
    first = " ".join(names.values())
    second = " ".join("param {}" if key in kept else name for key, name in names.items())
    text += f'layer {{ name: "p" bottom: "x" top: "p" {fc} {first} }}\n'
    text += f'layer {{ name: "q" bottom: "p" top: "q" {fc} {second} }}\n'
    (tmp_path / "n.prototxt").write_text(text)
    blobs = {
        layer: {"0": RNG.normal(size=(3, 3)).astype(np.float32), "1": np.full(3, n, np.float32)}
        for n, layer in enumerate("pq")
    }
    for keys, fails in ((kept, False), (kept[:-1], bool(kept))):
        with h5py.File(tmp_path / "w.h5", "w") as file:
            for layer, present in (("p", ("0", "1")), ("q", keys)):
                for key in present:
                    file[f"data/{layer}/{key}"] = blobs[layer][key]
        if fails:
            with pytest.raises(NetError, match="layer 'q': has no blob"):
                caffeio.read_net(tmp_path / "n.prototxt", tmp_path / "w.h5")
            continue
        net = caffeio.read_net(tmp_path / "n.prototxt", tmp_path / "w.h5")
        for i, key in enumerate("01"):
            owner = "q" if key in kept else "p"
            assert same(net.layer("q").blobs[i], blobs[owner][key])


# --------------------------------------------------------------------------- matching


def test_legacy_shapes_are_fitted(tmp_path: Path) -> None:
    proto = model(c=C, fc=FC)
    for layer in proto.layer:
        for blob in layer.blobs:
            n, c, h, w = (1,) * (4 - len(blob.shape.dim)) + tuple(blob.shape.dim)
            blob.ClearField("shape")
            blob.num, blob.channels, blob.height, blob.width = n, c, h, w
    net = read(tmp_path, proto)
    assert [b.shape for b in net.layer("fc").blobs] == [(5, 48), (5,)]


@pytest.mark.parametrize(
    ("layers", "layer", "match"),
    [
        ({"c": C}, "fc", "has no weights in .*n.caffemodel"),
        ({"c": C, "fc": FC[:1]}, "fc", "has 1 blobs in .* call for 2"),
        ({"c": (C[0][:2], C[1]), "fc": FC}, "c", r"blob 0 has the shape \(2, 2, 1, 1\).*\(3, \?"),
        ({"c": (C[0], C[1][None, :2]), "fc": FC}, "c", "blob 1 has the shape"),
        ({"c": C, "fc": (FC[0].reshape(5, 6, 8), FC[1])}, "fc", "blob 0"),
    ],
)
def test_weights_that_do_not_fit(
    layers: dict[str, tuple[np.ndarray, ...]], layer: str, match: str, tmp_path: Path
) -> None:
    with pytest.raises(NetError, match=match) as caught:
        read(tmp_path, model(**layers))
    assert caught.value.layer == layer


def test_weights_without_a_layer_are_named_and_split_is_not(tmp_path: Path) -> None:
    proto = model(c=C, fc=FC, extra=C, fc_split=C)
    proto.layer[3].type = "Split"
    net = read(tmp_path, proto)
    assert len(net.notes) == 1
    assert "layer 'extra' has weights, but the net has no such layer" in net.notes[0]


SIAMESE = """input: "data" input_shape { dim: 1 dim: 2 }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"
        param { name: "w" } param { name: "b" } inner_product_param { num_output: 5 } }
layer { name: "z" type: "InnerProduct" bottom: "data" top: "z" param { name: "w" } param { }
        inner_product_param { num_output: 5 } }"""


def test_a_parameter_name_shares_the_blob(tmp_path: Path) -> None:
    w, b = FC[0][:, :2].copy(), FC[1]
    net = read(tmp_path, model(a=(w, b), z=(w, b + 1)), SIAMESE)
    a, z = net.layer("a").blobs, net.layer("z").blobs
    assert a[0] is z[0]
    assert a[1] is not z[1]
    assert net.notes == ()
    net = read(tmp_path, model(a=(w, b), z=(w * 2, b)), SIAMESE)
    np.testing.assert_array_equal(net.layer("a").blobs[0], w * 2)
    assert "share the parameter 'w'" in net.notes[0]
    both = SIAMESE.replace("param { }", 'param { name: "b" }')
    net = read(tmp_path, model(a=(w, b)), both)
    assert net.layer("z").blobs[1] is net.layer("a").blobs[1]
    with pytest.raises(NetError, match="has no blob 1"):
        read(tmp_path, model(a=(w, b)), SIAMESE)


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (
            'type: "Deconvolution" convolution_param { num_output: 6 group: 2 kernel_h: 2 kernel_w: 3 '
            "bias_term: false }",
            [(None, 3, 2, 3)],
        ),
        (
            'type: "InnerProduct" inner_product_param { num_output: 4 transpose: true }',
            [(None, 4), (4,)],
        ),
        ('type: "BatchNorm"', [(None,), (None,), (1,)]),
        ('type: "Scale" scale_param { bias_term: true }', [(None,), (None,)]),
        ('type: "Scale" scale_param { num_axes: -1 }', [None]),
        ('type: "Scale" bottom: "s"', []),
        ('type: "Bias" bias_param { num_axes: 2 }', [(None, None)]),
        ('type: "PReLU" prelu_param { channel_shared: true }', [()]),
        ('type: "Embed" embed_param { num_output: 3 input_dim: 7 }', [(7, 3), (3,)]),
        ('type: "LSTM" recurrent_param { num_output: 5 }', [(20, None), (20,), (20, 5)]),
        (
            'type: "RNN" bottom: "b" bottom: "c" recurrent_param { num_output: 5 }',
            [(5, None), (5,), (5, None), (5, 5), (5, 5), (5,)],
        ),
        (
            'type: "DepthwiseConvolution" convolution_param { num_output: 8 kernel_size: 3 '
            "kernel_size: 1 group: 8 }",
            [(8, None, 3, 1), (8,)],
        ),
        ('type: "Normalize" norm_param { channel_shared: false }', [(None,)]),
        ('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }', [(2, 3)]),
    ],
)
def test_expected_blobs(layer: str, shapes: list[tuple[int | None, ...] | None]) -> None:
    text = (
        f'input: "d" input: "s" input: "b" input: "c" layer {{ name: "l" top: "t" bottom: "d" '
        f"{layer} }}"
    )
    assert caffeio.expected_blobs(caffeio.parse_net(text).layer("l")) == tuple(shapes)


# --------------------------------------------------------------------------- unknown, broken


def test_unknown_fields_of_a_file_are_named(tmp_path: Path) -> None:
    proto = model(c=C, fc=FC)
    blob = proto.layer[0].blobs[0].SerializeToString() + bytes([99 << 3 & 0x7F | 0x80, 6, 1])
    inner = wire.put(33, b"xyz")
    layer = (
        wire.put(1, b"c")
        + wire.put(7, blob)
        + wire.put(7, message(C[1]).SerializeToString())
        + wire.put(106, inner)
        + wire.put(4321, b"")
        + wire.put(147, b"\xff\xff")
    )
    data = (
        wire.put(100, layer)
        + wire.put(100, proto.layer[1].SerializeToString())
        + wire.put(55, b"?")
    )
    net = read(tmp_path, data)
    text = "\n".join(net.notes)
    assert "the net has a field 55" in text
    assert "blob 0 has a field 99" in text
    assert "layer 'c' has a field 4321 " in text or "layer 'c' has a field 147 " in text
    good = wire.put(1, b"c") + b"".join(wire.put(7, message(b).SerializeToString()) for b in C)
    data = wire.put(100, good + wire.put(106, inner) + wire.put(4321, b"")) + wire.put(
        100, proto.layer[1].SerializeToString()
    )
    text = "\n".join(read(tmp_path, data).notes)
    assert "layer 'c' has a field 106.33 " in text
    assert "layer 'c' has a field 4321 " in text


@pytest.mark.parametrize("keep", [1, 5, 40, 200, 900])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    data = model(c=C, fc=FC).SerializeToString()
    with pytest.raises(CaffeFileError, match=r"cut short|no layers") as caught:
        read(tmp_path, data[:keep])
    assert caught.value.path.name == "n.caffemodel"


@pytest.mark.parametrize(
    "data", [b"", b"<html>not found</html>", b"PK\x03\x04" + bytes(50), b"\x0a\x05hello"]
)
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CaffeFileError):
        read(tmp_path, data)
    with pytest.raises(CaffeFileError, match="cannot be read"):
        caffeio.read_net(tmp_path / "n.prototxt", tmp_path / "missing.caffemodel")


def test_a_shape_that_does_not_fit_its_data(tmp_path: Path) -> None:
    proto = model(c=C, fc=FC)
    proto.layer[1].blobs[0].shape.dim[0] = 6
    with pytest.raises(CaffeFileError, match=r"blob 0 of layer 'fc'.*240 values"):
        read(tmp_path, proto)


def test_nan_is_read_and_reported(tmp_path: Path) -> None:
    bad = FC[0].copy()
    bad[1, :2] = np.nan, np.inf
    net = read(tmp_path, model(c=C, fc=(bad, FC[1])))
    found = caffeio.nonfinite_blobs(net)
    assert len(found) == 1
    assert "layer 'fc': blob 0 holds 2 values" in found[0]
