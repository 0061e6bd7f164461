"""The readers that are fuzzed, and the files that they begin with."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

import caffeio
import pipeline
from caffeio import data as caffe_data
from caffeio.caffemodel import read_caffemodel
from caffeio.data.mean import read_mean
from caffeio.hdf5 import read_hdf5_weights
from caffeio.proto import caffe_pb2
from caffeio.quant_configs import read_any_cfg
from caffeio.record import read_record
from caffeio.solver_state import read_solver_state
from pipeline.config.load import load_config
from pipeline.quantize.given_ranges import read_ranges
from pipeline.report.compare import read_run
from pipeline.runtime.executor import FloatNet

__all__ = ["TARGETS", "Target"]

DEMO = Path(pipeline.__file__).resolve().parent / "demo"


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes
    ----------
    file : str
        The name of its input; others may lie beside it.
    read : callable
        Reads a path.
    seeds : callable
        Returns inputs that it reads, given a folder to make them in.
    beside : dict of str to bytes
        Other files, by name, that lie in the input's folder.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[Path], list[bytes]]
    beside: dict[str, bytes] = field(default_factory=dict)


def _every(path: Path) -> None:
    """Open data and read some samples of it."""
    source = caffe_data.open_source(path)
    with suppress(StopIteration):
        for i in range(min(len(source), 5)):
            source[i]
    close = getattr(source, "close", None)
    if close is not None:
        close()


def _bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _npz(folder: Path) -> list[bytes]:
    arrays = {"data": np.ones((6, 3, 4, 4), np.float32), "label": np.arange(6)}
    return [
        _bytes(lambda b: np.savez(b, **arrays)),
        _bytes(lambda b: np.savez_compressed(b, **arrays)),
    ]


def _caffemodels(folder: Path) -> list[bytes]:
    """Return a small net's weights, as a whole caffemodel is mostly numbers."""
    net = caffe_pb2.NetParameter(name="n")
    for name in ("a", "b"):
        layer = net.layer.add(name=name, type="Convolution", bottom=["x"], top=[name])
        layer.convolution_param.num_output = 2
        blob = layer.blobs.add()
        blob.shape.dim.extend([2, 3, 1, 1])
        blob.data.extend([0.5] * 6)
    old = caffe_pb2.NetParameter(name="v1")
    v1 = old.layers.add(name="fc", type=caffe_pb2.V1LayerParameter.INNER_PRODUCT)
    v1.blobs.add(num=1, channels=1, height=2, width=2, data=[1.0] * 4)
    return [net.SerializeToString(), old.SerializeToString()]


def _hdf5(make: Callable[[object], None]) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        import h5py

        path = folder / "seed.h5"
        with h5py.File(path, "w") as file:
            make(file)
        return [path.read_bytes()]

    return seeds


def _hdf5_weights(file: object) -> None:
    blobs = file.create_group("data/conv1")  # type: ignore[attr-defined]
    blobs["0"], blobs["1"] = np.ones((2, 3, 1, 1), np.float32), np.ones(2, np.float32)


def _hdf5_data(file: object) -> None:
    file["data"] = np.ones((6, 3, 4, 4), np.float32)  # type: ignore[index]
    file["label"] = np.arange(6.0)  # type: ignore[index]


def _images(folder: Path) -> list[bytes]:
    x = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    return [cv2.imencode(end, x)[1].tobytes() for end in (".png", ".jpg", ".bmp", ".tiff", ".webp")]


def _idx(folder: Path) -> list[bytes]:
    head = bytes([0, 0, 8, 3]) + np.array([4, 5, 6], ">u4").tobytes()
    plain = head + bytes(range(120))
    return [plain, gzip.compress(plain)]


def _lmdb(folder: Path) -> list[bytes]:
    import lmdb

    with lmdb.open(str(folder / "seed"), map_size=1 << 20) as env, env.begin(write=True) as writing:
        for i in range(20):
            datum = caffe_pb2.Datum(channels=3, height=4, width=4, data=bytes(48), label=i)
            writing.put(b"%08d" % i, datum.SerializeToString())
    return [(folder / "seed" / "data.mdb").read_bytes()]


def _read_leveldb(log: Path) -> None:
    """Read a database with this log; opening it changes its files."""
    folder = log.parent / "database"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "CURRENT").write_bytes(b"MANIFEST-000002\n")
    (folder / "MANIFEST-000002").write_bytes(_MANIFEST)
    shutil.copy(log, folder / "000003.log")
    _every(folder)


#: Of an empty database.
_MANIFEST = (
    b"V\xf9\xb8\xf8\x1c\x00\x01\x01\x1aleveldb.BytewiseComparator"
    b"\xa4\x9c\x8b\xbe\x08\x00\x01\x02\x03\t\x00\x03\x04\x04\x00"
)


