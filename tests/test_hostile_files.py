"""Files that are damaged or made to harm: refused with file and place, before memory is taken."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import time
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from conftest import ASSETS

import caffeio
from caffeio import CaffeFileError, NetError
from caffeio.caffemodel import read_caffemodel
from caffeio.data import Transform, batches, open_source
from caffeio.data.decode import decode_image
from caffeio.hdf5 import is_hdf5, read_hdf5_weights
from caffeio.memory import gibibytes, no_room
from caffeio.proto import caffe_pb2
from pipeline.config.load import load_config
from pipeline.errors import ConfigError
from pipeline.layers.fillers import fill
from pipeline.runtime.executor import FloatNet


def read_weights(path):
    return (read_hdf5_weights if is_hdf5(path) else read_caffemodel)(path)


h5py = pytest.importorskip("h5py")
lmdb = pytest.importorskip("lmdb")

IMAGES = np.arange(6 * 3 * 4 * 5, dtype=np.float32).reshape(6, 3, 4, 5)
HUGE = 1 << 50


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def refused(path, match: str, **options) -> None:
    """The error names the file, and reading begins nothing that takes long."""

    def read() -> None:
        source = open_source(path, **options)
        for i in range(len(source)):
            source[i]

    with pytest.raises(CaffeFileError, match=match) as caught:
        read()
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 700


# ---------------------------------------------------------------- NumPy


def test_rows_of_an_array_are_read_from_its_file(tmp_path):
    for name, array in (
        ("c", IMAGES),
        ("f", np.asfortranarray(IMAGES)),
        ("u", IMAGES.astype("u1")),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        source = open_source(tmp_path / f"{name}.npy")
        for i in (5, 0, 3):
            np.testing.assert_array_equal(source[i].data, array[i])


def test_an_array_that_becomes_shorter_while_it_is_read(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((100, 3, 64, 64), np.float32))
    source = open_source(path)
    source[99]
    os.truncate(path, 100_000)
    with pytest.raises(CaffeFileError, match=r"x.npy: sample 99 cannot be read: .*shorter"):
        source[99]


@pytest.mark.parametrize("shape", [f"({HUGE},)", "(2,)", f"({HUGE}, {HUGE})", "(-1, 2)", "(0, 2)"])
def test_an_array_whose_header_is_wrong(shape, tmp_path):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(8))
    refused(path, "cannot be read|holds data of the shape")


def test_members_that_are_no_arrays(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"hello")
    refused(path, "cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.txt", b"hello")
    refused(path, "holds no arrays")


def test_members_whose_header_says_more_than_there_is(tmp_path):
    path = tmp_path / "x.npz"
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE}, 2), }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(8)
        archive.writestr("data.npy", data)
    refused(path, r"'data' has 136 bytes, not those of \(1125899906842624, 2\) float32")


def test_archives_that_cannot_be_unpacked(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", npy(IMAGES))
    plain = path.read_bytes()
    at = plain.index(b"PK\x01\x02")
    for offset, value, match in ((8, 1, "encrypted"), (10, 97, "compression")):
        for start, shift in ((0, -2), (at, 0)):
            damaged = bytearray(path.read_bytes() if start else plain)
            struct.pack_into("<H", damaged, start + offset + shift, value)
            path.write_bytes(damaged)
        refused(path, match)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a"] * 6),
        np.array(5),
        np.array(["2020-01-01"] * 6, "datetime64[D]"),
        np.array([1j] * 6),
    ],
)
def test_labels_that_are_none(labels, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, data=IMAGES, label=labels)
    refused(path, "label|cannot be read")
    assert open_source(path, labelled=False)[0].label is None


def test_labels_beyond_64_bits_are_said_to_be(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, data=IMAGES, label=np.full(6, (1 << 64) - 1, np.uint64))
    (batch,) = batches({"data": (open_source(path), Transform())}, 6, 1)
    assert batch.labels is None
    assert "has more than 64 bits" in batch.unlabelled


# ---------------------------------------------------------------- idx


def idx(*shape: int, kind: int = 8, data: bytes | None = None) -> bytes:
    head = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + (bytes(int(np.prod(shape))) if data is None else data)


def test_an_idx_file_of_65_axes(tmp_path):
    path = tmp_path / "x-ubyte"
    path.write_bytes(idx(*[1] * 65))
    refused(path, "is not an idx file", kind="idx")


def test_a_compressed_idx_file_is_held_against_its_header(tmp_path):
    path = tmp_path / "x-ubyte"
    path.write_bytes(gzip.compress(idx(4, 5, 6)))
    assert open_source(path)[3].data.shape == (1, 5, 6)
    path.write_bytes(gzip.compress(idx(1 << 31, 1 << 10, 1 << 10, data=b"")))
    refused(path, r"its array takes 2,251,799,813,685,248 bytes")
    # a bomb: one byte was promised, and 200 MiB are there
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(idx(1, 1, 1))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(200)]
    path.write_bytes(b"".join([*parts, packer.flush()]))
    refused(path, "holds more bytes of data")


# ---------------------------------------------------------------- lists


@pytest.mark.parametrize("line", ["x" * 300 + ".png 1", '{"a": 1}', '"a.png",1', "\0 3"])
def test_a_list_that_is_none(line, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(line + "\n")
    refused(path, r"list.txt:1: names the image", kind="list")


def test_a_list_of_one_endless_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a b " * 100_000)
    start = time.perf_counter()
    refused(path, "line of 399999 characters")
    assert time.perf_counter() - start < 5


def test_a_label_of_many_digits(tmp_path):
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1])
    (tmp_path / "list.txt").write_text(f"a.png {'9' * 5000}\na.png 18446744073709551617\na.png 7\n")
    labels = [open_source(tmp_path / "list.txt")[i].label for i in range(3)]
    assert labels == [float("inf"), 2.0**64, 7]


# ---------------------------------------------------------------- HDF5


def hdf5(path, make) -> None:
    with h5py.File(path, "w") as file:
        make(file)


def external(file):
    file["data"] = h5py.ExternalLink("other.h5", "/data")


def soft(file):
    file["there"] = IMAGES
    file["data"] = h5py.SoftLink("/there")


def stored_elsewhere(file):
    file.create_dataset("data", (6, 4), "f4", external=[("other.bin", 0, 96)])


def virtual(file):
    layout = h5py.VirtualLayout((6, 4), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", (6, 4))
    file.create_virtual_dataset("data", layout)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (external, "holds a link, '/data'"),
        (soft, "holds a link, '/data'"),
        (stored_elsewhere, "lies in other files"),
        (virtual, "lies in other files"),
        (lambda f: f.create_dataset("data", data=["a", "b"]), "not numbers"),
        (lambda f: f.create_dataset("data", data=h5py.Empty("f4")), "empty dataset"),
        (lambda f: f.create_dataset("data", data=1.0), "is one number"),
        (lambda f: f.create_group("data"), "has no dataset 'data'"),
        (
            lambda f: f.create_dataset("data", (2, 1 << 50), "f4", chunks=(1, 1 << 20)),
            "a sample of",
        ),
    ],
)
def test_hdf5_data_that_is_none(make, match, tmp_path):
    hdf5(tmp_path / "x.h5", make)
    hdf5(tmp_path / "other.h5", lambda f: f.create_dataset("data", data=np.ones((6, 4), "f4")))
    (tmp_path / "other.bin").write_bytes(bytes(96))
    refused(tmp_path / "x.h5", match)


def test_hdf5_with_damage_inside(tmp_path):
    path = tmp_path / "x.h5"
    hdf5(path, lambda f: f.create_dataset("data", data=IMAGES, chunks=True, compression="gzip"))
    whole = path.read_bytes()
    outcomes = set()
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            source = open_source(path, "hdf5")
            for i in range(min(len(source), 10)):
                source[i]
            outcomes.add("read")
        except CaffeFileError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def circle(file):
    file.create_group("data/a")
    file["data/a/b"] = file["data"]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (circle, "in a circle"),
        (lambda f: f.create_group("data").__setitem__("c", h5py.ExternalLink("o.h5", "/")), "link"),
        (lambda f: f.create_dataset("data/c/00", data=np.ones(2)), "named by their index"),
        (lambda f: f.create_dataset("data/c/0", data=["a"]), "not numbers"),
        (lambda f: f.create_dataset("data/c/101", data=np.ones(2)), "no layer has so many"),
        (lambda f: f.create_dataset("data/c/0", (1 << 40,), "f4", chunks=(1 << 20,)), "holds 0 by"),
        (lambda f: f.create_dataset("data/c/0", (1 << 30,), "f4"), "holds 0 bytes of '/data/c/0'"),
        (lambda f: f.create_dataset("data/c/0", data=h5py.Empty("f4")), "empty dataset"),
    ],
)
def test_hdf5_weights_that_are_none(make, match, tmp_path):
    path = tmp_path / "x.caffemodel.h5"
    hdf5(path, make)
    with pytest.raises(CaffeFileError, match=match):
        read_weights(path)


# ---------------------------------------------------------------- LMDB


def database(folder, count: int = 300, size: int = 48) -> bytes:
    with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as writing:
        for i in range(count):
            datum = caffe_pb2.Datum(channels=size, height=1, width=1, data=bytes(size), label=i)
            writing.put(b"%08d" % i, datum.SerializeToString())
    return (folder / "data.mdb").read_bytes()


@pytest.mark.parametrize(("count", "size"), [(1, 48), (300, 48), (20, 10_000), (3000, 9)])
def test_databases_that_are_whole_are_read(count, size, tmp_path):
    database(tmp_path / "db", count, size)
    source = open_source(tmp_path / "db")
    assert [source[i].label for i in range(len(source))] == list(range(count))


def test_a_database_that_is_cut_short(tmp_path):
    whole = database(tmp_path / "db")
    for size in (*range(0, len(whole), 3001), len(whole) - 1):
        (tmp_path / "db" / "data.mdb").write_bytes(whole[:size])
        refused(tmp_path / "db" / "data.mdb", "cut short|LMDB|empty", kind="lmdb")


def test_no_page_of_a_database_can_lead_out_of_it(tmp_path):
    whole = database(tmp_path / "db", 100, 6000)  # values in pages of their own, and a branch
    flags = [struct.unpack_from("<H", whole, at + 10)[0] for at in range(0, len(whole), 4096)]
    pages = [i for i, flag in enumerate(flags) if flag in (1, 2, 8)]  # not those of values
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(600):
        damaged = bytearray(whole)
        page = int(rng.choice(pages)) * 4096
        at = page + int(rng.integers(100 if rng.integers(3) else 4000))
        damaged[at : at + 2] = rng.bytes(2)
        (tmp_path / "db" / "data.mdb").write_bytes(damaged)
        try:
            source = open_source(tmp_path / "db")
            for i in range(len(source)):
                source[i]
            source.close()
            outcomes["read"] += 1
        except CaffeFileError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp"])
def test_an_image_that_says_it_is_huge(ending, tmp_path):
    data = bytearray(cv2.imencode(ending, np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    if ending == ".png":
        data[16:24] = struct.pack(">II", 50_000, 40_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif ending == ".jpg":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 40_000, 50_000)
    else:
        data[18:26] = struct.pack("<ii", 50_000, 40_000)
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    with pytest.raises(CaffeFileError, match=f"a{ending}: the image has 50000×40000 pixels"):
        open_source(tmp_path)[0]


def test_a_damaged_image_of_330_bytes_takes_no_gigabytes():
    path = ASSETS.parent / "cases" / "files" / "damaged_ihdr.png"
    if not path.exists():
        pytest.skip(f"needs the shared cases ({path})")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"damaged|pixels"):
        decode_image(path.read_bytes())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_the_limit_of_pixels_can_be_set(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1])
    assert open_source(tmp_path)[0].data.shape == (9, 9, 3)
    monkeypatch.setenv("CAFFE_QUANT_MAX_PIXELS", "80")
    with pytest.raises(CaffeFileError, match="CAFFE_QUANT_MAX_PIXELS"):
        open_source(tmp_path)[0]


def test_a_sample_is_not_resized_beyond_the_limit(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    reading = batches({"data": (open_source(tmp_path / "x.npy"), Transform(resize=10**6))}, 1)
    with pytest.raises(CaffeFileError, match=r"resized to 1250000×1000000 pixels"):
        next(reading)


# ---------------------------------------------------------------- models and configs


@pytest.mark.parametrize("dims", [[1] * 65, [1 << 40, 1 << 40], [-1, 5], [1 << 63, 2]])
def test_a_blob_of_impossible_shape(dims, tmp_path):
    net = caffe_pb2.NetParameter()
    blob = net.layer.add(name="c", type="Convolution").blobs.add(data=[1.0])
    for dim in dims:  # as the wire has it: dims of 64 bits without a sign pass, too
        blob.shape.dim.append(dim - (1 << 64) if dim >= 1 << 63 else dim)
    path = tmp_path / "x.caffemodel"
    path.write_bytes(net.SerializeToString())
    with pytest.raises(CaffeFileError, match=r"x.caffemodel: "):
        read_weights(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a = " + "[" * 20_000, "nested too deep"),
        ("a." * 20_000 + "b = 1", "too many parts"),
        ("a = " + "9" * 5000, "digits"),
        ("[model]\nprototxt = 5\n", "model.prototxt"),
        (f"[{'x' * 5000}]\n", "unknown key"),
    ],
)
def test_a_config_made_to_hurt(text, match, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=match) as caught:
        load_config(path)
    assert time.perf_counter() - start < 5
    assert all(len(line) <= 600 for line in str(caught.value).split("\n"))


LARGE = {
    "Tile": "tile_param { axis: 1 tiles: 2000000000 }",
    "Interp": "interp_param { height: 2000000000 width: 2000000 }",
    "Upsample": "upsample_param { scale: 2000000 }",
    "Im2col": "convolution_param { kernel_size: 3000000 pad: 1500000 }",
    "SPP": "spp_param { pyramid_height: 2000000000 }",
    "LRN": "lrn_param { local_size: 2000000001 }",
    "DummyData": "dummy_data_param { shape { dim: 2000000000 dim: 2000000000 } }",
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_layer_that_would_make_tera_values(kind, tmp_path):
    bottom = "" if kind == "DummyData" else 'bottom: "x"'
    net = caffeio.parse_net(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }'
        f'layer {{ name: "big" type: "{kind}" {bottom} top: "y" {LARGE[kind]} }}'
    )
    if kind == "LRN":  # as large as its input, whatever the window
        assert FloatNet(net).forward({"x": np.ones((1, 4, 8, 8))})["y"].shape == (1, 4, 8, 8)
        return
    with pytest.raises(NetError, match=r"layer 'big': .*(bytes|pyramid_height)"):
        FloatNet(net).shapes()


def test_weights_that_begin_too_large():
    layer = caffeio.parse_net('layer { name: "x" type: "Input" top: "x" }').layers[0]
    filler = caffe_pb2.FillerParameter(type="xavier")
    with pytest.raises(NetError, match=r"layer 'x': makes 2000000000×4096 values, which take"):
        fill(layer, filler, (2_000_000_000, 4096), np.random.default_rng(0))


def test_doubling_sixty_times():
    layers = "".join(
        f'layer {{ name: "c{i}" type: "Concat" bottom: "b{i}" bottom: "b{i}" top: "b{i + 1}" }}'
        for i in range(60)
    )
    source = 'layer { name: "d" type: "Input" top: "b0" input_param { shape { dim: 1 dim: 1 } } }'
    with pytest.raises(NetError, match=r"layer 'c\d+': makes 1×\d+ values, which take"):
        FloatNet(caffeio.parse_net(source + layers)).shapes()


def test_unknown_fields_take_time_in_proportion():
    def seconds(count: int) -> float:
        start = time.perf_counter()
        layer = 'layer { name: "x" type: "Input" top: "x" }'
        caffeio.parse_net(layer + "".join(f"odd_{i}: {i}\n" for i in range(count)))
        return time.perf_counter() - start

    seconds(100)
    assert seconds(20_000) < 40 * seconds(1000) + 0.5


def test_what_memory_is_said_to_be(monkeypatch):
    monkeypatch.setattr("caffeio.memory.machine_memory", lambda: 1 << 30)
    assert no_room(1 << 30) == ""
    assert no_room((1 << 30) + 1) == "1,073,741,825 bytes (1.0 GiB); this machine has 1.0 GiB"
    assert gibibytes(1 << 100) == "1,180,591,620,717,411,303,424.0 GiB"
    monkeypatch.setattr("caffeio.memory.machine_memory", lambda: None)
    assert no_room(1 << 100) == ""
