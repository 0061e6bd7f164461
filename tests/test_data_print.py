"""What tells other data from the same, whatever it lies in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from caffeio.data import Transform, open_source
from caffeio.proto import caffe_pb2 as pb
from pipeline.quantize.data_print import DataPrint, data_prints
from pipeline.quantize.feed import Feed


def images(folder: Path, count: int = 20) -> Path:
    """Write images and a list of them."""
    import cv2

    (folder / "pictures").mkdir(exist_ok=True)
    for i in range(count):
        picture = np.full((4, 5, 3), i, np.uint8)
        cv2.imwrite(str(folder / "pictures" / f"{i:02}.png"), picture)
    lines = (f"pictures/{i:02}.png {i % 3}" for i in range(count))
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder / "list.txt"


def print_of(path: Path, places: tuple[int, ...] | None = None, start: int = 0) -> DataPrint:
    source = open_source(path)
    try:
        feed = Feed({"data": (source, Transform())}, start, places=places)
        return data_prints(feed)["data"]
    finally:
        source.close()


@pytest.mark.parametrize("name", ["list.txt", "pictures"])
def test_images_that_are_read_count_and_no_others(name, tmp_path):
    images(tmp_path)
    before = print_of(tmp_path / name, (3, 1, 7))
    assert [place for place, _ in before.contents] == [1, 3, 7]
    assert print_of(tmp_path / name, (3, 1, 7)).difference(before) == ""
    os.utime(tmp_path / "pictures" / "05.png", ns=(1, 1))
    assert print_of(tmp_path / name, (3, 1, 7)).difference(before) == ""
    os.utime(tmp_path / "pictures" / "07.png", ns=(1, 1))
    said = print_of(tmp_path / name, (3, 1, 7)).difference(before)
    assert said == f"the files of '{tmp_path / name}' were changed"
    (tmp_path / "pictures" / "01.png").write_bytes((tmp_path / "pictures" / "02.png").read_bytes())
    said = print_of(tmp_path / name, (3, 1, 7)).difference(before)
    assert said == f"'{tmp_path / name}' has another sample number 1"


def test_a_list_that_names_others_is_other_data(tmp_path):
    path = images(tmp_path)
    before = print_of(path)
    assert len(before.contents) == 16
    assert [before.contents[0][0], before.contents[-1][0]] == [0, 19]
    assert print_of(path, start=2).difference(before).startswith("other samples of")
    path.write_text(path.read_text().replace("0\n", "1\n"))
    assert print_of(path).difference(before).endswith("has another sample number 0")
    path.write_text("pictures/00.png 0\n")
    assert print_of(path).difference(before).endswith("has 1 samples, had 20")
    assert print_of(tmp_path / "pictures").difference(before).endswith(f"not '{path}'")


def test_a_damaged_sample_is_for_whoever_reads_it(tmp_path):
    path = images(tmp_path, 3)
    before = print_of(path)
    (tmp_path / "pictures" / "01.png").write_bytes(b"no image")
    assert print_of(path).difference(before).endswith("has another sample number 1")


def put(path: Path, kind: str, value: int) -> None:
    """Write three records into a database, all of one value."""
    datum = pb.Datum(channels=1, height=2, width=2, data=bytes([value] * 4))
    records = [(b"%d" % i, datum.SerializeToString()) for i in range(3)]
    if kind == "lmdb":
        lmdb = pytest.importorskip("lmdb")
        with lmdb.open(str(path), map_size=1 << 20) as env, env.begin(write=True) as transaction:
            for key, record in records:
                transaction.put(key, record)
        return
    plyvel = pytest.importorskip("plyvel")
    db = plyvel.DB(str(path), create_if_missing=True)
    for key, record in records:
        db.put(key, record)
    db.close()


@pytest.mark.parametrize("kind", ["lmdb", "leveldb"])
def test_a_database_is_the_same_however_often_it_is_opened(kind, tmp_path):
    put(tmp_path / "db", kind, 1)
    before = print_of(tmp_path / "db")
    if kind == "lmdb":
        os.utime(tmp_path / "db" / "lock.mdb", ns=(1, 1))
    assert print_of(tmp_path / "db") == print_of(tmp_path / "db") == before
    put(tmp_path / "db", kind, 2)
    said = print_of(tmp_path / "db").difference(before)
    assert said == f"'{tmp_path / 'db'}' has another sample number 0"


def test_raw_batches_and_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["data"] = np.zeros((3, 1, 2, 2), np.float32)
    before = print_of(tmp_path / "x.h5")
    assert print_of(tmp_path / "x.h5") == before
    os.utime(tmp_path / "x.h5", ns=(1, 1))
    assert print_of(tmp_path / "x.h5").difference(before).startswith("the files of")
    (tmp_path / "raw").mkdir()
    file = tmp_path / "raw" / "a.bin"
    np.zeros((3, 2), np.float32).tofile(file)

    def raw() -> DataPrint:
        source = open_source(tmp_path / "raw", input_shape=(3, 2))
        return data_prints(Feed({"data": (source, Transform())}, 0))["data"]

    before = raw()
    os.utime(file, ns=(1, 1))
    assert raw().difference(before).startswith("the files of")
