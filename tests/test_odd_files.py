"""Files that are whole, though they look odd, and what is left of others is said in one way."""

from __future__ import annotations

import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from caffeio import CaffeFileError
from caffeio.data import open_source
from caffeio.data.decode import decode_image
from caffeio.data.lmdb_pages import check_lmdb_pages
from caffeio.data.rows import FileRows
from pipeline.manifest import check_unchanged, write_manifest

h5py = pytest.importorskip("h5py")
lmdb = pytest.importorskip("lmdb")


@pytest.mark.parametrize("seed", range(20))
def test_an_lmdb_whose_last_pages_were_never_written(tmp_path: Path, seed: int):
    """Pages that a transaction makes and frees again may lie beyond the end of the file."""
    rng = random.Random(seed)
    with lmdb.open(str(tmp_path), map_size=1 << 26) as env, env.begin(write=True) as t:
        for _ in range(rng.randrange(1, 200)):
            t.put(b"%08d" % rng.randrange(1000), bytes(rng.randrange(9000)))
        for _ in range(rng.randrange(200)):
            t.delete(b"%08d" % rng.randrange(1000))
    check_lmdb_pages(tmp_path / "data.mdb")


def test_a_bmp_of_os2():
    pixels = bytes(range(48)) * 16
    head = b"BM" + struct.pack("<IHHI", 26 + len(pixels), 0, 0, 26)
    data = head + struct.pack("<IHHHH", 12, 16, 16, 1, 24) + pixels
    assert decode_image(data).shape == (16, 16, 3)


def test_links_that_nobody_reads_are_no_fault(tmp_path: Path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = np.ones((2, 1, 2, 2), np.float32), [0, 1]
        file["alias"] = h5py.SoftLink("/data")
        file["away"] = h5py.ExternalLink("/etc/passwd", "/x")
    assert open_source(path)[1].label == 1


def test_rows_of_a_file_are_those_of_a_copy_elsewhere(tmp_path: Path):
    """A pickle goes to another process, where a descriptor's number is another file."""
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    rows = FileRows(tmp_path / "x.npy", 128, (2, 4), np.dtype(np.float32))
    copy = pickle.loads(pickle.dumps(rows))
    assert copy._file != rows._file
    assert copy[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("odd", ["gone", "folder"])
def test_a_file_that_a_manifest_names_and_nobody_can_read(tmp_path: Path, odd: str):
    path = tmp_path / "net.caffemodel"
    path.touch()
    write_manifest(tmp_path / "net_manifest.json", [path])
    path.unlink()
    if odd == "folder":
        path.mkdir()
    with pytest.raises(CaffeFileError, match=r"net\.caffemodel: cannot be read"):
        check_unchanged(path)
