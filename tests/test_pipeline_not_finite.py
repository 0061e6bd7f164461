"""NaN and infinity in the data: the run ends, and says in which sample of which file they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_nets import samples, write_job

from caffeio import CaffeFileError
from caffeio.data import Batch, Transform, open_source
from caffeio.proto import caffe_pb2 as pb
from pipeline.quantize.feed import Feed
from pipeline.run import main

BAD = 6  # the sample, of 24


def data() -> np.ndarray:
    x = samples(24)
    x[BAD, 1, 2, 3], x[BAD, 2, 0, :2] = np.nan, np.inf
    return x


def as_npz(folder: Path) -> str:
    np.savez(folder / "bad.npz", data=data())
    return f"bad.npz[{BAD}]"


def as_npy(folder: Path) -> str:
    np.save(folder / "bad.npy", data())
    return f"bad.npy[{BAD}]"


def as_hdf5(folder: Path) -> str:
    h5py = pytest.importorskip("h5py")
    for name, part in (("a.h5", data()[:4]), ("b.h5", data()[4:])):
        with h5py.File(folder / name, "w") as file:
            file["data"] = part
    (folder / "bad.txt").write_text("a.h5\nb.h5\n")
    return f"b.h5[{BAD - 4}]"


def as_lmdb(folder: Path) -> str:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "bad"), map_size=1 << 24) as env, env.begin(write=True) as writer:
        for i, x in enumerate(data()):
            c, h, w = x.shape
            datum = pb.Datum(channels=c, height=h, width=w, float_data=x.ravel().tolist())
            writer.put(f"{i:08}".encode(), datum.SerializeToString())
    return f"{BAD:08}"


SOURCES = {"bad.npz": as_npz, "bad.npy": as_npy, "bad.txt": as_hdf5, "bad": as_lmdb}


@pytest.mark.parametrize("source", SOURCES)
def test_the_sample_and_its_file_are_named(tmp_path: Path, capsys, source: str):
    config = write_job(tmp_path)
    name = SOURCES[source](tmp_path)
    text = config.read_text()
    config.write_text(text.replace('data.source = "data.npz"', f'data.source = "{source}"', 1))
    assert main([str(config), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert str(tmp_path) in line
    assert "holds 1 NaN and 2 infinite values for the net's input 'data'" in line
    assert "which layer 'conv1' reads (the first at [1, 2, 3])" in line
    assert "mend the sample or leave it out" in line
    assert not any((tmp_path / "out").rglob("*"))


def test_samples_that_are_only_evaluated_are_named_too(tmp_path: Path, capsys):
    config = write_job(tmp_path)
    x = samples(24)
    x[20, 0, 0, 0] = -np.inf
    np.savez(tmp_path / "bad.npz", data=x)
    before, after = config.read_text().split("[evaluate]")
    config.write_text(before + "[evaluate]" + after.replace("data.npz", "bad.npz"))
    assert main([str(config), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.npz[20]: holds 0 NaN and 1 infinite values" in line


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_the_transform_makes_is_its_fault(tmp_path: Path, capsys):
    config = write_job(tmp_path, extra="[transform]\nscale = 1e10")
    x = samples(24)
    x[BAD, 0, 0, 0] = 1e30
    np.savez(tmp_path / "data.npz", data=x)
    assert main([str(config), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"data.npz[{BAD}]: is finite, but [transform] makes of it" in line
    assert "check its mean, scale and std" in line


def feed(tmp_path: Path, values: np.ndarray) -> Callable[[], list[Batch]]:
    """Return what reads a feed of two inputs, of which the second has these values."""
    np.save(tmp_path / "one.npy", np.zeros_like(values))
    np.save(tmp_path / "two.npy", values)
    inputs = {
        name: (open_source(tmp_path / f"{name}.npy", "numpy"), Transform())
        for name in ("one", "two")
    }
    return lambda: list(Feed(inputs, 1).batches(2))


def test_of_two_inputs_the_file_at_fault_is_named(tmp_path: Path):
    values = np.zeros((6, 4), np.float32)
    values[0] = np.nan  # before the start
    read = feed(tmp_path, values)
    assert [b.places for b in read()] == [(1, 2), (3, 4), (5,)]
    values[4, 2] = np.nan
    read = feed(tmp_path, values)
    with pytest.raises(
        CaffeFileError, match=r"two\.npy\[4\]: holds 1 NaN.*'two' \(the first at \[2\]\)"
    ):
        read()
