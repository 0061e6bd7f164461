"""Data sources: every kind that a Caffe user has, and what is broken in them."""

from __future__ import annotations

import gc
import gzip
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from caffeio import CaffeFileError, MissingFileError
from caffeio.data import Source, detect_kind, open_source, read_mean
from caffeio.proto import caffe_pb2 as pb

cv2 = pytest.importorskip("cv2")
RNG = np.random.default_rng(3)


def picture(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def check(source: Source, arrays: Sequence[np.ndarray], labels: Sequence[object]) -> None:
    assert len(source) == len(arrays)
    for i, (array, label) in enumerate(zip(arrays, labels, strict=True)):
        sample = source[i]
        assert sample.data.dtype == array.dtype
        np.testing.assert_array_equal(sample.data, array)
        assert sample.label == label
        assert str(source.path.parent) in sample.name
    np.testing.assert_array_equal(source[-1].data, arrays[-1])
    with pytest.raises(IndexError):
        _ = source[len(source)]


# --------------------------------------------------------------------------- images


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    images = [picture(i) for i in range(4)]
    for name, image in zip(("b/2.png", "a.png", "b/10.PNG", "c.bmp"), images, strict=True):
        save(tmp_path / name, image)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(tmp_path)
    check(source, [images[1], images[2], images[0], images[3]], [None] * 4)
    assert (source[0].image, source[0].order) == (True, "BGR")
    assert [Path(source[i].name).name for i in range(4)] == ["a.png", "10.PNG", "2.png", "c.bmp"]


def test_folders_as_classes(tmp_path: Path) -> None:
    for name in ("cat/x/1.png", "cat/2.png", "dog/1.png"):
        save(tmp_path / name, picture(0))
    (tmp_path / "bird").mkdir()  # a class without images still has its number
    source = open_source(tmp_path, class_folders=True)
    assert [source[i].label for i in range(3)] == [1, 1, 2]
    save(tmp_path / "loose.png", picture(0))
    with pytest.raises(CaffeFileError, match=r"loose.png.*no label"):
        open_source(tmp_path, class_folders=True)


def test_grey_decoding_is_that_of_opencv(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", picture(1))
    grey = open_source(tmp_path, color=False)[0]
    np.testing.assert_array_equal(grey.data[:, :, 0], cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
    assert grey.data.shape == (6, 5, 1)


@pytest.mark.parametrize("make", ["mkdir", "empty", "text"])
def test_a_folder_without_images(make: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    if make == "empty":
        (folder / "sub").mkdir()
    if make == "text":
        (folder / "a.txt").write_text("")
    with pytest.raises(CaffeFileError, match="images: holds no images"):
        open_source(folder)


@pytest.mark.parametrize(
    ("ending", "keep"), [("jpg", 0.6), ("png", 0.6), ("jpg", 0.0), ("bmp", 0.1)]
)
def test_damaged_images_are_named(ending: str, keep: float, tmp_path: Path) -> None:
    save(tmp_path / f"a.{ending}", picture(0, 64, 64))
    bad = save(tmp_path / f"b.{ending}", picture(1, 64, 64))
    data = bad.read_bytes()
    bad.write_bytes(data[: int(len(data) * keep)])
    source = open_source(tmp_path)
    assert source[0].data.shape == (64, 64, 3)
    with pytest.raises(CaffeFileError, match=f"b.{ending}"):
        _ = source[1]
    bad.write_bytes(b"not an image at all")
    with pytest.raises(CaffeFileError, match=f"b.{ending}: the image"):
        _ = source[1]
    bad.unlink()
    with pytest.raises(CaffeFileError, match="cannot be read"):
        _ = source[1]


def test_a_whole_jpeg_with_a_thumbnail_is_whole(tmp_path: Path) -> None:
    """The end mark of a thumbnail inside is not taken for the image's own."""
    file = save(tmp_path / "a.jpg", picture(0, 32, 32))
    data = file.read_bytes()
    thumb = save(tmp_path / "t.jpg", picture(1, 8, 8)).read_bytes()
    (tmp_path / "t.jpg").unlink()
    block = b"\xff\xe2" + struct.pack(">H", len(thumb) + 2) + thumb
    file.write_bytes(data[:2] + block + data[2:])
    assert open_source(tmp_path)[0].data.shape == (32, 32, 3)
    file.write_bytes(data[:2] + block + data[2:] + b"appended \xff\xda video")
    assert open_source(tmp_path)[0].data.shape == (32, 32, 3)
    file.write_bytes((data[:2] + block + data[2:])[:-40])
    with pytest.raises(CaffeFileError, match="cut short"):
        _ = open_source(tmp_path)[0]


def test_a_list_splits_at_the_last_space(tmp_path: Path) -> None:
    images = [picture(i) for i in range(3)]
    for name, image in zip(("my cat.png", "b.png", "c 7.png"), images, strict=True):
        save(tmp_path / "sub" / name, image)
    listing = tmp_path / "list.txt"
    listing.write_text("sub/my cat.png 3\n\nsub/b.png  -1 \nsub/c 7.png 2.5\n")
    check(open_source(listing), images, [3, -1, 2.5])
    listing.write_text("sub/my cat.png\t3\nsub/b.png \t -1\nsub/c 7.png\t2.5\n")
    check(open_source(listing), images, [3, -1, 2.5])
    listing.write_text("my cat.png\nc 7.png\n")
    check(open_source(listing, root=tmp_path / "sub"), [images[0], images[2]], [None] * 2)
    listing.write_text("sub/b.png 1\nsub/my cat.png\n")
    check(open_source(listing), [images[1], images[0]], [1, None])
    listing.write_text("sub/b.png 1\nsub/absent.png 1\n")
    with pytest.raises(CaffeFileError, match=r"list.txt:2: .*absent.png'.*not exist"):
        open_source(listing)
    listing.write_text(" \n")
    with pytest.raises(CaffeFileError, match="lists no images"):
        open_source(listing)


# --------------------------------------------------------------------------- databases


def datums() -> tuple[list[bytes], list[np.ndarray], list[int]]:
    """Raw bytes, raw floats and an encoded image."""
    raw = RNG.integers(0, 256, (3, 4, 5), np.uint8)
    floats = RNG.normal(size=(2, 3, 1)).astype(np.float32)
    image = picture(9)
    ok, png = cv2.imencode(".png", image)
    assert ok
    records = [
        pb.Datum(channels=3, height=4, width=5, data=raw.tobytes(), label=7),
        pb.Datum(channels=2, height=3, width=1, float_data=floats.ravel().tolist(), label=0),
        pb.Datum(channels=3, height=6, width=5, data=png.tobytes(), encoded=True, label=300),
    ]
    return [r.SerializeToString() for r in records], [raw, floats, image], [7, 0, 300]


def write_db(kind: str, path: Path, records: list[bytes]) -> None:
    keys = [f"{i:08d}_x".encode() for i in range(len(records))]
    if kind == "lmdb":
        lmdb = pytest.importorskip("lmdb")
        with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
            for key, record in zip(keys, records, strict=True):
                transaction.put(key, record)
    else:
        plyvel = pytest.importorskip("plyvel")
        db = plyvel.DB(str(path), create_if_missing=True)
        for key, record in zip(keys, records, strict=True):
            db.put(key, record)
        db.close()


@pytest.mark.parametrize("kind", ["lmdb", "leveldb"])
def test_databases(kind: str, tmp_path: Path) -> None:
    records, arrays, labels = datums()
    write_db(kind, tmp_path / "db", records)
    assert detect_kind(tmp_path / "db") == kind
    source = open_source(tmp_path / "db", order="RGB")
    check(source, arrays, labels)
    assert [source[i].image for i in range(3)] == [False, False, True]
    assert [source[i].order for i in range(3)] == ["RGB", None, "BGR"]
    source.close()
    grey, again = (open_source(tmp_path / "db", color=False) for _ in range(2))
    assert grey[2].data.shape == (6, 5, 1)
    grey.close()
    assert again[2].data.shape == (6, 5, 1)  # a database that is open twice stays open
    again.close()
    again.close()
    dropped = open_source(tmp_path / "db")
    del dropped
    gc.collect()
    if kind == "leveldb":  # LevelDB would refuse if the handle were still open
        plyvel = pytest.importorskip("plyvel")
        plyvel.DB(str(tmp_path / "db")).close()


@pytest.mark.parametrize("kind", ["lmdb", "leveldb"])
def test_databases_out_of_order_and_from_threads(kind: str, tmp_path: Path) -> None:
    records = [pb.Datum(channels=1, height=1, width=2, data=struct.pack(">H", i), label=i)
               .SerializeToString() for i in range(2500)]  # fmt: skip
    write_db(kind, tmp_path / "db", records)
    source = open_source(tmp_path / "db")
    order = np.random.default_rng(0).permutation(2500)
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(lambda i: source[int(i)], order))
    assert [s.label for s in samples] == order.tolist()
    source.close()


@pytest.mark.parametrize("kind", ["lmdb", "leveldb"])
def test_damaged_records_are_named(kind: str, tmp_path: Path) -> None:
    records, _, _ = datums()
    small = pb.Datum(channels=3, height=4, width=5, data=b"123").SerializeToString()
    write_db(kind, tmp_path / "db", [records[0], b"\xff\xff\xff", small, records[2][:40]])
    source = open_source(tmp_path / "db")
    assert source[0].label == 7
    for index, what in ((1, "not a Datum"), (2, "3 values"), (3, "not a Datum")):
        with pytest.raises(CaffeFileError, match=f"record '0000000{index}_x': .*{what}"):
            _ = source[index]
    source.close()


@pytest.mark.parametrize("kind", ["lmdb", "leveldb"])
def test_databases_that_are_none(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("lmdb" if kind == "lmdb" else "plyvel")
    write_db(kind, tmp_path / "empty", [])
    with pytest.raises(CaffeFileError, match="without records"):
        open_source(tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "data.mdb").write_bytes(b"garbage" * 100)
    with pytest.raises(CaffeFileError, match=r"is no LMDB|cannot be opened"):
        open_source(tmp_path / "bad", kind)


# --------------------------------------------------------------------------- arrays


def test_numpy_arrays(tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (4, 3, 2, 5), np.uint8)
    np.save(tmp_path / "a.npy", data)
    check(open_source(tmp_path / "a.npy"), list(data), [None] * 4)
    np.savez(tmp_path / "a.npz", images=data, labels=np.arange(4, dtype=np.uint8))
    check(open_source(tmp_path / "a.npz"), list(data), [0, 1, 2, 3])
    grey = RNG.normal(size=(4, 6, 5))
    np.savez_compressed(tmp_path / "b.npz", p=grey, q=np.array([0.5, 1, 2, 3]))
    source = open_source(tmp_path / "b.npz", dataset="p", labels="q")
    check(source, [g[None].astype(np.float32) for g in grey], [0.5, 1, 2, 3])
    with pytest.raises(CaffeFileError, match=r"which dataset.*p, q"):
        open_source(tmp_path / "b.npz")
    with pytest.raises(CaffeFileError, match="no dataset 'z'"):
        open_source(tmp_path / "b.npz", dataset="z")
    np.savez(tmp_path / "c.npz", data=data, label=np.zeros(3))
    with pytest.raises(CaffeFileError, match="4 samples but 3 labels"):
        open_source(tmp_path / "c.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_numpy_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_as = np.save if name.endswith("npy") else np.savez
    save_as(path, np.zeros((100, 4)))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(CaffeFileError, match=name):
        open_source(path)
    path.write_bytes(b"?")
    with pytest.raises(CaffeFileError, match=name):
        open_source(path)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(packed: bool, tmp_path: Path) -> None:
    data = RNG.integers(0, 256, (3, 4, 5), np.uint8)
    files = {
        "train-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, 3, 4, 5) + data.tobytes(),
        "train-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes([5, 0, 9]),
    }
    for name, content in files.items():
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed)
    assert detect_kind(path) == "idx"
    check(open_source(path), list(data[:, None]), [5, 0, 9])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CaffeFileError, match="train-images"):
        open_source(path, "idx")


def test_mnist(assets: Path) -> None:
    source = open_source(assets / "data/mnist/t10k-images-idx3-ubyte.gz")
    assert len(source) == 10000
    assert source[0].data.shape == (1, 28, 28)
    assert [source[i].label for i in range(5)] == [7, 2, 1, 0, 4]


def test_raw_batches(tmp_path: Path) -> None:
    data = RNG.normal(size=(3, 2, 1, 4, 5)).astype(np.float32)
    for name, batch in zip(("b10.bin", "b2.bin", "a.bin"), data, strict=True):
        batch.tofile(tmp_path / name)
    source = open_source(tmp_path, input_shape=(2, 1, 4, 5))
    check(source, [*data[2], *data[0], *data[1]], [None] * 6)  # by name: a, b10, b2
    with pytest.raises(CaffeFileError, match=r"a\.bin: has 160 bytes.*has 320"):
        open_source(tmp_path, input_shape=(4, 1, 4, 5))
    with pytest.raises(ValueError, match="need input_shape"):
        open_source(tmp_path)
    half = open_source(tmp_path / "a.bin", "raw", input_shape=(4, 1, 4, 5), dtype="float16")
    assert (len(half), half[0].data.dtype) == (4, np.float32)
    with pytest.raises(ValueError, match="float99"):
        open_source(tmp_path, input_shape=(2, 1, 4, 5), dtype="float99")
    with pytest.raises(MissingFileError, match="does not exist"):
        open_source(tmp_path / "none", "raw", input_shape=(1, 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaffeFileError, match=r"no \.bin files"):
        open_source(tmp_path / "empty", "raw", input_shape=(1, 1))


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    data = RNG.normal(size=(5, 2, 3, 3)).astype(np.float32)
    for name, rows in (("a.h5", slice(0, 2)), ("b.h5", slice(2, 5))):
        with h5py.File(tmp_path / name, "w") as file:
            file["data"], file["other"] = data[rows], data[rows] * 2
            file["label"] = np.arange(5, dtype=np.float32)[rows, None]
    (tmp_path / "list.txt").write_text("a.h5\nb.h5\n")
    source = open_source(tmp_path / "list.txt")
    check(source, list(data), [0, 1, 2, 3, 4])
    source.close()
    source = open_source(tmp_path / "b.h5", dataset="other", labels="label")
    check(source, list(data[2:] * 2), [2, 3, 4])
    source.close()
    with pytest.raises(CaffeFileError, match="no dataset 'x'; it has data, label, other"):
        open_source(tmp_path / "a.h5", dataset="x")
    (tmp_path / "list.txt").write_text("a.h5\nc.h5\n")
    with pytest.raises(CaffeFileError, match=r"list.txt:2: .*c.h5'"):
        open_source(tmp_path / "list.txt")
    (tmp_path / "b.h5").write_bytes((tmp_path / "b.h5").read_bytes()[:1000])
    with pytest.raises(CaffeFileError, match=r"b\.h5: cannot be read as HDF5"):
        open_source(tmp_path / "b.h5")


@pytest.mark.parametrize(
    ("kind", "module", "install"),
    [
        ("lmdb", "lmdb", r"caffe-quant\[data\]"),
        ("leveldb", "plyvel", "plyvel"),
        ("hdf5", "h5py", r"caffe-quant\[data\]"),
    ],
)
def test_a_missing_library_is_named(
    kind: str, module: str, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CaffeFileError, match=rf"needs {module}: pip install {install}"):
        open_source(tmp_path, kind)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CaffeFileError, match="does not exist"):
        open_source(tmp_path / "absent")
    with pytest.raises(ValueError, match="kind is 'jpeg'"):
        open_source(tmp_path, "jpeg")


# --------------------------------------------------------------------------- means


def test_means(tmp_path: Path) -> None:
    mean = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    blob = pb.BlobProto(num=1, channels=3, height=4, width=5, data=mean.ravel().tolist())
    (tmp_path / "m.binaryproto").write_bytes(blob.SerializeToString())
    np.testing.assert_array_equal(read_mean(tmp_path / "m.binaryproto"), mean)
    np.save(tmp_path / "m.npy", mean.astype(np.float64))
    np.testing.assert_array_equal(read_mean(tmp_path / "m.npy"), mean)
    np.save(tmp_path / "c.npy", mean[:, 0, 0])
    assert read_mean(tmp_path / "c.npy").shape == (3,)


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.binaryproto", b"\x99"), ("m.npy", b"\x93NUMPY"), ("m.binaryproto", b""), ("m.npy", None)],
)
def test_wrong_means(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CaffeFileError, match=name):
        read_mean(path)