def _leveldb(folder: Path) -> list[bytes]:
    import plyvel

    database = plyvel.DB(str(folder / "seed"), create_if_missing=True)
    for i in range(20):
        datum = caffe_pb2.Datum(channels=3, height=4, width=4, data=bytes(48), label=i)
        database.put(b"%08d" % i, datum.SerializeToString())
    database.close()
    return [(folder / "seed" / "000003.log").read_bytes()]


def _configs(folder: Path) -> list[bytes]:
    return [(DEMO / "config.toml").read_bytes()]


def _records(folder: Path) -> list[bytes]:
    return [
        b'record { key: "conv1" value { scale_d: 0.01 offset_d: -3 scale_w: 0.5 scale_w: 0.25 '
        b"offset_w: 0 offset_w: 0 channels: 3 height: 4 width: 4 skip_fusion: true } }\n"
        b'record { key: "pool" value { scale_d: 0.5 offset_d: 0 } }\n'
    ]


def _reports(folder: Path) -> list[bytes]:
    return [json.dumps({"schema": 1, "layers": [], "accuracy": [], "details": {}}).encode()]


def _text(*texts: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [text.encode() for text in texts]


def _blob(folder: Path) -> list[bytes]:
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=2, width=2, data=[1.0] * 12)
    return [blob.SerializeToString()]


def _states(folder: Path) -> list[bytes]:
    state = caffe_pb2.SolverState(iter=5, learned_net="a.caffemodel", current_step=1)
    state.history.add(num=1, channels=1, height=1, width=4, data=[0.5] * 4)
    return [state.SerializeToString()]


_PNG = cv2.imencode(".png", np.full((3, 2, 3), 7, np.uint8))[1].tobytes()
_SOLVER = 'net: "net.prototxt" base_lr: 0.01 lr_policy: "step" stepsize: 5 gamma: 0.1 max_iter: 9\n'
_CFG = (
    "batch_num: 2 activation_offset: true\n"
    'skip_layers: "a"\ncommon_config { ifmr_quantize { search_range_start: 0.7 '
    "search_range_end: 1.3 search_step: 0.01 } }\n"
)

TARGETS: dict[str, Target] = {
    "prototxt": Target(
        "net.prototxt", caffeio.read_net, lambda f: [(DEMO / "deploy.prototxt").read_bytes()]
    ),
    "shapes": Target(
        "net.prototxt",
        lambda path: FloatNet(caffeio.read_net(path)).shapes(),
        lambda f: [Path(__file__).with_name("layers.prototxt").read_bytes()],
    ),
    "caffemodel": Target("net.caffemodel", read_caffemodel, _caffemodels),
    "hdf5_weights": Target("net.caffemodel.h5", read_hdf5_weights, _hdf5(_hdf5_weights)),
    "solver": Target(
        "solver.prototxt",
        caffeio.read_solver,
        _text(_SOLVER),
        {"net.prototxt": (DEMO / "deploy.prototxt").read_bytes()},
    ),
    "solver_state": Target("x.solverstate", read_solver_state, _states),
    "record": Target("record.txt", read_record, _records),
    "quant_cfg": Target("quant.cfg", read_any_cfg, _text(_CFG)),
    "config_json": Target(
        "config.json",
        read_any_cfg,
        _text(
            '{"version": 1, "batch_num": 2, "conv1": {"quant_enable": true, '
            '"activation_quant_params": {"max_percentile": 0.99}}}'
        ),
    ),
    "toml": Target("config.toml", load_config, _configs),
    "mean": Target("mean.binaryproto", read_mean, _blob),
    "npy": Target(
        "x.npy", _every, lambda f: [_bytes(lambda b: np.save(b, np.ones((6, 3, 4, 4), np.float32)))]
    ),
    "npz": Target("x.npz", _every, _npz),
    "idx": Target("x-ubyte", _every, _idx),
    "hdf5_data": Target("x.h5", _every, _hdf5(_hdf5_data)),
    "leveldb": Target("000003.log", _read_leveldb, _leveldb),
    "lmdb": Target("data.mdb", lambda path: _every(path.parent), _lmdb),
    "list": Target(
        "list.txt", _every, _text("a.png 3\nb c.png 4\n"), {"a.png": _PNG, "b c.png": _PNG}
    ),
    "image": Target("x.png", lambda path: _every(path.parent), _images),
    "ranges": Target(
        "ranges", read_ranges, _text("conv1_param_0 1 2\nconv1 50\n", "TRT-1\na: 3c010a14\n")
    ),
    "report": Target("report.json", read_run, _reports),
}


def names() -> Iterator[str]:
    """Yield the targets whose libraries are installed."""
    needs = {"hdf5_weights": "h5py", "hdf5_data": "h5py", "lmdb": "lmdb", "leveldb": "plyvel"}
    for name in TARGETS:
        try:
            __import__(needs.get(name, "numpy"))
        except ImportError:
            continue
        yield name
